"""What a fit minimises: by the paper, the squared error of Eq. 2 (OJFA); and the rows and choices it is given.

Eq. 2 is `|h^K - BatchNorm_m(h^m) A_m B_m|^2`, summed over H and averaged over the training rows; for the joint jump,
over those of all exit levels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from onejump.activations.reading import Activations
from onejump.files.checkpoints import Checkpoint
from onejump.jumps.inputs import JumpInputs
from onejump.jumps.jump import FoldedJump, target_of
from onejump.jumps.moments import Moments, validation_start
from onejump.models.unembedding import Unembedding


@dataclass(frozen=True)
class Rows:
    """Inputs and targets of L levels, on the device that fits."""

    x: Tensor  # [L, n, H] float32, what the jump sees
    y: Tensor  # [n, H] float32, the same for every level
    states: Tensor | None = None  # [L, n, H] float32, what gates let through, where there are any

    def batches(self, batch_size: int, per_level: bool, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, without the last incomplete batch: inputs and targets, each [rows, H].

        With `per_level`, a batch holds `batch_size` rows of one level; otherwise it mixes all levels and holds as many
        for each of them, so that the joint fit takes as many steps an epoch as a single one.
        """
        n_levels, n, hidden_size = self.x.shape
        batch_size = min(batch_size, n)
        if per_level:
            orders = torch.stack([torch.randperm(n, generator=generator) + level * n for level in range(n_levels)])
            parts = orders[:, : n // batch_size * batch_size].reshape(-1, batch_size)
            parts = parts[torch.randperm(len(parts), generator=generator)]
        else:
            order, rows = torch.randperm(n_levels * n, generator=generator), batch_size * n_levels
            parts = order[: len(order) // rows * rows].reshape(-1, rows)
        for part in parts.to(self.y.device):
            yield self.x.view(-1, hidden_size).index_select(0, part), self.y.index_select(0, part % n)

    @torch.no_grad()
    def mse(self, jump: FoldedJump, unembedding: Unembedding | None = None) -> float:
        """Eq. 2's error of a jump in evaluation mode, averaged over levels; one with gates needs the unembedding."""
        total = 0.0
        for level, x in enumerate(self.x):
            predicted = jump(x, level) @ jump.B
            if jump.gates:
                predicted += jump.gate(level) * unembedding.normalise(self.states[level])
            total += float(mse_loss(predicted, self.y, reduction="sum"))
        return total / (len(self.x) * len(self.y))


@dataclass(frozen=True)
class Problem:
    """What a fit is given."""

    activations: Activations  # of the train split
    levels: list[int]  # of the inputs: one exit level, or all of them for the joint jump
    unembedding: Unembedding
    target: str  # `pre_norm` or `post_norm`
    rank: int
    inputs: JumpInputs  # what the jump sees; gates see the activations
    fitting: Moments  # of what the jump sees
    validation: Moments  # of the validation slice, which chooses epoch, step or ridge
    gate: str  # `none`, or which numbers let the hidden state through (`post_norm` only), see `first_gates`
    scales: str  # `none`, or `level` for numbers that scale the joint jump's coordinates at each level
    per_level: bool  # whether a batch holds rows of one level, or of all
    seed: int  # of all random choices; no two jumps share it
    device: torch.device
    title: str  # of the progress bar
    checkpoint: Checkpoint | None  # where a long fit saves its state, and resumes

    def rows(self) -> tuple[Rows, Rows]:
        """The rows to fit and the validation slice, for fits that need more than their moments."""
        final = self.activations.level(self.activations.n_blocks)
        y = target_of(final, self.unembedding, self.target).to(self.device)
        cut = validation_start(len(self.activations))

        def parts(levels_of: Activations | JumpInputs) -> tuple[Tensor, Tensor]:
            slices = (slice(cut), slice(cut, None))
            # Filled level by level: the joint fit has no room for all levels twice.
            shapes = [(len(self.levels), *final[rows].shape) for rows in slices]
            x = tuple(torch.empty(shape, device=self.device) for shape in shapes)
            for place, level in enumerate(self.levels):
                h = levels_of.level(level)
                for part, rows in zip(x, slices, strict=True):
                    part[place] = h[rows]
            return x

        x = parts(self.inputs)
        states = (None, None) if self.gate == "none" else x if self.inputs.kind == "states" else parts(self.activations)
        return Rows(x[0], y[:cut], states[0]), Rows(x[1], y[cut:], states[1])


def gap(mse: float, optimum_mse: float | None, mean_mse: float) -> float | None:
    """Distance of an error on the fitting rows to the optimum: 0 at the optimum, 1 for predicting mean(Y).

    None where the optimum is not known, or not below the error of mean(Y), as gates that stay at 1 may have it.
    """
    if optimum_mse is None or optimum_mse >= mean_mse:
        return None
    return (mse - optimum_mse) / (mean_mse - optimum_mse)
