"""The fit `kl`: Adam on the KL divergence of the exit's prediction from the full model's, starting at the optimum.

The divergence is the objective of the tuned lens (Belrose et al. 2023); the start is the exact optimum of Eq. 2 (OJFA).
The unembedding is fused, so that a step never forms an H-wide prediction; the largest arrays in memory are the logits
of a batch.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.files.progress import progress_bar
from onejump.jumps.adam import one_cycle_adam
from onejump.jumps.exact import AffineMap, fit_exact
from onejump.jumps.gates import first_gates, gated_moments, with_gates
from onejump.jumps.jump import Jump
from onejump.jumps.objective import Problem, Rows
from onejump.jumps.settings import KL_BATCH_LEVELS, KL_BATCH_ROWS, KL_LEARNING_RATE, KL_STEPS, KL_VALIDATE_EVERY
from onejump.models.fused import FusedUnembedding, fuse
from onejump.models.unembedding import Unembedding


def fit(problem: Problem) -> tuple[Jump, dict]:
    """The jump, and what its file says of the fit.

    Raises:
        OnejumpError: the divergence became NaN or infinite, or as `AffineMap.jump`.
    """
    gates = first_gates(problem) if problem.gated else []
    moments = gated_moments(problem, gates) if gates else (problem.fitting, problem.validation)
    start = fit_exact(*moments, problem.rank, choose_ridge=False)
    unembedding = problem.unembedding.to(problem.device)
    choices = {"gates": gates, "progress": problem.title, "checkpoint": problem.checkpoint}
    found = fit_kl(*problem.rows(), start.map, unembedding, problem.target, problem.seed, **choices)
    jump, facts = found.map.jump(), {name: getattr(found, name) for name in ("best_step", "train_curve")}
    facts |= {"validation_curve": found.validation_curve, "optimum_mse": start.optimum_mse}
    facts |= {"curve_steps": [i * KL_VALIDATE_EVERY for i in range(len(found.validation_curve))]}
    facts["mean_mse"] = float(problem.fitting.yy / problem.fitting.n)
    return with_gates(jump, found.gates) if gates else jump, facts


@dataclass(frozen=True)
class KlFit:
    """A fitted map, at the step with the lowest validation divergence, and the fit's course, in nats."""

    map: AffineMap
    gates: list[float]  # one for each level of the rows, or none
    best_step: int  # 0 is the start
    train_curve: list[float]  # mean divergence of the batches between two validations
    validation_curve: list[float]  # on the validation slice, at the start and every KL_VALIDATE_EVERY steps


class _Objective:
    """KL(full || exit) of a map as a function of parameters of similar size, with gradients.

    The coordinates z of a typical row are about 1, and B scales them to the size of a typical target: one learning rate
    then suits every model. Typical is the median, since a few massive activations would dominate a mean.

    Attributes:
        parameters: W [H, r], c [r], B [r, H], and, if there are gates, these [L], float32, in this order.
    """

    def __init__(
        self, start: AffineMap, gates: Sequence[float], rows: Rows, unembedding: Unembedding, target: str
    ) -> None:
        """The objective at a start, scaled by what is typical of the rows."""
        self.unembedding, self.target, self._start = unembedding, target, start
        W, c, B, self._mean_x, self._std_x = (
            part.to(rows.y.device, torch.float32) for part in (start.W, start.c, start.V.T, start.mean_x, start.std_x)
        )
        z = torch.cat([self._coordinates(x, W, c) for x in rows.x])
        spread = z.abs().median(0).values.clamp_min(1e-30)
        self._scale = float(rows.y.square().mean(1).sqrt().median().clamp_min(1e-30))
        scaled = [W / spread, c / spread, B * (spread / self._scale)[:, None]]
        scaled += [torch.tensor(gates).to(B.device)] if gates else []
        self.parameters = [part.requires_grad_() for part in scaled]

    def result(self, parameters: Sequence[Tensor]) -> tuple[AffineMap, list[float]]:
        """Values of the parameters as a map, in float64, and its gates."""
        W, c, B, *gates = (parameter.detach().to(self._start.W) for parameter in parameters)
        return replace(self._start, W=W, c=c, V=(B * self._scale).T), gates[0].tolist() if gates else []

    def _coordinates(self, x: Tensor, W: Tensor, c: Tensor) -> Tensor:
        return (x - self._mean_x) / self._std_x @ W + c

    def divergence(self, rows: Rows, levels: Tensor, sentences: Tensor, backward: bool) -> float:
        """Mean divergence of some sentences at some levels, in nats; `backward` sets the gradients."""
        (W, c, B, *gates), y = self.parameters, rows.y[sentences]
        x = [rows.x[level, sentences] for level in levels.tolist()]
        with torch.set_grad_enabled(backward):
            fused = fuse(self.unembedding, [B * self._scale], self.target)[0]
            normed = [fused.normalise(self._coordinates(part, W, c)) for part in x]
        with torch.no_grad():
            logits = self.unembedding.project(y) if self.target == "post_norm" else self.unembedding.logits(y)
            full = torch.softmax(logits, 1)
            entropy = float(cross_entropy(logits, full, reduction="sum"))
            own = self.unembedding.linear(self.unembedding.normalise(torch.stack(x))) if gates else [None] * len(x)
        # Level by level, gradients are propagated to what is small; from there once, for all levels together.
        leaves = [part.detach().requires_grad_(backward) for part in (*normed, fused.M, *gates)]
        M, *leaf_gates = leaves[len(normed) :]
        exit_head, total = FusedUnembedding(M, fused.gram, fused.constant, self.unembedding), 0.0
        for leaf, one, level in zip(leaves, own, levels.tolist(), strict=False):
            passed = leaf_gates[0][level] * one if gates else None
            loss = cross_entropy(exit_head.project(leaf, passed), full, reduction="sum")
            total += float(loss.detach()) - entropy
            if backward:
                loss.backward()
        if backward:
            for parameter in self.parameters:
                parameter.grad = None
            torch.autograd.backward([*normed, fused.M, *gates], [leaf.grad for leaf in leaves])
            for parameter in self.parameters:
                parameter.grad /= len(x) * len(y)
        return total / (len(x) * len(y))

    def validate(self, rows: Rows) -> float:
        """The mean divergence over all sentences, each at KL_BATCH_LEVELS of the levels, the same ones every time."""
        n_levels, n, _ = rows.x.shape
        n_groups, total, count = math.ceil(n_levels / KL_BATCH_LEVELS), 0.0, 0
        for group in range(min(n_groups, n)):
            levels = torch.arange(n_levels)[group::n_groups]
            for sentences in torch.arange(n, device=rows.y.device)[group::n_groups].split(KL_BATCH_ROWS):
                size = len(levels) * len(sentences)
                total += self.divergence(rows, levels, sentences, backward=False) * size
                count += size
        return total / count


