"""The fit `kl`: Adam on the KL divergence of the exit's prediction from the full model's, starting at the optimum.

The divergence is the objective of the tuned lens (Belrose et al. 2023); the start is the exact optimum of Eq. 2 (OJFA),
for a gated jump that of its first gates.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onejump.files.checkpoints import Checkpoint
from onejump.jumps.descent import Descent, Sample, descend
from onejump.jumps.divergence import FullModel
from onejump.jumps.exact import AffineMap, fit_exact
from onejump.jumps.gates import GateMoments, first_gates, with_gates
from onejump.jumps.jump import Jump
from onejump.jumps.jump_divergence import JumpDivergence
from onejump.jumps.objective import Problem, Rows
from onejump.jumps.settings import (
    KL_LEARNING_RATE,
    KL_LEARNING_RATE_B,
    KL_LEARNING_RATE_GATES,
    KL_LEARNING_RATE_SCALES,
    KL_STEPS,
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
    choices = {"gates": gates, "fit_gates": problem.gate != "fixed", "fit_scales": problem.scales != "none"}
    choices |= {"progress": problem.title, "checkpoint": problem.checkpoint}
    found = fit_kl(*rows, start.map, unembedding, problem.target, problem.seed, **choices)
    jump, facts = found.map.jump(), found.descent.facts()
    jump = with_gates(jump, found.gates) if gates else jump
    if found.scales is not None:
        jump.scales = torch.nn.Parameter(found.scales.float())
    if not facts["converged"]:
        logger.warning("%s: the divergence was still falling after %d steps", problem.title, KL_STEPS)
    folded = jump.fold().to(problem.device)
    errors = (part.mse(folded, unembedding) for part in rows)
    facts |= dict(zip(("train_mse", "validation_mse"), errors, strict=True))
    # The start's optimum is that of its gates, which the fit has moved, and knows no scales.
    comparable = not gates and found.scales is None
    facts |= {"optimum_mse": start.optimum_mse if comparable else None}
    facts |= {"mean_mse": float(problem.fitting.yy / problem.fitting.n)}
    return jump, facts


@dataclass(frozen=True)
class KlFit:
    """A fitted map, at the step with the lowest validation divergence, and the fit's course."""

    map: AffineMap
    gates: list[float]  # as in `Jump`
    scales: Tensor | None  # [K, r] float64, of a scaled jump
    descent: Descent


def fit_kl(
    fitting: Rows,
    validation: Rows,
    start: AffineMap,
    unembedding: Unembedding,
    target: str,
    seed: int,
    gates: Sequence[float] = (),
    fit_gates: bool = True,
    fit_scales: bool = False,
    steps: int = KL_STEPS,
    progress: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> KlFit:
    """Fit by the divergence, and keep the map with the lowest one on the validation slice.

    The unembedding is on the rows' device; the seed is that of the batches; gates, as in `Jump`, are where they start,
    or, without `fit_gates`, stay; scales, if they are fitted, start at 1. An interrupted fit resumes at its checkpoint,
    with the same result.

    Raises:
        OnejumpError: the divergence became NaN or infinite.
    """
    fit_gates = fit_gates and len(gates) > 0
    divergence = JumpDivergence(start, gates, fit_gates, fit_scales, fitting, unembedding, target)
    rates = [KL_LEARNING_RATE, KL_LEARNING_RATE, KL_LEARNING_RATE_B / len(start.c)]
    rates += [KL_LEARNING_RATE_GATES] * fit_gates + [KL_LEARNING_RATE_SCALES] * fit_scales
    samples = (Sample(rows, FullModel.of(rows.y, unembedding, target)) for rows in (fitting, validation))
    found = descend(divergence, rates, *samples, seed, steps, progress, checkpoint)
    return KlFit(*divergence.result(found.parameters), found)
