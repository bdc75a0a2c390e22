"""The global optimum of the jump's objective (OJFA, Eq. 2) in closed form: reduced-rank regression.

In training the BatchNorm standardises its input to xn, so a jump predicts `xn M + m` where [M; m] has rank r. The best
such map is the reduced-rank regression of the uncentred target on [xn, 1] (Izenman 1975; Reinsel and Velu 1998). With
`C = Xn'Xn / N` and `S = Xn'(Y - mean Y) / N`, the fitted second moment is `G = S' C^-1 S + mean(Y) mean(Y)'`, its top r
eigenvectors V span the predictions, and the loss is `mean |y|^2` minus the sum of the r largest eigenvalues. Solutions
are nested in r. A ridge (C + lambda I for C) keeps the fit from following the noise where H / N is not small.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from onejump.files.atomic import OnejumpError
from onejump.jumps.jump import BATCH_NORM_EPS, Jump
from onejump.jumps.moments import Moments
from onejump.jumps.settings import OVERSAMPLING, RIDGES

logger = logging.getLogger(__name__)


# Below this ratio of the smallest to the largest pivot, squared, a Cholesky factor has lost its digits.
SINGULAR = 1e-12


# Widths up to which, on a CPU, one decomposition into eigenvalues takes less time than ten of Cholesky.
EIGEN_WIDTH = 1024


# Share of the loss that may still move when the search for the largest eigenvalues ends.
CONVERGED = 1e-8


@dataclass(frozen=True)
class AffineMap:
    """Predictions `(((x - mean_x) / std_x) W + c) V'`; Eq. 2's optimum, cut to its first r columns, is that of rank r.

    Attributes:
        W: [H, R]; c: [R]; V: [H, R], with orthonormal columns in Eq. 2's optimum; mean_x, std_x: [H]. All float64.
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

    def jump(self) -> Jump:
        """The map as a jump: B = V', A = W, BatchNorm weight 1, bias `beta` with `beta A = c`.

        Raises:
            OnejumpError: there is no such bias, since A has less than full rank.
        """
        hidden_size, rank = self.W.shape
        jump = Jump(hidden_size, rank)
        beta = torch.linalg.lstsq(self.W.T.cpu(), self.c.cpu()[:, None], driver="gelsd").solution[:, 0]
        lost = float((self.W.T.cpu() @ beta - self.c.cpu()).norm() / self.c.norm().clamp_min(1e-30))
        if lost > 1e-6:
            raise OnejumpError(
                f"rank {rank} is more than the fitting rows span; use a lower rank or more training sentences"
            )
        with torch.no_grad():
            jump.A.copy_(self.W)
            jump.B.copy_(self.V.T)
            jump.bn.weight.fill_(1.0)
            jump.bn.bias.copy_(beta)
            jump.bn.running_mean.copy_(self.mean_x)
            jump.bn.running_var.copy_(self.std_x.square() - jump.bn.eps)
        return jump.eval()


class RidgeSolver:
    """Optimal affine maps of all ranks from the moments of the fitting rows, for one ridge after another.

    Neighbouring ridges predict into nearly the same span, so that each search starts from what the last one found.
    """

    def __init__(self, moments: Moments, eps: float = BATCH_NORM_EPS) -> None:
        self.moments = moments
        # As BatchNorm does: population variance, plus eps.
        self.std_x = (moments.xx.diagonal() / moments.n + eps).sqrt()
        self.C = moments.xx / moments.n / self.std_x / self.std_x[:, None]
        self.S = moments.xy / moments.n / self.std_x[:, None]
        self._eigen: tuple[Tensor, Tensor, Tensor] | None = None  # eigenvalues of C, its eigenvectors Q, and Q'S
        self._span: Tensor | None = None  # [H, n], orthonormal
        self._said_singular = False

    def decompose(self) -> None:
        """Solve by eigenvalues from here on: one decomposition serves all ridges."""
        if self._eigen is None:
            values, Q = torch.linalg.eigh(self.C)
            self._eigen = values, Q, Q.T @ self.S

    def solve(self, ridge: float, rank: int) -> AffineMap:
        """The optimum for `ridge`, cut to `rank` columns, 1..H."""
        (S, inverse, back), mean_y = self._factors(ridge), self.moments.mean_y
        if rank == len(self.C):
            V = torch.eye(rank, dtype=self.C.dtype, device=self.C.device)  # of full rank: any basis will do
        else:
            total = float(self.moments.yy / self.moments.n + mean_y.dot(mean_y))
            self._span = _top_eigenvectors(
                lambda v: S.T @ inverse(S @ v) + torch.outer(mean_y, mean_y @ v), mean_y, rank, total, self._span
            )
            V = _fixed_signs(self._span[:, :rank])
        return AffineMap(back(inverse(S @ V)), mean_y @ V, V, self.moments.mean_x, self.std_x)

    def full_rank_mse(self, ridges: Sequence[float], rows: Moments) -> list[float]:
        """Squared error of the full-rank maps of all `ridges` on `rows`, as `mse_by_rank(rows)[-1]` but at once.

        In the eigenvectors Q of C the map is `Q D Q'S` with D diagonal, so that each error is a quadratic form in D.
        """
        self.decompose()
        values, Q, T = self._eigen
        scale = self.std_x[:, None]
        cross = (T * (Q.T @ (rows.xy / scale))).sum(1) / rows.n
        square = (Q.T @ (rows.xx / scale / self.std_x) @ Q) * (T @ T.T) / rows.n
        shift = (rows.mean_x - self.moments.mean_x) / self.std_x @ Q
        total = rows.yy / rows.n + rows.mean_y.dot(rows.mean_y)
        errors = []
        for ridge in ridges:
            D = _inverse_values(values, ridge)
            mean_z = (shift * D) @ T + self.moments.mean_y
            mean = 2 * mean_z.dot(rows.mean_y) - mean_z.dot(mean_z)
            errors.append(float(total - mean - 2 * D.dot(cross) + D.dot(square @ D)))
        return errors

    def _factors(self, ridge: float) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """S, the product of (C + ridge I)^-1 with [H, n], both in a basis of the inputs, and the way back from it."""
        if self._eigen is None:
            shifted = self.C.clone()
            shifted.diagonal().add_(ridge)
            L, failed = torch.linalg.cholesky_ex(shifted)
            pivots = L.diagonal()
            if not failed and (pivots.min() / pivots.max()).square() > SINGULAR:
                # By halves, since cholesky_solve copies L each time.
                return (
                    self.S,
                    lambda v: solve_triangular(L.T, solve_triangular(L, v, upper=False), upper=True),
                    lambda z: z,
                )
            self.decompose()
        values, Q, T = self._eigen
        D = _inverse_values(values, ridge)
        if not (D.all() or self._said_singular):
            # Fewer rows than dimensions, or inputs that repeat each other: what the rows span is inverted.
            logger.warning("ridge %g: the covariance is singular, so its smallest eigenvalues are left out", ridge)
            self._said_singular = True
        return T, lambda v: D[:, None] * v, lambda z: Q @ z


