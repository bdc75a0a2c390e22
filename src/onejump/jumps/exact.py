"""The fit `exact`: the global optimum of Eq. 2 (OJFA) in closed form, by reduced-rank regression.

In training the BatchNorm standardises its input to xn, so a jump predicts `xn M + m` where [M; m] has rank r. The best
such map is the reduced-rank regression of the uncentred target on [xn, 1] (Izenman 1975; Reinsel and Velu 1998). With
`C = Xn'Xn / N` and `S = Xn'(Y - mean Y) / N`, the fitted second moment is `G = S' C^-1 S + mean(Y) mean(Y)'`, its top r
eigenvectors V span the predictions, and the loss is `mean |y|^2` minus the sum of the r largest eigenvalues. Solutions
are nested in r. A ridge (C + lambda I for C) keeps the fit from overfitting where H / N is not small.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from onejump.files.atomic import OnejumpError
from onejump.jumps.jump import BATCH_NORM_EPS, Jump, bias_jump
from onejump.jumps.moments import Moments
from onejump.jumps.objective import Problem
from onejump.jumps.settings import OVERSAMPLING, RIDGES

logger = logging.getLogger(__name__)

# A Cholesky factor whose smallest and largest pivots have a ratio with a smaller square has lost its precision.
SINGULAR = 1e-12
# Up to this width, on a CPU, one eigendecomposition takes less time than ten Cholesky decompositions.
EIGEN_WIDTH = 1024
# The search for the largest eigenvalues ends when the loss changes by less than this share of itself.
CONVERGED = 1e-8


def fit(problem: Problem) -> tuple[Jump, dict]:
    """The jump, and what its file says of the fit; errors as in `AffineMap.jump`."""
    if problem.gate != "none":
        from onejump.jumps.gates import fit_gated  # which is made of exact fits

        return fit_gated(problem)
    facts = dict(vars(fit_exact(problem.fitting, problem.validation, problem.rank)))
    return facts.pop("map").jump(), facts


@dataclass(frozen=True)
class AffineMap:
    """Predictions `(((x - mean_x) / std_x) W + c) V'`, in float64.

    Eq. 2's optimum, cut to its first r columns, is that of rank r.
    """

    W: Tensor  # [H, R]
    c: Tensor  # [R]
    V: Tensor  # [H, R], with orthonormal columns in Eq. 2's optimum
    mean_x: Tensor  # [H]
    std_x: Tensor  # [H]

    def mse_by_rank(self, rows: Moments) -> Tensor:
        """Squared error, summed over H and averaged over rows, for ranks 1..R: [R].

        V's columns are orthonormal, so column j lowers the error by `2 E[z_j (y.v_j)] - E[z_j^2]`, whatever the others.
        """
        W = self.W / self.std_x[:, None]
        mean_z = (rows.mean_x - self.mean_x) @ W + self.c
        cross = (W * (rows.xy @ self.V)).sum(0) / rows.n + mean_z * (rows.mean_y @ self.V)
        square = (W * (rows.xx @ W)).sum(0) / rows.n + mean_z.square()
        total = rows.yy / rows.n + rows.mean_y.dot(rows.mean_y)
        return total - (2 * cross - square).cumsum(0)

    def jump(self) -> Jump:
        """The map as a jump: B = V', A = W, BatchNorm weight 1, bias `beta` with `beta A = c`; or a bias jump.

        Raises:
            OnejumpError: there is no such bias, since A has less than full rank.
        """
        hidden_size, rank = self.W.shape
        if not self.W.any():
            return bias_jump(self.V @ self.c)
        jump = Jump(hidden_size, rank)
        beta = torch.linalg.lstsq(self.W.T.cpu(), self.c.cpu()[:, None], driver="gelsd").solution[:, 0]
        lost = float((self.W.T.cpu() @ beta - self.c.cpu()).norm() / self.c.norm().clamp_min(1e-30))
        if lost > 1e-6:
            message = f"rank {rank} is more than the fitting rows span; use a lower rank or more training sentences"
            raise OnejumpError(message)
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

    Predictions at neighbouring ridges span nearly the same space, so each search starts from the result of the last.

    Attributes:
        std_x: what the inputs are divided by, [H] float64.
        C: second moment of the standardised inputs, [H, H] float64.
        S: cross moment of standardised inputs and centred targets, [H, H] float64.
    """

    def __init__(self, moments: Moments) -> None:
        """A solver for the rows of these moments."""
        self.moments = moments
        # As BatchNorm does: population variance, plus eps.
        self.std_x = (moments.xx.diagonal() / moments.n + BATCH_NORM_EPS).sqrt()
        self.C = moments.xx / moments.n / self.std_x / self.std_x[:, None]
        self.S = moments.xy / moments.n / self.std_x[:, None]
        self._eigen: tuple[Tensor, Tensor, Tensor] | None = None  # eigenvalues of C, its eigenvectors Q, and Q'S
        self._span: Tensor | None = None  # [H, n], orthonormal
        self._said_singular = False

    def decompose(self) -> None:
        """Solve by eigenvalues from now on: one decomposition serves all ridges."""
        if self._eigen is None:
            values, Q = torch.linalg.eigh(self.C)
            self._eigen = values, Q, Q.T @ self.S

    def solve(self, ridge: float, rank: int) -> AffineMap:
        """The optimum for `ridge`, cut to its first `rank` columns, 1..H; the first r of these are that of rank r."""
        factors, mean_y = self._factors(ridge), self.moments.mean_y
        S, inverse, _ = factors
        total = float(self.moments.yy / self.moments.n + mean_y.dot(mean_y))
        self._span = _top_eigenvectors(
            lambda v: S.T @ inverse(S @ v) + torch.outer(mean_y, mean_y @ v), mean_y, rank, total, self._span
        )
        return self._in_basis(factors, _fixed_signs(self._span[:, :rank]))

    def solve_full_rank(self, ridge: float) -> AffineMap:
        """The optimum for `ridge` at rank H, where any basis of the outputs will do: that of the hidden state."""
        return self._in_basis(self._factors(ridge), torch.eye(len(self.C), dtype=self.C.dtype, device=self.C.device))

    def _in_basis(self, factors: tuple[Tensor, Callable, Callable], V: Tensor) -> AffineMap:
        S, inverse, back = factors
        return AffineMap(back(inverse(S @ V)), self.moments.mean_y @ V, V, self.moments.mean_x, self.std_x)

    def full_rank_mse(self, ridges: Sequence[float], rows: Moments) -> list[float]:
        """Squared error on `rows` of the full-rank map of each ridge: `mse_by_rank(rows)[-1]`, but for all at once.

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
        """S and the product of (C + ridge I)^-1 with [H, n], both in some basis of the inputs, and the way back."""
        if self._eigen is None:
            shifted = self.C.clone()
            shifted.diagonal().add_(ridge)
            L, failed = torch.linalg.cholesky_ex(shifted)
            pivots = L.diagonal()
            if not failed and (pivots.min() / pivots.max()).square() > SINGULAR:
                # Two triangular solves, since cholesky_solve copies L each time.
                lower, upper = partial(solve_triangular, L, upper=False), partial(solve_triangular, L.T, upper=True)
                return self.S, lambda v: upper(lower(v)), lambda z: z
            self.decompose()
        values, Q, T = self._eigen
        D = _inverse_values(values, ridge)
        if not (D.all() or self._said_singular):
            # Fewer rows than dimensions, or linearly dependent inputs: C is inverted on what the rows span.
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

    A block Krylov space (Golub and Underwood 1977) is widened until at no rank j the loss `total - sum of the j largest
    eigenvalues` changes by more than CONVERGED of itself. Where the space would be a large part of the whole, all of G
    is decomposed. `product` multiplies G by v [H, n], `like` is a vector [H] of its dtype and device, `total` is the
    loss at rank 0, and `start` what this has returned for a similar matrix, or None.

    Returns:
        [H, rank + OVERSAMPLING], or [H, H] if that is less; only the first `rank` columns are converged.
    """
    size, width = len(like), rank + OVERSAMPLING
    block = start
    if block is None or block.shape[1] < width:
        generator = torch.Generator().manual_seed(0)
        block = torch.randn(size, width, generator=generator, dtype=like.dtype).to(like.device)
    basis, previous = like.new_empty(size, 0), None
    projected = like.new_empty(0, 0)  # basis' G basis, of which eigenvalues take what is on and below the diagonal
    while 2 * (basis.shape[1] + block.shape[1]) <= size:
        for _ in range(2):  # twice, since rounding leaves some of the basis in the block
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
    """An exact fit, and the two errors that every fit of these rows is measured against."""

    map: AffineMap
    ridge: float  # chosen on the validation slice
    train_mse: float  # error of the map on the fitting rows
    validation_mse: float  # and on the validation slice
    optimum_mse: float  # the smallest error on the fitting rows that any jump of this rank can have (ridge 0)
    mean_mse: float  # error on the fitting rows of predicting mean(Y)


