"""The global optimum of the jump's objective (OJFA, Eq. 2) in closed form: reduced-rank regression.

In training the BatchNorm standardises its input to xn, so a jump predicts `xn M + m` where [M; m] has rank r. The best
such map is the reduced-rank regression of the uncentred target on [xn, 1] (Izenman 1975; Reinsel and Velu 1998). With
`C = Xn'Xn / N` and `S = Xn'(Y - mean Y) / N`, the fitted second moment is `G = S' C^-1 S + mean(Y) mean(Y)'`, its top r
eigenvectors V span the predictions, and the loss is `mean |y|^2` minus the sum of the r largest eigenvalues. Solutions
are nested in r. A ridge (C + lambda I for C) keeps the fit from following the noise where H / N is not small.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from onejump.artifacts import OnejumpError
from onejump.fitting.moments import Moments
from onejump.jumps import BATCH_NORM_EPS, Jump

logger = logging.getLogger(__name__)

# Ridges that are tried, in units of the standardised inputs' variance; the validation slice chooses.
RIDGES = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
# Below this ratio of the smallest to the largest pivot, squared, a Cholesky factor has lost its digits.
SINGULAR = 1e-12


@dataclass(frozen=True)
class AffineMap:
    """Predictions `(((x - mean_x) / std_x) W + c) V'`; cut to its first r columns it is the optimum of rank r.

    Attributes:
        W: [H, R]; c: [R]; V: [H, R] with orthonormal columns; mean_x, std_x: [H]. All float64.
    """

    W: Tensor
    c: Tensor
    V: Tensor
    mean_x: Tensor
    std_x: Tensor

    def mse_by_rank(self, rows: Moments) -> Tensor:
        """Squared error, summed over H and averaged over rows, for ranks 1..R: [R].

        V's columns are orthonormal, so each rank takes off `2 E[z_j (y.v_j)] - E[z_j^2]`, whatever the others do.
        """
        W = self.W / self.std_x[:, None]
        mean_z = (rows.mean_x - self.mean_x) @ W + self.c
        cross = (W * (rows.xy @ self.V)).sum(0) / rows.n + mean_z * (rows.mean_y @ self.V)
        square = (W * (rows.xx @ W)).sum(0) / rows.n + mean_z.square()
        total = rows.yy / rows.n + rows.mean_y.dot(rows.mean_y)
        return total - (2 * cross - square).cumsum(0)


class RidgeSolver:
    """Optimal affine maps of all ranks from the moments of the fitting rows, for one ridge after another."""

    def __init__(self, moments: Moments, eps: float = BATCH_NORM_EPS) -> None:
        self.moments = moments
        # As BatchNorm does: population variance, plus eps.
        self.std_x = (moments.xx.diagonal() / moments.n + eps).sqrt()
        self.C = moments.xx / moments.n / torch.outer(self.std_x, self.std_x)
        self.S = moments.xy / moments.n / self.std_x[:, None]

    def solve(self, ridge: float, rank: int) -> AffineMap:
        """The optimum for `ridge`, cut to `rank` columns."""
        half = self._inverse_half(ridge)  # T with T T' = (C + ridge I)^-1
        K = half.T @ self.S
        G = K.T @ K + torch.outer(self.moments.mean_y, self.moments.mean_y)
        if rank == len(G):
            V = torch.eye(rank, dtype=G.dtype, device=G.device)  # of full rank: any basis will do
        else:
            V = torch.linalg.eigh(G).eigenvectors[:, -rank:].flip(1)
            V = V * V.gather(0, V.abs().argmax(0, keepdim=True)).sign()  # an eigenvector's sign is arbitrary
        return AffineMap(half @ (K @ V), self.moments.mean_y @ V, V, self.moments.mean_x, self.std_x)

    def _inverse_half(self, ridge: float) -> Tensor:
        identity = torch.eye(len(self.C), dtype=self.C.dtype, device=self.C.device)
        L, failed = torch.linalg.cholesky_ex(self.C + ridge * identity)
        pivots = L.diagonal()
        if not failed and (pivots.min() / pivots.max()).square() > SINGULAR:
            return torch.linalg.solve_triangular(L, identity, upper=False).T
        # Fewer rows than dimensions, or inputs that repeat each other: invert only what the rows span.
        values, vectors = torch.linalg.eigh(self.C + ridge * identity)
        kept = values > SINGULAR * values.max()
        logger.info("ridge %g: covariance is singular, using %d of its %d eigenvalues", ridge, kept.sum(), len(kept))
        return vectors[:, kept] * values[kept].rsqrt()


@dataclass(frozen=True)
class ExactFit:
    """An exact fit and the errors that every fit of these rows is measured by.

    Attributes:
        map: affine map of the asked rank at the chosen ridge.
        ridge: chosen on the validation slice.
        train_mse, validation_mse: of the map.
        optimum_mse: the smallest error on the fitting rows that any jump of this rank can have (ridge 0).
        mean_mse: error on the fitting rows of predicting mean(Y).
    """

    map: AffineMap
    ridge: float
    train_mse: float
    validation_mse: float
    optimum_mse: float
    mean_mse: float

    def gap(self, train_mse: float) -> float:
        """Distance of an error on the fitting rows to the optimum: 0 at the optimum, 1 for predicting mean(Y)."""
        return (train_mse - self.optimum_mse) / (self.mean_mse - self.optimum_mse)

    def jump(self) -> Jump:
        """The map as a jump: B = V', A = W, BatchNorm weight 1, bias `beta` with `beta A = c`."""
        hidden_size, rank = self.map.W.shape
        jump = Jump(hidden_size, rank)
        beta = torch.linalg.lstsq(self.map.W.T.cpu(), self.map.c.cpu()[:, None], driver="gelsd").solution[:, 0]
        lost = float((self.map.W.T.cpu() @ beta - self.map.c.cpu()).norm() / self.map.c.norm().clamp_min(1e-30))
        if lost > 1e-6:
            raise OnejumpError(
                f"rank {rank} is more than the fitting rows span; use a lower rank or more training sentences"
            )
        with torch.no_grad():
            jump.A.copy_(self.map.W)
            jump.B.copy_(self.map.V.T)
            jump.bn.weight.fill_(1.0)
            jump.bn.bias.copy_(beta)
            jump.bn.running_mean.copy_(self.map.mean_x)
            jump.bn.running_var.copy_(self.map.std_x.square() - jump.bn.eps)
        return jump.eval()


def fit_exact(fit: Moments, validation: Moments, rank: int, choose_ridge: bool = True) -> ExactFit:
    """The exact optimum, at the ridge that is best on the validation slice.

    Args:
        fit: moments of the fitting rows.
        validation: moments of the validation slice.
        rank: columns of A; H gives the full-rank linear jump (JTC).
        choose_ridge: whether to try all RIDGES, or 0 alone.
    """
    solver = RidgeSolver(fit)
    maps = {ridge: solver.solve(ridge, rank) for ridge in (RIDGES if choose_ridge else (0.0,))}
    errors = {ridge: float(candidate.mse_by_rank(validation)[-1]) for ridge, candidate in maps.items()}
    ridge = min(errors, key=errors.get)
    return ExactFit(
        map=maps[ridge],
        ridge=ridge,
        train_mse=float(maps[ridge].mse_by_rank(fit)[-1]),
        validation_mse=errors[ridge],
        optimum_mse=float(maps[0.0].mse_by_rank(fit)[-1]),
        mean_mse=float(fit.yy / fit.n),
    )
