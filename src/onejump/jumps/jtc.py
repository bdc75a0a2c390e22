"""JTC, the full-rank linear jump of every level (Din et al. 2023): the upper reference."""

import torch
from torch import Tensor

from onejump.activations.reading import Activations, level_name
from onejump.files.progress import progress_bar
from onejump.jumps.exact import fit_exact
from onejump.jumps.moments import level_moments
from onejump.models.unembedding import Unembedding


def fit_jtc(
    activations: Activations, unembedding: Unembedding, target: str, device: torch.device
) -> tuple[dict[str, Tensor], dict]:
    """The full-rank linear jump of every level by ridge least squares.

    Din et al. fit without a constant and without ridge. Here it is the exact fit of full rank, so that it differs from
    the other exact fits in rank alone.

    Args:
        activations: of the train split.
        unembedding: of the model.
        target: `pre_norm` or `post_norm`.
        device: where to fit.

    Returns:
        Weight [H, H] and bias [H] of each level, float32, and the metadata of their file.

    Raises:
        OnejumpError: as `level_moments`.
    """
    tensors, metadata = {}, {"kind": "jtc", "target": target, "unembedding_sha256": unembedding.metadata["sha256"]}
    for level in progress_bar(range(activations.n_blocks), "JTC", "level"):
        exact = fit_exact(*level_moments(activations, [level], unembedding, target, device), activations.hidden_size)
        weight = (exact.map.W / exact.map.std_x[:, None]) @ exact.map.V.T
        tensors[f"{level_name(level)}.weight"] = weight.float()
        tensors[f"{level_name(level)}.bias"] = (exact.map.V @ exact.map.c - exact.map.mean_x @ weight).float()
        errors = {"ridge": exact.ridge, "train_mse": exact.train_mse, "validation_mse": exact.validation_mse}
        metadata[level_name(level)] = errors
    return tensors, metadata
