"""How long the claims of one model and variant take, beside a bootstrap that copies the rows of each resample.

    python benchmarks/claims.py --levels 30 --sentences 3000

Prints seconds, the ratio, and the most memory that the process has held. The plain bootstrap is timed on a few
resamples of the same columns, without its statistics, and scaled up.
"""

import argparse
import resource
import time

import numpy as np

from onejump.claims import RESAMPLES, _test_columns, claims_table
from onejump.evaluation import METRICS
from onejump.statistics import EVERY_SENTENCE_METHODS, EvaluationGrids


def synthetic_grids(levels: int, sentences: int, transfer: int) -> EvaluationGrids:
    """Evaluation grids of random numbers."""
    rng = np.random.default_rng(0)
    grids = object.__new__(EvaluationGrids)
    shape = (len(METRICS), levels, sentences)
    grids.methods = {method: (rng.random(shape) < 0.2).astype(float) for method in EVERY_SENTENCE_METHODS}
    grids.arbitrary = (rng.random((len(METRICS), levels, levels, transfer)) < 0.2).astype(float)
    return grids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, default=30)
    parser.add_argument("--sentences", type=int, default=3000)
    parser.add_argument("--transfer", type=int, default=300)
    given = parser.parse_args()
    grids = synthetic_grids(given.levels, given.sentences, given.transfer)

    start = time.perf_counter()
    claims_table(grids, 0, {"ojfa": 1, "n_njtc": given.levels}, 0)
    vectorised = time.perf_counter() - start

    columns = np.concatenate(list(_test_columns(grids).values()), 1)
    rng, few = np.random.default_rng(0), 50
    start = time.perf_counter()
    for _ in range(few):
        columns[rng.integers(0, len(columns), len(columns))].mean(0)
    plain = (time.perf_counter() - start) / few * RESAMPLES

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"claims {vectorised:.1f} s, plain bootstrap {plain:.1f} s: {plain / vectorised:.1f} times, {memory:.0f} MB")


if __name__ == "__main__":
    main()
