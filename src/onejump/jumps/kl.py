"""The fit `kl`: Adam on the KL divergence of the exit's prediction from the full model's, starting at the optimum.

The divergence is the objective of the tuned lens (Belrose et al. 2023); the start is the exact optimum of Eq. 2 (OJFA).
The unembedding is fused, so that a step never forms an H-wide prediction; the largest array in memory is the logits of
one level.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onejump.files.atomic import OnejumpError
from onejump.files.progress import progress_bar
from onejump.jumps.adam import one_cycle_adam
from onejump.jumps.exact import AffineMap, fit_exact
from onejump.jumps.jump import Jump
from onejump.jumps.objective import Problem, Rows
from onejump.jumps.settings import KL_BATCH_SIZE, KL_LEARNING_RATE, KL_STEPS, KL_VALIDATE_EVERY
from onejump.models.fused import FusedUnembedding, fuse
from onejump.models.unembedding import Unembedding


def fit(problem: Problem) -> tuple[Jump, dict]:
    """The jump, and what its file says of the fit.

    Raises:
        OnejumpError: the divergence became NaN or infinite, or as `AffineMap.jump`.
    """
    start = fit_exact(problem.fitting, problem.validation, problem.rank, choose_ridge=False)
    unembedding = problem.unembedding.to(problem.device)
    rows, title = problem.rows(), problem.title
    facts = dict(vars(fit_kl(*rows, start.map, unembedding, problem.target, problem.seed, progress=title)))
    curve_steps = [i * KL_VALIDATE_EVERY for i in range(len(facts["validation_curve"]))]
    measured = {"optimum_mse": start.optimum_mse, "mean_mse": start.mean_mse}
    return facts.pop("map").jump(), facts | measured | {"curve_steps": curve_steps}


@dataclass(frozen=True)
class KlFit:
    """A fitted map, at the step with the lowest validation divergence, and the fit's course, in nats."""

    map: AffineMap
    best_step: int  # 0 is the start
    train_curve: list[float]  # mean divergence of the batches between two validations
    validation_curve: list[float]  # on the validation slice, at the start and every KL_VALIDATE_EVERY steps


class _Objective:
    """KL(full || exit) of a map as a function of parameters of similar size, with gradients.

    The coordinates z of a typical row are about 1, and B scales them to the size of a typical target: one learning rate
    then suits every model. Typical is the median, since a few massive activations would dominate a mean.

    Attributes:
        parameters: W [H, r], c [r], B [r, H], float32, in this order.
    """

    def __init__(self, start: AffineMap, rows: Rows, unembedding: Unembedding, target: str) -> None:
        """The objective at a start, scaled by what is typical of the rows."""
        self.unembedding, self.target, self._start = unembedding, target, start
        W, c, B, self._mean_x, self._std_x = (
            part.to(rows.y.device, torch.float32) for part in (start.W, start.c, start.V.T, start.mean_x, start.std_x)
        )
        z = torch.cat([self._coordinates(x, W, c) for x in rows.x])
        spread = z.abs().median(0).values.clamp_min(1e-30)
        self._scale = float(rows.y.square().mean(1).sqrt().median().clamp_min(1e-30))
        scaled = (W / spread, c / spread, B * (spread / self._scale)[:, None])
        self.parameters = [part.requires_grad_() for part in scaled]

    def map(self) -> AffineMap:
        """The parameters as they are now, as a map in float64."""
        W, c, B = (parameter.detach().to(self._start.W) for parameter in self.parameters)
        return replace(self._start, W=W, c=c, V=(B * self._scale).T)

    def _coordinates(self, x: Tensor, W: Tensor, c: Tensor) -> Tensor:
        return (x - self._mean_x) / self._std_x @ W + c

    def divergence(self, x: Tensor, y: Tensor, backward: bool) -> float:
        """Mean divergence over inputs x [L, n, H], with targets y [n, H], in nats; `backward` sets the gradients."""
        W, c, B = self.parameters
        with torch.set_grad_enabled(backward):
            fused = fuse(self.unembedding, [B * self._scale], self.target)[0]
            normed = [fused.normalise(self._coordinates(level, W, c)) for level in x]
        with torch.no_grad():
            logits = self.unembedding.project(y) if self.target == "post_norm" else self.unembedding.logits(y)
            full = torch.softmax(logits, 1)
            entropy = float(cross_entropy(logits, full, reduction="sum"))
        # Level by level, gradients are propagated to what is small; from there once, for all levels together.
        leaves = [part.detach().requires_grad_(backward) for part in normed]
        M = fused.M.detach().requires_grad_(backward)
        exit_head, total = FusedUnembedding(M, fused.gram, fused.constant, self.unembedding), 0.0
        for leaf in leaves:
            loss = cross_entropy(exit_head.project(leaf), full, reduction="sum")
            total += float(loss.detach()) - entropy
            if backward:
                loss.backward()
        if backward:
            for parameter in self.parameters:
                parameter.grad = None
            torch.autograd.backward([*normed, fused.M], [*(leaf.grad for leaf in leaves), M.grad])
            for parameter in self.parameters:
                parameter.grad /= len(x) * len(y)
        return total / (len(x) * len(y))

    def mean(self, rows: Rows) -> float:
        """The mean divergence over all rows, a batch at a time."""
        parts = [slice(first, first + KL_BATCH_SIZE) for first in range(0, len(rows.y), KL_BATCH_SIZE)]
        sums = [self.divergence(rows.x[:, part], rows.y[part], backward=False) * len(rows.y[part]) for part in parts]
        return sum(sums) / len(rows.y)


def _batches(rows: Rows, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of sentences, each at all levels, which share the full model's logits."""
    n, size = len(rows.y), min(KL_BATCH_SIZE, len(rows.y))
    while True:
        for part in torch.randperm(n, generator=generator)[: n // size * size].view(-1, size).to(rows.y.device):
            yield rows.x[:, part], rows.y[part]


def fit_kl(
    fitting: Rows,
    validation: Rows,
    start: AffineMap,
    unembedding: Unembedding,
    target: str,
    seed: int,
    steps: int = KL_STEPS,
    progress: str | None = None,
) -> KlFit:
    """Fit by the divergence, and keep the map with the lowest one on the validation slice.

    The unembedding is on the rows' device; the seed is that of the order of batches.

    Raises:
        OnejumpError: the divergence became NaN or infinite.
    """
    objective = _Objective(start, fitting, unembedding, target)
    optimiser, schedule = one_cycle_adam(objective.parameters, KL_LEARNING_RATE, steps)
    best, stretch, train_curve, validation_curve = start, 0.0, [], [objective.mean(validation)]
    batches = _batches(fitting, torch.Generator().manual_seed(seed))
    for step in progress_bar(range(1, steps + 1), progress, "step"):
        stretch += objective.divergence(*next(batches), backward=True) / KL_VALIDATE_EVERY
        optimiser.step()
        schedule.step()
        if step % KL_VALIDATE_EVERY:
            continue
        train_curve.append(stretch)
        validation_curve.append(objective.mean(validation))
        stretch = 0.0
        if not math.isfinite(validation_curve[-1]):
            raise OnejumpError(
                f"KL fit: the divergence is {validation_curve[-1]} after step {step}; "
                "look for extreme activations, or use fit: exact"
            )
        if validation_curve[-1] == min(validation_curve):
            best = objective.map()
    best_step = validation_curve.index(min(validation_curve)) * KL_VALIDATE_EVERY
    return KlFit(best, best_step, train_curve, validation_curve)