def fit_exact(fitting: Moments, validation: Moments, rank: int, choose_ridge: bool = True) -> ExactFit:
    """The exact optimum, at the one of RIDGES that is best on the validation slice, or at ridge 0.

    Rank H gives the full-rank linear jump (JTC).
    """
    mean_mse = float(fitting.yy / fitting.n)
    if not fitting.xx.any():
        found = _constant(fitting)
        return ExactFit(found, 0.0, mean_mse, float(found.mse_by_rank(validation)[-1]), mean_mse, mean_mse)
    solver, ridges = RidgeSolver(fitting), RIDGES if choose_ridge else (0.0,)
    if rank == len(fitting.mean_x):
        errors = dict(zip(ridges, solver.full_rank_mse(ridges, validation), strict=True))
        ridge = min(errors, key=errors.get)
        train_mse, optimum_mse = solver.full_rank_mse((ridge, 0.0), fitting)
        return ExactFit(solver.solve_full_rank(ridge), ridge, train_mse, errors[ridge], optimum_mse, mean_mse)
    if choose_ridge and solver.C.device.type == "cpu" and len(solver.C) <= EIGEN_WIDTH:
        solver.decompose()
    maps = {ridge: solver.solve(ridge, rank) for ridge in ridges}
    errors = {ridge: float(candidate.mse_by_rank(validation)[-1]) for ridge, candidate in maps.items()}
    ridge = min(errors, key=errors.get)
    train_mse, optimum_mse = (float(maps[chosen].mse_by_rank(fitting)[-1]) for chosen in (ridge, 0.0))
    return ExactFit(maps[ridge], ridge, train_mse, errors[ridge], optimum_mse, mean_mse)


def optimum(moments: Moments, rank: int) -> AffineMap:
    """The exact optimum on the rows of these moments, without a ridge."""
    return RidgeSolver(moments).solve(0.0, rank) if moments.xx.any() else _constant(moments)


def _constant(moments: Moments) -> AffineMap:
    """The optimum for inputs that are always the same: mean(Y), as a map of rank 1."""
    size = moments.mean_y.norm().clamp_min(1e-30)
    std = moments.xx.diagonal() + BATCH_NORM_EPS**0.5
    nothing = torch.zeros_like(moments.mean_y)[:, None]
    return AffineMap(nothing, size[None], (moments.mean_y / size)[:, None], moments.mean_x, std)
