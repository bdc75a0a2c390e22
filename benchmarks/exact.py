"""The exact fit at the width of Llama-2-7B (H = 4096, N = 9000, r = 40) from moments, beside whole decompositions.

- ours: `fit_exact`, as the stage `fit-jump` calls it: the optimum of rank r at ten ridges, and the best of them;
- whole decompositions: all eigenvalues of the fitted second moment, for each ridge; one is run, and counts ten times;
- limit: the least that ten ridges take: a Cholesky decomposition each, and the fitted second moment of r columns.

Both must take the same off the loss at the chosen ridge, to 1e-6.

    python benchmarks/exact.py
    python benchmarks/exact.py --hidden-size 1024    # for a quick look
"""

import measure
import torch
from synthetic import Size, levels_of

from onejump.jumps.exact import RidgeSolver, fit_exact
from onejump.jumps.moments import Moments
from onejump.jumps.settings import RIDGES

WHOLE = "whole decompositions"


def moments(size: Size, rows: int, generator: torch.Generator) -> Moments:
    """Of as many rows of level 0 and level K."""
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
            WHOLE: lambda turn: torch.linalg.eigvalsh(fitted_second_moment(fit, ridge)),
            measure.LIMIT: least_work,
        },
        rounds,
        parts={WHOLE: len(RIDGES)},
    )
    V = turns.results[measure.OURS].map.V
    gained = torch.trace(V.T @ fitted_second_moment(fit, ridge) @ V)
    measure.require_close("gain", gained, turns.results[WHOLE][-size.rank :].sum(), 1e-6)
    return measure.rows_of(turns, size, "ten Cholesky decompositions, and r columns solved by each")


def main() -> None:
    parser = measure.parser(__doc__, threads=2)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--sentences", type=int, default=9000)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each way")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    size = Size("llama-2-7b", 1, given.hidden_size, 0, given.sentences, 0)
    measure.write("exact", compare(size, given.rounds))


if __name__ == "__main__":
    measure.run(main)
