"""The exact fit at the width of Llama-2-7B (H = 4096, N = 9000, r = 40): all ranks nested, ridge chosen, two cores.

Prints seconds and peak memory from the rows to the fit, and beside them the time of the plain way: one decomposition of
the whole fitted second moment for each ridge, of which one is timed. Run with `--hidden-size 1024` for a quick look.
"""

import argparse
import resource
import time

import torch

from onejump.fitting.exact import RIDGES, RidgeSolver, fit_exact
from onejump.fitting.moments import Moments


def rows(n: int, hidden_size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A shard: inputs with a slowly falling spectrum and a few massive dimensions, targets that follow them."""
    hidden = torch.randn(n, hidden_size, generator=generator) * torch.linspace(1, 0.03, hidden_size)
    noise = torch.randn(n, hidden_size, generator=generator)
    x, y = hidden + 0.05 * noise, 1.5 * hidden.roll(1, 1) + 0.5 * noise
    x[:, :3] *= 1e4
    y[:, :3] *= 1e3
    return x, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=9000)
    parser.add_argument("--rank", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    validation = Moments.of(*rows(args.rows // 10, args.hidden_size, generator))

    started = time.perf_counter()
    fit = None
    for _ in range(6):
        more = Moments.of(*rows(args.rows * 9 // 60, args.hidden_size, generator))
        fit = more if fit is None else fit + more
    counted = time.perf_counter()
    found = fit_exact(fit, validation, args.rank)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"moments {counted - started:.1f} s, fit {done - counted:.1f} s, in all {done - started:.1f} s, {peak:.2f} GB"
    )

    started = time.perf_counter()
    solver = RidgeSolver(fit)
    K = torch.linalg.solve_triangular(
        torch.linalg.cholesky(solver.C + found.ridge * torch.eye(args.hidden_size, dtype=torch.float64)),
        solver.S,
        upper=False,
    )
    values = torch.linalg.eigvalsh(K.T @ K + torch.outer(fit.mean_y, fit.mean_y))
    plain = (time.perf_counter() - started) * len(RIDGES)
    own = torch.linalg.eigvalsh(found.map.V.T @ (K.T @ (K @ found.map.V)) + torch.outer(found.map.c, found.map.c))
    difference = float((own.sum() - values[-args.rank :].sum()).abs() / (fit.yy / fit.n))
    ratio = plain / (done - counted)
    print(f"plain way: {plain:.1f} s for the fit, {ratio:.1f} times as long; the losses differ by {difference:.1e}")


if __name__ == "__main__":
    main()
