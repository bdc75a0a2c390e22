"""Second moments of inputs and targets: all that the exact fit needs of the training rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onejump.activations import Activations
from onejump.fitting.settings import VALIDATION_SHARE
from onejump.jumps import FoldedJump, target_of
from onejump.models import Head


def validation_start(n_rows: int) -> int:
    """First row of the validation slice: the last tenth of the training rows, which stand in random order."""
    return n_rows - max(1, int(n_rows * VALIDATION_SHARE))


@dataclass
class Moments:
    """Moments of n rows, centred so that a large mean costs no digits, in float64.

    Attributes:
        n: number of rows.
        mean_x, mean_y: [H].
        xx: [H, H], sum of (x - mean_x)(x - mean_x)'.
        xy: [H, H], sum of (x - mean_x)(y - mean_y)'.
        yy: sum of |y - mean_y|^2.
    """

    n: int
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Moments":
        """Moments of rows x [n, H] and y [n, H], any float dtype."""
        x, y = x.double(), y.double()
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        return cls(len(x), mean_x, mean_y, x.T @ x, x.T @ y, y.square().sum())

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets of rows (Chan, Golub and LeVeque 1979); exact, so levels and shards pool."""
        n = self.n + other.n
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        weight = self.n * other.n / n
        return Moments(
            n,
            self.mean_x + dx * (other.n / n),
            self.mean_y + dy * (other.n / n),
            self.xx + other.xx + weight * torch.outer(dx, dx),
            self.xy + other.xy + weight * torch.outer(dx, dy),
            self.yy + other.yy + weight * dy.dot(dy),
        )

    def mse(self, jump: FoldedJump) -> float:
        """Squared error of any jump on the rows, summed over H and averaged (OJFA, Eq. 2)."""
        P, q, B = (part.to(self.xx) for part in (jump.P, jump.q, jump.B))
        mean_z = self.mean_x @ P + q
        zz = P.T @ self.xx @ P / self.n + torch.outer(mean_z, mean_z)
        zy = P.T @ self.xy / self.n + torch.outer(mean_z, self.mean_y)
        yy = self.yy / self.n + self.mean_y.dot(self.mean_y)
        return float(yy - 2 * (zy * B).sum() + (zz * (B @ B.T)).sum())


def level_moments(
    activations: Activations,
    level: int,
    head: Head,
    target: str,
    device: torch.device,
    root: Tensor | None = None,
) -> tuple[Moments, Moments]:
    """Moments of one level's fitting rows and of its validation slice, one shard at a time.

    Args:
        activations: of the train split.
        level: of the inputs.
        head: of the model.
        target: `pre_norm` or `post_norm`.
        device: where to compute.
        root: [H, H] float64, what targets are multiplied by: a root of the metric that errors are weighed by.

    Raises:
        OnejumpError: as `Activations.shards`.
    """
    device = torch.device("cpu") if device.type == "mps" else device  # Apple MPS has no float64
    boundary, first = validation_start(len(activations)), 0
    sums: list[Moments | None] = [None, None]  # of the fitting rows and of the validation slice, shards added up
    for x, final in activations.shards(level, activations.n_blocks):
        y = target_of(final, head, target).to(device)
        y = y if root is None else y.double() @ root
        x = x.to(device)
        cut = min(max(boundary - first, 0), len(x))
        for part, rows in enumerate((slice(None, cut), slice(cut, None))):
            if len(x[rows]):
                more = Moments.of(x[rows], y[rows])
                sums[part] = more if sums[part] is None else sums[part] + more
        first += len(x)
    return sums[0], sums[1]