def _inverse_values(values: Tensor, ridge: float) -> Tensor:
    """1 / (value + ridge), or 0 where that would be noise."""
    shifted = values + ridge
    return torch.where(shifted > SINGULAR * shifted.max(), 1 / shifted, 0.0)


def _top_eigenvectors(
    product: Callable[[Tensor], Tensor], like: Tensor, rank: int, total: float, start: Tensor | None
) -> Tensor:
    """Eigenvectors of the `rank` largest eigenvalues of a symmetric matrix G [H, H], in decreasing order.

    A block Krylov space (Golub and Underwood 1977) is widened until the loss `total - sum of the j largest eigenvalues`
    of no rank j moves by more than CONVERGED of itself. Where the space would be a large part of the whole, all of G
    is decomposed.

    Args:
        product: v [H, n] -> G v.
        like: [H], of the dtype and device wanted.
        rank: how many.
        total: of the loss.
        start: what this has returned for a matrix like G, or None.

    Returns:
        [H, rank + OVERSAMPLING], or [H, H] if that is less: the columns after the first `rank` are only near to
        eigenvectors.
    """
    size, width = len(like), rank + OVERSAMPLING
    block = start
    if block is None or block.shape[1] < width:
        generator = torch.Generator().manual_seed(0)
        block = torch.randn(size, width, generator=generator, dtype=like.dtype).to(like.device)
    basis = like.new_empty(size, 0)
    projected = like.new_empty(0, 0)  # basis' G basis, of which eigenvalues take what is on and below the diagonal
    previous = None
    while 2 * (basis.shape[1] + block.shape[1]) <= size:
        for _ in range(2):  # once more, for what rounding left
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        basis, image = torch.cat([basis, block], 1), product(block)
        projected = torch.nn.functional.pad(projected, (0, block.shape[1]))
        projected = torch.cat([projected, image.T @ basis])
        gained = torch.linalg.eigvalsh(projected).flip(0)[:rank].cumsum(0)
        if previous is not None and (gained - previous <= CONVERGED * (total - gained).clamp_min(1e-9 * total)).all():
            return basis @ torch.linalg.eigh(projected).eigenvectors[:, -width:].flip(1)
        block, previous = image, gained
    G = product(torch.eye(size, dtype=like.dtype, device=like.device))
    return torch.linalg.eigh((G + G.T) / 2).eigenvectors[:, -width:].flip(1)


def _fixed_signs(V: Tensor) -> Tensor:
    """Columns whose largest entry is positive: an eigenvector's sign is arbitrary."""
    return V * V.gather(0, V.abs().argmax(0, keepdim=True)).sign()


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


def fit_exact(fit: Moments, validation: Moments, rank: int, choose_ridge: bool = True) -> ExactFit:
    """The exact optimum, at the ridge that is best on the validation slice.

    Args:
        fit: moments of the fitting rows.
        validation: moments of the validation slice.
        rank: columns of A; H gives the full-rank linear jump (JTC).
        choose_ridge: whether to try all RIDGES, or 0 alone.
    """
    solver, ridges = RidgeSolver(fit), RIDGES if choose_ridge else (0.0,)
    mean_mse = float(fit.yy / fit.n)
    if rank == len(fit.mean_x):
        errors = dict(zip(ridges, solver.full_rank_mse(ridges, validation), strict=True))
        ridge = min(errors, key=errors.get)
        train_mse, optimum_mse = solver.full_rank_mse((ridge, 0.0), fit)
        return ExactFit(solver.solve(ridge, rank), ridge, train_mse, errors[ridge], optimum_mse, mean_mse)
    if choose_ridge and solver.C.device.type == "cpu" and len(solver.C) <= EIGEN_WIDTH:
        solver.decompose()
    maps = {ridge: solver.solve(ridge, rank) for ridge in ridges}
    errors = {ridge: float(candidate.mse_by_rank(validation)[-1]) for ridge, candidate in maps.items()}
    ridge = min(errors, key=errors.get)
    train_mse, optimum_mse = (float(maps[chosen].mse_by_rank(fit)[-1]) for chosen in (ridge, 0.0))
    return ExactFit(maps[ridge], ridge, train_mse, errors[ridge], optimum_mse, mean_mse)