def _batches(rows: Rows, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of levels and of sentences, which are at all these levels and share the full model's logits."""
    n_levels, n, _ = rows.x.shape
    at_once = min(KL_BATCH_LEVELS, n_levels)
    size = min(KL_BATCH_ROWS // at_once, n)
    while True:
        for part in torch.randperm(n, generator=generator)[: n // size * size].view(-1, size).to(rows.y.device):
            yield torch.randperm(n_levels, generator=generator)[:at_once], part


def fit_kl(
    fitting: Rows,
    validation: Rows,
    start: AffineMap,
    unembedding: Unembedding,
    target: str,
    seed: int,
    gates: Sequence[float] = (),
    steps: int = KL_STEPS,
    progress: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> KlFit:
    """Fit by the divergence, and keep the map with the lowest one on the validation slice.

    The unembedding is on the rows' device; the seed is that of the batches; gates are where they start, one for each of
    the rows' levels. An interrupted fit resumes at its checkpoint, with the same result.

    Raises:
        OnejumpError: the divergence became NaN or infinite.
    """
    objective = _Objective(start, gates, fitting, unembedding, target)
    optimiser, schedule = one_cycle_adam(objective.parameters, KL_LEARNING_RATE, steps)
    generator = torch.Generator().manual_seed(seed)
    best = [part.detach().clone() for part in objective.parameters]
    curves = {"train_curve": [], "validation_curve": [objective.validate(validation)]}
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        with torch.no_grad():
            for parameter, value in zip(objective.parameters, saved["parameters"], strict=True):
                parameter.copy_(value)
        for name, part in (("optimiser", optimiser), ("schedule", schedule)):
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        best, curves = saved["best"], {name: saved[name] for name in curves}
    train_curve, validation_curve = curves.values()
    done, stretches = len(train_curve), steps // KL_VALIDATE_EVERY
    for _ in progress_bar(range(done, stretches), progress, f"{KL_VALIDATE_EVERY} steps", stretches, done):
        total = 0.0
        for levels, sentences in itertools.islice(_batches(fitting, generator), KL_VALIDATE_EVERY):
            total += objective.divergence(fitting, levels, sentences, backward=True)
            optimiser.step()
            schedule.step()
        train_curve.append(total / KL_VALIDATE_EVERY)
        validation_curve.append(objective.validate(validation))
        if not math.isfinite(validation_curve[-1]):
            raise OnejumpError(
                f"KL fit: the divergence is {validation_curve[-1]} after step {len(train_curve) * KL_VALIDATE_EVERY}; "
                "look for extreme activations, or use fit: exact"
            )
        if validation_curve[-1] == min(validation_curve):
            best = [part.detach().clone() for part in objective.parameters]
        if checkpoint is not None and checkpoint.due:
            states = {"optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(), "best": best}
            now = [part.detach() for part in objective.parameters]
            checkpoint.save(states | curves | {"parameters": now, "generator": generator.get_state()})
    best_step = validation_curve.index(min(validation_curve)) * KL_VALIDATE_EVERY
    return KlFit(*objective.result(best), best_step, train_curve, validation_curve)
