"""The fit `kl`: Adam on the KL divergence of the exit's prediction from the full model's, starting at the optimum.

The divergence is the objective of the tuned lens (Belrose et al. 2023); the start is the exact optimum of Eq. 2 (OJFA),
for a gated jump that of its first gates.
"""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam

from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.files.progress import progress_bar
from onejump.jumps.divergence import Divergence, FullModel
from onejump.jumps.exact import AffineMap, fit_exact
from onejump.jumps.gates import GateMoments, first_gates, with_gates
from onejump.jumps.jump import Jump
from onejump.jumps.objective import Problem, Rows
from onejump.jumps.settings import (
    KL_AVERAGE,
    KL_BATCH_ROWS,
    KL_BETA2,
    KL_CONVERGED,
    KL_FALL_AFTER,
    KL_LEARNING_RATE,
    KL_LEARNING_RATE_B,
    KL_LEARNING_RATE_GATES,
    KL_STEPS,
    KL_VALIDATE_EVERY,
    KL_VALIDATION_LEVELS,
    KL_WARM_UP,
)
from onejump.models.unembedding import Unembedding

logger = logging.getLogger(__name__)


def fit(problem: Problem) -> tuple[Jump, dict]:
    """The jump, and what its file says of the fit.

    Raises:
        OnejumpError: the divergence became NaN or infinite, or as `AffineMap.jump`.
    """
    # Gates grow from where nothing was fitted: those of the smallest squared error are low, and lead to worse jumps.
    gates = first_gates(problem)
    moments = GateMoments.of(problem, gates=gates).target([1.0]) if gates else problem.fitting
    start = fit_exact(moments, problem.validation, problem.rank, choose_ridge=False)
    unembedding, rows = problem.unembedding.to(problem.device), problem.rows()
    choices = {"gates": gates, "fit_gates": problem.gate != "fixed"}
    choices |= {"progress": problem.title, "checkpoint": problem.checkpoint}
    found = fit_kl(*rows, start.map, unembedding, problem.target, problem.seed, **choices)
    jump, facts = found.map.jump(), {name: getattr(found, name) for name in ("best_step", "train_curve")}
    jump = with_gates(jump, found.gates) if gates else jump
    facts |= {"validation_curve": found.validation_curve, "converged": converged(found.validation_curve)}
    if not facts["converged"]:
        logger.warning("%s: the divergence was still falling after %d steps", problem.title, KL_STEPS)
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
    """Whether the last quarter of the steps, two points or more, lowered the divergence by less than KL_CONVERGED."""
    steps = len(validation_curve) - 1
    if steps < 8:
        return False
    before = min(validation_curve[: -(steps // 4)])
    return min(validation_curve) > (1 - KL_CONVERGED) * before


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
    full = FullModel.of(fitting.y, unembedding, target)
    held_out = validation, FullModel.of(validation.y, unembedding, target), *validation_rows(validation)
    parameters = divergence.parameters
    rates = [KL_LEARNING_RATE, KL_LEARNING_RATE, KL_LEARNING_RATE_B / len(start.c), KL_LEARNING_RATE_GATES]
    optimiser = Adam(
        [{"params": [parameter], "lr": rate} for parameter, rate in zip(parameters, rates, strict=False)],
        betas=(0.9, KL_BETA2),
        fused=fitting.y.device.type in ("cpu", "cuda"),
    )
    generator = torch.Generator().manual_seed(seed)
    state = {name: [part.detach().clone() for part in parameters] for name in ("average", "best")}
    curves = {"train_curve": [], "validation_curve": [divergence(parameters, *held_out)]}
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        for parameter, value in zip(parameters, saved["parameters"], strict=True):
            parameter.data.copy_(value)
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        state, curves = ({name: saved[name] for name in names} for names in (state, curves))
    train_curve, validation_curve = curves.values()
    stretches = steps // KL_VALIDATE_EVERY
    bar = progress_bar(None, progress, f"{KL_VALIDATE_EVERY} steps", stretches, len(train_curve))
    while len(train_curve) < stretches and not converged(validation_curve):
        total, first = 0.0, len(train_curve) * KL_VALIDATE_EVERY
        batches = itertools.islice(_batches(fitting, generator), KL_VALIDATE_EVERY)
        for step, (levels, sentences) in enumerate(batches, first + 1):
            total += divergence.gradients(fitting, full, levels, sentences)
            for group, rate in zip(optimiser.param_groups, rates, strict=False):
                group["lr"] = rate * min(1.0, step / KL_WARM_UP, math.sqrt(KL_FALL_AFTER / step))
            optimiser.step()
            for average, parameter in zip(state["average"], parameters, strict=True):
                average.lerp_(parameter.detach(), KL_AVERAGE / (KL_AVERAGE + step))
        train_curve.append(total / KL_VALIDATE_EVERY)
        validation_curve.append(divergence(state["average"], *held_out))
        bar.set_postfix_str(f"KL {validation_curve[-1]:.3f}", refresh=False)
        bar.update()
        if not math.isfinite(validation_curve[-1]):
            raise OnejumpError(
                f"KL fit: the divergence is {validation_curve[-1]} after step {first + KL_VALIDATE_EVERY}; "
                "look for extreme activations, or use fit: exact"
            )
        if validation_curve[-1] == min(validation_curve):
            state["best"] = [part.clone() for part in state["average"]]
        if checkpoint is not None and checkpoint.due:
            now = [part.detach() for part in parameters]
            more = {"parameters": now, "optimiser": optimiser.state_dict(), "generator": generator.get_state()}
            checkpoint.save(state | curves | more)
    bar.close()
    best_step = validation_curve.index(min(validation_curve)) * KL_VALIDATE_EVERY
    return KlFit(*divergence.result(state["best"]), best_step, train_curve, validation_curve)
