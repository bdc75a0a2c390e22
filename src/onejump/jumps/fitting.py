"""Fitting one jump, or the joint jump, by any of the registered fits."""

from importlib import import_module

import torch

from onejump.activations.reading import Activations
from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.jumps.exact import fit_exact
from onejump.jumps.jump import Jump, default_rank
from onejump.jumps.moments import level_moments
from onejump.jumps.objective import Problem, exit_levels, gap
from onejump.models.unembedding import Unembedding


def fit_jump(
    activations: Activations,
    unembedding: Unembedding,
    level: int | None,
    fit: str,
    target: str,
    rank: int | None,
    joint_batches: str,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> tuple[Jump, dict]:
    """Fit the jump of one level, or the joint jump of all exit levels.

    Args:
        activations: of the train split.
        unembedding: of the model.
        level: 0..K-1, or None for the joint jump.
        fit: name of a fit; its module's `fit` returns the jump and what else its file says.
        target: `pre_norm` or `post_norm`.
        rank: r, or None for floor(H / 100).
        joint_batches: `mixed` or `per_level`, for joint fits that depend on it.
        seed: of fits that draw random numbers.
        device: where to fit.
        checkpoint: for fits that may take long, or None.

    Returns:
        The jump in evaluation mode, and the metadata of its file.

    Raises:
        OnejumpError: the level is not an exit level, the rank is out of range, the rows are too few, or as the fit.
    """
    levels = exit_levels(activations, level)
    rank = default_rank(activations.hidden_size) if rank is None else rank
    if not 1 <= rank <= activations.hidden_size:
        raise OnejumpError(
            f"rank {rank} is out of range; H is {activations.hidden_size}, so use 1..{activations.hidden_size}"
        )
    fitting, validation = level_moments(activations, levels, unembedding, target, device)
    name = "joint" if level is None else str(level)
    problem = Problem(
        activations, levels, unembedding, target, rank, fitting, validation,
        per_level=level is None and joint_batches == "per_level",
        # Each jump has its own stream of random numbers, so that no two start alike.
        seed=seed * 1000 + (999 if level is None else level),
        device=device, title=f"jump {name}", checkpoint=checkpoint,
    )  # fmt: skip
    jump, facts = import_module(f"onejump.jumps.{fit}").fit(problem)
    if "optimum_mse" not in facts:
        exact = fit_exact(fitting, validation, rank, choose_ridge=False)
        facts |= {"optimum_mse": exact.optimum_mse, "mean_mse": exact.mean_mse}
    if "train_mse" not in facts:
        folded = jump.fold()
        facts |= {"train_mse": fitting.mse(folded), "validation_mse": validation.mse(folded)}
    return jump, facts | {
        "level": name,
        "n_blocks": activations.n_blocks,
        "fit": fit,
        "target": target,
        "rank": rank,
        "seed": seed,
        "unembedding_sha256": unembedding.metadata["sha256"],
        "n_rows": len(activations),
        "gap": gap(facts["train_mse"], facts["optimum_mse"], facts["mean_mse"]),
    }
