"""Fitting one jump, or the joint jump, by any of the registered fits; and the full-rank jumps (JTC)."""

from importlib import import_module

import torch

from onejump.activations.reading import Activations, tensor_name
from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.files.progress import progress_bar
from onejump.jumps.exact import fit_exact
from onejump.jumps.inputs import JumpInputs
from onejump.jumps.jump import Jump
from onejump.jumps.lenses import AffineLens
from onejump.jumps.moments import level_moments
from onejump.jumps.objective import Problem, gap
from onejump.jumps.settings import default_rank
from onejump.models.unembedding import Unembedding
from onejump.study.variants import wrong_choice


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
    gate: str = "none",
    scales: str = "none",
    inputs: str = "states",
) -> tuple[Jump, dict]:
    """Fit the jump of one level 0..K-1, or for None the joint jump of all exit levels.

    `fit` names a module here, whose `fit` returns the jump and what else its file says; without a rank, it is
    floor(H / 100). The seed is for fits that draw random numbers, `joint_batches` (`mixed` or `per_level`) for joint
    fits that depend on it, and the checkpoint for fits that may take long. For fits that can have them, `gate` says
    which numbers let the hidden state through: `none`, `level` (one for each level), `shared` (one for all) or `fixed`
    (1 for all); `scales` which numbers multiply the joint jump's coordinates: `none` or `level` (r for each level); and
    `inputs` what the jump sees: `states`, `none` (nothing, so that it is a bias, in the form of a jump of rank 1) or
    `shuffled` (states of other sentences, drawn from the seed). Errors are those of the inputs fitted to.

    Returns:
        The jump in evaluation mode, and the metadata of its file.

    Raises:
        OnejumpError: the level is not an exit level, the rank is out of range, the rows are too few, the fit, the
            target or the rank does not go with the gate, the scales or the inputs, or as the fit.
    """
    choices = {"fit": fit, "target": target, "rank": rank, "gate": gate, "scales": scales, "inputs": inputs}
    if wrong := wrong_choice(choices | {"jumps": "joint" if level is None else "all"}):
        raise OnejumpError(wrong)
    n_blocks, hidden_size = activations.n_blocks, activations.hidden_size
    if level is not None and not 0 <= level < n_blocks:
        raise OnejumpError(f"level {level} is out of range; exit levels of this model are 0..{n_blocks - 1}")
    levels, name = (list(range(n_blocks)), "joint") if level is None else ([level], str(level))
    if rank is None:
        rank = 1 if inputs == "none" else default_rank(hidden_size)
    if not 1 <= rank <= hidden_size:
        raise OnejumpError(f"rank {rank} is out of range; H is {hidden_size}, so use 1..{hidden_size}")
    # Each jump has its own stream of random numbers, so that no two start alike; all see the same shuffled rows.
    stream = seed * 1000 + (999 if level is None else level)
    seen = JumpInputs(activations, inputs, seed * 1000 + 998)
    fitting, validation = level_moments(seen, levels, unembedding, target, device)
    per_level = level is None and joint_batches == "per_level"
    given = (activations, levels, unembedding, target, rank, seen, fitting, validation, gate, scales)
    problem = Problem(*given, per_level, stream, device, f"jump {name}", checkpoint)
    jump, facts = import_module(f"onejump.jumps.{fit}").fit(problem)
    if "optimum_mse" not in facts:
        exact = fit_exact(fitting, validation, rank, choose_ridge=False)
        facts |= {"optimum_mse": exact.optimum_mse, "mean_mse": exact.mean_mse}
    if "train_mse" not in facts:
        errors = (rows.mse(jump.fold()) for rows in (fitting, validation))
        facts |= dict(zip(("train_mse", "validation_mse"), errors, strict=True))
    if inputs == "none" and gate == "none":
        # The optimum is mean(Y), so the gap takes the error of predicting nothing in the place of mean(Y)'s.
        facts["mean_mse"] = float(fitting.yy / fitting.n + fitting.mean_y.dot(fitting.mean_y))
    facts |= {"level": name, "n_blocks": n_blocks, "fit": fit, "target": target, "rank": rank, "seed": seed}
    facts |= {"gate": gate, "scales": scales, "inputs": inputs}
    facts |= {"unembedding_sha256": unembedding.metadata["sha256"], "n_rows": len(activations)}
    return jump, facts | {"gap": gap(facts["train_mse"], facts["optimum_mse"], facts["mean_mse"])}


def fit_jtc(
    activations: Activations, unembedding: Unembedding, target: str, device: torch.device
) -> tuple[list[AffineLens], dict]:
    """The full-rank linear jump of every level (JTC), by ridge least squares: the upper reference.

    Din et al. (2023) fit without a constant and without ridge. Here it is the exact fit of full rank, so that it
    differs from the other exact fits in rank alone.

    Returns:
        The lens of each level, and what their file says: ridge and errors of each level, and the multiply-adds of all
        moments and of one solution a level.
    """
    lenses, facts, H = [], {}, activations.hidden_size
    for level in progress_bar(range(activations.n_blocks), "JTC", "level"):
        exact = fit_exact(*level_moments(activations, [level], unembedding, target, device), H)
        found = exact.map
        weight = (found.W / found.std_x[:, None]) @ found.V.T
        bias = found.V @ found.c - found.mean_x @ weight
        lenses.append(AffineLens((weight.float(),), bias.float()))
        facts[tensor_name(level)] = {key: getattr(exact, key) for key in ("ridge", "train_mse", "validation_mse")}
    return lenses, facts | {"multiply_adds": activations.n_blocks * (2 * len(activations) * H**2 + 2 * H**3)}
