"""The exact fit at the width of Llama-2-7B (H = 4096, N = 9000, r = 40), compared with full decompositions.

- ours: `fit_exact`, as the stage `fit-jump` calls it: the optimum of rank r at ten ridges, and the best of the ten;
- full decompositions: all eigenvalues of the fitted second moment, for each ridge; a turn does one, counted ten times;
- limit: the least that ten ridges need, a Cholesky decomposition each and a solve for r columns.

Both must reduce the loss by the same amount at the chosen ridge, to 1e-6.

    python benchmarks/exact.py
    python benchmarks/exact.py --hidden-size 1024    # for a quick look
"""

from argparse import Namespace

import measure
import torch
from synthetic import Size, levels_of

from onejump.jumps.exact import RidgeSolver, fit_exact
from onejump.jumps.moments import Moments
from onejump.jumps.settings import RIDGES

FULL = "full decompositions"


def moments(size: Size, rows: int, generator: torch.Generator) -> Moments:
    """Moments of so many rows of level 0 and level K."""
    return Moments.of(*levels_of(rows, size, generator))


def fitted_second_moment(fit: Moments, ridge: float) -> torch.Tensor:
    """`S' (C + ridge I)^-1 S + mean(Y) mean(Y)'`: [H, H] float64."""
    solver = RidgeSolver(fit)
    L = torch.linalg.cholesky(solver.C + ridge * torch.eye(len(solver.C), dtype=torch.float64))
    K = torch.linalg.solve_triangular(L, solver.S, upper=False)
    return K.T @ K + torch.outer(fit.mean_y, fit.mean_y)


def compare(size: Size, rounds: int) -> list[measure.Row]:
    """Rows of the table for one size.

    Raises:
        OnejumpError: the losses differ.
    """
    generator = torch.Generator().manual_seed(0)
    fit, validation = moments(size, size.train * 9 // 10, generator), moments(size, size.train // 10, generator)
    ridge = fit_exact(fit, validation, size.rank).ridge
    C = RidgeSolver(fit).C + torch.eye(size.hidden_size, dtype=torch.float64)

    def least_work(turn: int) -> None:
        for _ in RIDGES:
            torch.cholesky_solve(fit.xy[:, : size.rank], torch.linalg.cholesky(C))

    turns = measure.take_turns(
        {
            measure.OURS: lambda turn: fit_exact(fit, validation, size.rank),
            FULL: lambda turn: torch.linalg.eigvalsh(fitted_second_moment(fit, ridge)),
            measure.LIMIT: least_work,
        },
        rounds,
        parts={FULL: len(RIDGES)},
    )
    V = turns.results[measure.OURS].map.V
    gained = torch.trace(V.T @ fitted_second_moment(fit, ridge) @ V)
    measure.require_close("gain", gained, turns.results[FULL][-size.rank :].sum(), 1e-6)
    return measure.rows_of(turns, size, "ten Cholesky decompositions, each solving r columns")


def tables(given: Namespace) -> dict[str, list[measure.Row]]:
    """The table, for the width and number of sentences that the options give."""
    size = Size("llama-2-7b", 1, given.hidden_size, 0, given.sentences, 0)
    return {"exact": compare(size, given.rounds)}


if __name__ == "__main__":
    measure.run(
        __doc__,
        tables,
        threads=2,
        hidden_size=(4096, "H"),
        sentences=(9000, "training sentences"),
        rounds=(2, "rounds"),
    )
