"""The fit `kl`: Adam on the KL divergence of the exit's prediction from the full model's, starting at the optimum.

The divergence is the objective of the tuned lens (Belrose et al. 2023); the start is the exact optimum of Eq. 2 (OJFA),
or, with gates, what jump and gates in turn come to.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.files.progress import progress_bar
from onejump.jumps.adam import one_cycle_adam
from onejump.jumps.divergence import Divergence, FullModel
from onejump.jumps.exact import AffineMap, fit_exact
from onejump.jumps.gates import alternate, with_gates
from onejump.jumps.jump import Jump
from onejump.jumps.objective import Problem, Rows
from onejump.jumps.settings import (
    KL_BATCH_ROWS,
    KL_CONVERGED,
    KL_LEARNING_RATE,
    KL_STEPS,
    KL_VALIDATE_EVERY,
    KL_VALIDATION_LEVELS,
)
from onejump.models.unembedding import Unembedding


def fit(problem: Problem) -> tuple[Jump, dict]:
    """The jump, and what its file says of the fit.

    Raises:
        OnejumpError: the divergence became NaN or infinite, or as `AffineMap.jump`.
    """
    moments, gates = problem.fitting, []
    if problem.gate != "none":
        gated, gates = alternate(problem)
        moments = gated.target(gates)
    start = fit_exact(moments, problem.validation, problem.rank, choose_ridge=False)
    unembedding, rows = problem.unembedding.to(problem.device), problem.rows()
    choices = {"gates": gates, "fit_gates": problem.gate != "fixed"}
    choices |= {"progress": problem.title, "checkpoint": problem.checkpoint}
    found = fit_kl(*rows, start.map, unembedding, problem.target, problem.seed, **choices)
    jump, facts = found.map.jump(), {name: getattr(found, name) for name in ("best_step", "train_curve")}
    jump = with_gates(jump, found.gates) if gates else jump
    facts |= {"validation_curve": found.validation_curve, "converged": converged(found.validation_curve)}
    facts["curve_steps"] = [i * KL_VALIDATE_EVERY for i in range(len(found.validation_curve))]
    folded = jump.fold().to(problem.device)
    errors = (part.mse(folded, unembedding) for part in rows)
    facts |= dict(zip(("train_mse", "validation_mse"), errors, strict=True))
    facts |= {"optimum_mse": start.optimum_mse, "mean_mse": float(problem.fitting.yy / problem.fitting.n)}
    return jump, facts


@dataclass(frozen=True)
class KlFit:
    """A fitted map, at the step with the lowest validation divergence, and the fit's course, in nats."""

    map: AffineMap
    gates: list[float]  # as in `Jump`
    best_step: int  # 0 is the start
    train_curve: list[float]  # mean divergence of the batches between two validations
    validation_curve: list[float]  # on the validation slice, at the start and every KL_VALIDATE_EVERY steps


def converged(validation_curve: Sequence[float]) -> bool:
    """Whether the last quarter of the steps lowered the smallest divergence by less than KL_CONVERGED of itself."""
    last = max(1, len(validation_curve) // 4)
    before = min(validation_curve[:-last])
    return before - min(validation_curve) < KL_CONVERGED * before


def _batches(rows: Rows, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of rows, as levels and sentences, [b] each: of all levels as many, each level in an own order."""
    n_levels, n, _ = rows.x.shape
    size = min(max(KL_BATCH_ROWS // n_levels, 1), n)
    levels = torch.arange(n_levels, device=rows.y.device).repeat_interleave(size)
    while True:
        orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(n_levels)]).to(rows.y.device)
        for part in orders[:, : n // size * size].split(size, 1):
            yield levels, part.flatten()


def validation_rows(rows: Rows) -> tuple[Tensor, Tensor]:
    """All sentences, each at KL_VALIDATION_LEVELS of the levels, the same ones every time: levels and sentences."""
    n_levels, n, _ = rows.x.shape
    n_groups = math.ceil(n_levels / KL_VALIDATION_LEVELS)
    groups = [
        torch.cartesian_prod(torch.arange(n_levels)[group::n_groups], torch.arange(n)[group::n_groups])
        for group in range(min(n_groups, n))
    ]
    return torch.cat(groups).to(rows.y.device).unbind(1)


def fit_kl(
    fitting: Rows,
    validation: Rows,
    start: AffineMap,
    unembedding: Unembedding,
    target: str,
    seed: int,
    gates: Sequence[float] = (),
    fit_gates: bool = True,
    steps: int = KL_STEPS,
    progress: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> KlFit:
    """Fit by the divergence, and keep the map with the lowest one on the validation slice.

    The unembedding is on the rows' device; the seed is that of the batches; gates, as in `Jump`, are where they start,
    or, without `fit_gates`, stay. An interrupted fit resumes at its checkpoint, with the same result.

    Raises:
        OnejumpError: the divergence became NaN or infinite.
    """
    divergence = Divergence(start, gates, fit_gates and len(gates) > 0, fitting, unembedding, target)
    full, validation_full = (FullModel.of(rows.y, unembedding, target) for rows in (fitting, validation))
    optimiser, schedule = one_cycle_adam(divergence.parameters, KL_LEARNING_RATE, steps)
    generator, held_out = torch.Generator().manual_seed(seed), validation_rows(validation)
    best = [part.detach().clone() for part in divergence.parameters]
    curves = {"train_curve": [], "validation_curve": []}
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        with torch.no_grad():
            for parameter, value in zip(divergence.parameters, saved["parameters"], strict=True):
                parameter.copy_(value)
        for name, part in (("optimiser", optimiser), ("schedule", schedule)):
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        best, curves = saved["best"], {name: saved[name] for name in curves}
    train_curve, validation_curve = curves.values()
    if not validation_curve:
        validation_curve.append(divergence(validation, validation_full, *held_out))
    done, stretches = len(train_curve), steps // KL_VALIDATE_EVERY
    for _ in progress_bar(range(done, stretches), progress, f"{KL_VALIDATE_EVERY} steps", stretches, done):
        total = 0.0
        for levels, sentences in itertools.islice(_batches(fitting, generator), KL_VALIDATE_EVERY):
            total += divergence(fitting, full, levels, sentences, backward=True)
            optimiser.step()
            schedule.step()
        train_curve.append(total / KL_VALIDATE_EVERY)
        validation_curve.append(divergence(validation, validation_full, *held_out))
        if not math.isfinite(validation_curve[-1]):
            raise OnejumpError(
                f"KL fit: the divergence is {validation_curve[-1]} after step {len(train_curve) * KL_VALIDATE_EVERY}; "
                "look for extreme activations, or use fit: exact"
            )
        if validation_curve[-1] == min(validation_curve):
            best = [part.detach().clone() for part in divergence.parameters]
        if checkpoint is not None and checkpoint.due:
            states = {"optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(), "best": best}
            now = [part.detach() for part in divergence.parameters]
            checkpoint.save(states | curves | {"parameters": now, "generator": generator.get_state()})
    best_step = validation_curve.index(min(validation_curve)) * KL_VALIDATE_EVERY
    return KlFit(*divergence.result(best), best_step, train_curve, validation_curve)
