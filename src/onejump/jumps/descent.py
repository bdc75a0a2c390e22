"""Adam on a divergence until it comes to a plateau: the descent that KL jumps and KL lenses share."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam

from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint, CheckpointPart
from onejump.files.progress import progress_bar
from onejump.jumps.divergence import Divergence, FullModel
from onejump.jumps.objective import Rows
from onejump.jumps.settings import (
    KL_AVERAGE,
    KL_BATCH_ROWS,
    KL_BETA2,
    KL_CONVERGED,
    KL_FALL_AFTER,
    KL_STEPS,
    KL_VALIDATE_EVERY,
    KL_VALIDATION_LEVELS,
    KL_WARM_UP,
)


@dataclass(frozen=True)
class Sample:
    """Rows, and what the divergence needs of the full model's distributions of their sentences."""

    rows: Rows
    full: FullModel


@dataclass(frozen=True)
class Descent:
    """A descent's course, in nats, and the parameters at the step with the lowest validation divergence."""

    parameters: list[Tensor]
    best_step: int  # 0 is the start
    train_curve: list[float]  # mean divergence of the batches between two validations
    validation_curve: list[float]  # on the validation slice, at the start and every KL_VALIDATE_EVERY steps

    def facts(self) -> dict:
        """What the file of a fit says of it."""
        facts = {name: getattr(self, name) for name in ("best_step", "train_curve", "validation_curve")}
        facts["converged"] = converged(self.validation_curve)
        return facts | {"curve_steps": [i * KL_VALIDATE_EVERY for i in range(len(self.validation_curve))]}


def converged(validation_curve: Sequence[float]) -> bool:
    """Whether the last quarter of the steps, two points or more, lowered the divergence by less than KL_CONVERGED."""
    steps = len(validation_curve) - 1
    if steps < 8:
        return False
    before = min(validation_curve[: -(steps // 4)])
    return min(validation_curve) > (1 - KL_CONVERGED) * before


def batch_rows(n_levels: int, n: int) -> int:
    """Sentences of each level in a batch, of n."""
    return min(max(KL_BATCH_ROWS // n_levels, 1), n)


def _batches(rows: Rows, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of rows, as levels and sentences, [b] each: of all levels as many, each level in an own order."""
    n_levels, n, _ = rows.x.shape
    size = batch_rows(n_levels, n)
    levels = torch.arange(n_levels, device=rows.y.device).repeat_interleave(size)
    while True:
        orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(n_levels)]).to(rows.y.device)
        for part in orders[:, : n // size * size].split(size, 1):
            yield levels, part.flatten()


def validation_rows(rows: Rows) -> tuple[Tensor, Tensor]:
    """All sentences, each at KL_VALIDATION_LEVELS of the levels, the same ones every time: levels and sentences.

    Which sentence is at which levels is drawn, since sentences may alternate between two kinds of text.
    """
    n_levels, n, _ = rows.x.shape
    n_groups = math.ceil(n_levels / KL_VALIDATION_LEVELS)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    groups = [
        torch.cartesian_prod(
            torch.arange(group, n_levels, n_groups),
            order[torch.arange(group, max(n, group + 1), n_groups) % n],  # again, where there are too few sentences
        )
        for group in range(n_groups)
    ]
    return torch.cat(groups).to(rows.y.device).unbind(1)


def descend(
    divergence: Divergence,
    rates: Sequence[float],
    fitting: Sample,
    validation: Sample,
    seed: int,
    steps: int = KL_STEPS,
    progress: str | None = None,
    checkpoint: Checkpoint | CheckpointPart | None = None,
) -> Descent:
    """Descend until the divergence on the validation slice is at its plateau, or for so many steps.

    `rates` are the learning rates of the divergence's parameters, in their order; the seed is that of the batches. An
    interrupted descent resumes at its checkpoint, with the same result.

    Raises:
        OnejumpError: the divergence became NaN or infinite.
    """
    parameters = divergence.parameters
    held_out = validation.rows, validation.full, *validation_rows(validation.rows)
    optimiser = Adam(
        [{"params": [parameter], "lr": rate} for parameter, rate in zip(parameters, rates, strict=True)],
        betas=(0.9, KL_BETA2),
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )
    generator = torch.Generator().manual_seed(seed)
    state = {name: [part.detach().clone() for part in parameters] for name in ("average", "best")}
    curves = {"train_curve": [], "validation_curve": [divergence(parameters, *held_out)]}
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        for parameter, value in zip(parameters, saved["parameters"], strict=True):
            parameter.data.copy_(value)
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        for name, parts in state.items():
            for part, value in zip(parts, saved[name], strict=True):
                part.copy_(value)
        curves = {name: saved[name] for name in curves}
    train_curve, validation_curve = curves.values()
    stretches = steps // KL_VALIDATE_EVERY
    bar = progress_bar(None, progress, f"{KL_VALIDATE_EVERY} steps", stretches, len(train_curve))
    while len(train_curve) < stretches and not converged(validation_curve):
        total, first = 0.0, len(train_curve) * KL_VALIDATE_EVERY
        batches = itertools.islice(_batches(fitting.rows, generator), KL_VALIDATE_EVERY)
        for step, (levels, sentences) in enumerate(batches, first + 1):
            total += divergence.gradients(fitting.rows, fitting.full, levels, sentences)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
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
                "look for extreme activations, or use a fit by squared error"
            )
        if validation_curve[-1] == min(validation_curve):
            state["best"] = [part.clone() for part in state["average"]]
        if checkpoint is not None and checkpoint.due:
            now = [part.detach() for part in parameters]
            more = {"parameters": now, "optimiser": optimiser.state_dict(), "generator": generator.get_state()}
            checkpoint.save(state | curves | more)
    bar.close()
    best_step = validation_curve.index(min(validation_curve)) * KL_VALIDATE_EVERY
    return Descent(state["best"], best_step, train_curve, validation_curve)
