"""Second moments of inputs and targets: all that the exact fit needs of the training rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onejump.activations.reading import Activations
from onejump.files.atomic import OnejumpError
from onejump.jumps.jump import FoldedJump, target_of
from onejump.jumps.settings import VALIDATION_SHARE
from onejump.models.devices import float64_device
from onejump.models.unembedding import Unembedding


def validation_start(n_rows: int) -> int:
    """First row of the validation slice: the last tenth of the training rows, which are in random order."""
    return n_rows - max(1, int(n_rows * VALIDATION_SHARE))


def validation_slice(train: Activations) -> Activations:
    """The training rows that no fit has seen."""
    return train.rows(validation_start(len(train)), len(train))


@dataclass
class Moments:
    """Moments of n rows in float64, centred so that a large mean costs no precision."""

    n: int
    mean_x: Tensor  # [H]
    mean_y: Tensor  # [H]
    xx: Tensor  # [H, H], sum of (x - mean_x)(x - mean_x)'
    xy: Tensor  # [H, H], sum of (x - mean_x)(y - mean_y)'
    yy: Tensor  # sum of |y - mean_y|^2

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Moments":
        """Moments of rows x [n, H] and y [n, H], any float dtype."""
        moments = cls.of_none(x.shape[1], x.device)
        moments.add(x, y)
        return moments

    @classmethod
    def of_none(cls, H: int, device: torch.device) -> "Moments":
        """Moments of no rows, to add to."""
        shapes = ((H,), (H,), (H, H), (H, H), ())
        return cls(0, *(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add more rows, without a copy of anything H x H."""
        x, y = (rows.to(torch.float64, copy=True) for rows in (x, y))
        mean_x, mean_y = x.mean(0), y.mean(0)
        x.sub_(mean_x)
        y.sub_(mean_y)
        if x.any():  # a jump without inputs sees only zeros
            _add_gram(self.xx, x)
            self.xy.addmm_(x.T, y)
        self.yy += y.square().sum()
        self._add_means(len(x), mean_x, mean_y)

    def __iadd__(self, other: "Moments") -> "Moments":
        """Add the rows of other moments: levels pool exactly, as shards do."""
        self.xx += other.xx
        self.xy += other.xy
        self.yy += other.yy
        self._add_means(other.n, other.mean_x, other.mean_y)
        return self

    def _add_means(self, n: int, mean_x: Tensor, mean_y: Tensor) -> None:
        """From sums about the means of two sets of rows to sums about their common mean (Chan, Golub, LeVeque 1979)."""
        dx, dy, weight = mean_x - self.mean_x, mean_y - self.mean_y, self.n * n / (self.n + n)
        self.xx.addr_(dx, dx, alpha=weight)
        self.xy.addr_(dx, dy, alpha=weight)
        self.yy += weight * dy.dot(dy)
        self.n += n
        self.mean_x += dx * (n / self.n)
        self.mean_y += dy * (n / self.n)

    def mse(self, jump: FoldedJump) -> float:
        """Squared error of any jump on the rows (OJFA, Eq. 2), summed over H and averaged over rows."""
        P, q, B = (part.to(self.xx) for part in (jump.P, jump.q, jump.B))
        mean_z = self.mean_x @ P + q
        zz = P.T @ self.xx @ P / self.n + torch.outer(mean_z, mean_z)
        zy = P.T @ self.xy / self.n + torch.outer(mean_z, self.mean_y)
        yy = self.yy / self.n + self.mean_y.dot(self.mean_y)
        return float(yy - 2 * (zy * B).sum() + (zz * (B @ B.T)).sum())


def _add_gram(xx: Tensor, x: Tensor, n_blocks: int = 4) -> None:
    """Add x'x for x [n, H] to xx; blocks above the diagonal are copied, which saves three eighths of the products."""
    for block in torch.arange(len(xx)).chunk(n_blocks):
        first, last = int(block[0]), int(block[-1]) + 1
        xx[first:last, :last].addmm_(x[:, first:last].T, x[:, :last])
        xx[:first, first:last] = xx[first:last, :first].T


def level_moments(
    activations: Activations,
    levels: Sequence[int],
    unembedding: Unembedding,
    target: str,
    device: torch.device,
    root: Tensor | None = None,
) -> tuple[Moments, Moments]:
    """Pooled moments of the fitting rows of some levels, and of their validation slices, read a shard at a time.

    The activations may be what a jump sees of them (`JumpInputs`). Targets are multiplied by `root` [H, H] float64, if
    given: a root of the metric that weights errors.

    Raises:
        OnejumpError: there are too few rows to fit, or as `Activations.shards`.
    """
    if len(activations) < 3:
        raise OnejumpError(f"{len(activations)} training rows are too few to fit; use at least 3 training sentences")
    device = float64_device(device)
    boundary = validation_start(len(activations))
    fitting, validation = (Moments.of_none(activations.hidden_size, device) for _ in range(2))
    for level in levels:
        first = 0
        for x, final in activations.shards(level, activations.n_blocks):
            y = target_of(final.to(unembedding.weight.device), unembedding, target).to(device)
            x = x.to(device)
            y = y if root is None else y.double() @ root
            cut = min(max(boundary - first, 0), len(x))
            for moments, rows in ((fitting, slice(None, cut)), (validation, slice(cut, None))):
                if len(x[rows]):
                    moments.add(x[rows], y[rows])
            first += len(x)
    return fitting, validation
