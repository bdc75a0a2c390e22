"""The training stages: one jump, the joint jump, and the full-rank reference (JTC), each from dumped activations."""

from pathlib import Path

import torch

from onejump.activations.reading import Activations
from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.jumps.adam import Rows, fit_adam
from onejump.jumps.exact import fit_exact
from onejump.jumps.exact_logits import fit_logits, metric_root
from onejump.jumps.jump import default_rank, target_of
from onejump.jumps.kl import fit_kl
from onejump.jumps.moments import level_moments, validation_start
from onejump.models.unembedding import Unembedding


def fit_jump(
    activations: Activations,
    unembedding: Unembedding,
    level: int | None,
    path: str | Path,
    fit: str,
    target: str,
    rank: int | None,
    joint_batches: str,
    seed: int,
    device: torch.device,
) -> None:
    """Stage `fit-jump`: fit the jump of one level, or the joint jump of all exit levels, and write it.

    Args:
        activations: of the train split.
        head: of the model.
        level: 0..K-1, or None for the joint jump.
        path: the jump's file.
        fit: `adam`, `exact`, `exact_logits` or `kl`.
        target: `pre_norm` or `post_norm`.
        rank: r, or None for floor(H / 100).
        joint_batches: `mixed` or `per_level`; used by the joint Adam fit alone.
        seed: of the Adam and KL fits.
        device: where to fit.

    Raises:
        OnejumpError: the level is not an exit level, the rank is out of range, or the rows are too few.
    """
    levels = exit_levels(activations, level)
    rank = default_rank(activations.hidden_size) if rank is None else rank
    if not 1 <= rank <= activations.hidden_size:
        raise OnejumpError(
            f"rank {rank} is out of range; H is {activations.hidden_size}, so use 1..{activations.hidden_size}"
        )
    fitting, validation = level_moments(activations, levels, unembedding, target, device)
    # Other fits need only the optimum that they are measured by, or start from.
    exact = fit_exact(fitting, validation, rank, choose_ridge=fit == "exact")
    name = "joint" if level is None else str(level)
    metadata = {
        "level": name,
        "n_blocks": activations.n_blocks,
        "fit": fit,
        "target": target,
        "rank": rank,
        "seed": seed,
        "unembedding_sha256": unembedding.metadata["sha256"],
        "n_rows": len(activations),
        "optimum_mse": exact.optimum_mse,
        "mean_mse": exact.mean_mse,
    }
    # Each level its own stream of random numbers, so that no two jumps start alike.
    stream = seed * 1000 + (999 if level is None else level)
    checkpoint = None
    if fit == "exact":
        jump, train_mse, validation_mse = exact.map.jump(), exact.train_mse, exact.validation_mse
        metadata |= {"ridge": exact.ridge}
    elif fit == "adam":
        per_level = level is None and joint_batches == "per_level"
        facts = metadata | {"per_level": per_level, "activations_sha256": activations.sha256}
        checkpoint = Checkpoint(path, facts, device)
        rows = _rows(activations, levels, unembedding, target, device)
        result = fit_adam(*rows, rank, stream, per_level=per_level, progress=f"jump {name}", checkpoint=checkpoint)
        jump, train_mse, validation_mse = result.jump, result.train_mse, result.validation_mse
        metadata |= {
            "best_epoch": result.best_epoch,
            "train_curve": result.train_curve,
            "validation_curve": result.validation_curve,
        }
    else:
        if fit == "exact_logits":
            root = metric_root(unembedding, target, device)
            weighed = level_moments(activations, levels, unembedding, target, device, root)
            found, metadata["ridge"] = fit_logits(*weighed, rank, root)
        else:
            rows = _rows(activations, levels, unembedding, target, device)
            result = fit_kl(*rows, exact.map, unembedding.to(device), target, stream, progress=f"jump {name}")
            found = result.map
            metadata |= {
                "best_step": result.best_step,
                "train_kl_curve": result.train_curve,
                "validation_kl_curve": result.validation_curve,
            }
        jump = found.jump()
        train_mse, validation_mse = (rows.mse(jump.fold()) for rows in (fitting, validation))
    metadata |= {"train_mse": train_mse, "validation_mse": validation_mse, "gap": exact.gap(train_mse)}
    jump.save(path, metadata)
    if checkpoint is not None:
        checkpoint.remove()


def exit_levels(activations: Activations, level: int | None) -> list[int]:
    """The levels that a fit takes its inputs from: one exit level, or all for None.

    Raises:
        OnejumpError: the level is not in 0..K-1.
    """
    if level is None:
        return list(range(activations.n_blocks))
    if not 0 <= level < activations.n_blocks:
        raise OnejumpError(
            f"level {level} is out of range; exit levels of this model are 0..{activations.n_blocks - 1}"
        )
    return [level]


def _rows(
    activations: Activations, levels: list[int], unembedding: Unembedding, target: str, device: torch.device
) -> tuple[Rows, Rows]:
    y = target_of(activations.level(activations.n_blocks), unembedding, target).to(device)
    x = torch.stack([activations.level(level) for level in levels]).to(device)
    cut = validation_start(len(activations))
    return Rows(x[:, :cut].contiguous(), y[:cut]), Rows(x[:, cut:], y[cut:])
