"""JTC, the full-rank linear jump of every level (Din et al. 2023): the upper reference."""

from collections.abc import Callable
from pathlib import Path

import torch

from onejump.activations.reading import Activations, level_name
from onejump.files.atomic import OnejumpError
from onejump.files.progress import progress_bar
from onejump.files.tensors import write_tensors
from onejump.jumps.exact import fit_exact
from onejump.jumps.fitting import exit_levels
from onejump.jumps.jump import open_for_unembedding
from onejump.jumps.moments import level_moments
from onejump.models.unembedding import Unembedding


def fit_jtc(
    activations: Activations, unembedding: Unembedding, path: str | Path, target: str, device: torch.device
) -> None:
    """Stage `fit-jtc`: the full-rank linear jump of every level by ridge least squares, the upper reference.

    Din et al. fit without a constant and without ridge; here it is the full-rank member of the exact fits, so that
    rank alone sets it apart from them.

    Raises:
        OnejumpError: as `fit_jump`.
    """
    tensors, metadata = {}, {"kind": "jtc", "target": target, "unembedding_sha256": unembedding.metadata["sha256"]}
    for level in progress_bar(exit_levels(activations, None), "JTC", "level"):
        exact = fit_exact(*level_moments(activations, [level], unembedding, target, device), activations.hidden_size)
        weight = (exact.map.W / exact.map.std_x[:, None]) @ exact.map.V.T
        tensors[f"{level_name(level)}.weight"] = weight.float()
        tensors[f"{level_name(level)}.bias"] = (exact.map.V @ exact.map.c - exact.map.mean_x @ weight).float()
        errors = {"ridge": exact.ridge, "train_mse": exact.train_mse, "validation_mse": exact.validation_mse}
        metadata[level_name(level)] = errors
    write_tensors(path, tensors, metadata)


def open_jtc(
    path: str | Path, unembedding: Unembedding, target: str
) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """A reader of weight [H, H] and bias [H] of a level's full-rank jump, `y = h weight + bias`.

    Raises:
        OnejumpError: the file is of another head or target; from the reader: it has no such level, or is damaged.
    """
    file = open_for_unembedding(path, unembedding, "jtc")
    if file.metadata["target"] != target:
        raise OnejumpError(f"{path}: was fitted to the {file.metadata['target']} target, expected {target}")
    return lambda level: (file.tensor(f"{level_name(level)}.weight"), file.tensor(f"{level_name(level)}.bias"))
