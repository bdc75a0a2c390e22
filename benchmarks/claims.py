"""The claims of one model and variant, compared with a bootstrap that copies the rows of each resample.

- ours: `claims_table`, as the stage `assess-claims` calls it: every statistic of every claim, over 10,000 resamples;
- rows copied: only the mean over the rows of each resample, no statistics; a turn does 200 resamples and counts fifty
  times;
- limit: one matrix product of the weights of all resamples and the columns.

Both must give the same spread: the standard deviation of the means, averaged over columns, agrees to 5 %.

    python benchmarks/claims.py
"""

import measure
import numpy as np

from onejump.analysis.bootstrap import resampled_means
from onejump.analysis.claims import RESAMPLES, claims_table
from onejump.analysis.reading import EvaluationGrids
from onejump.analysis.statistics import sentence_columns
from onejump.exits.columns import EVERY_SENTENCE_METHODS, METRICS

COPIED = "rows copied"
FEW = 200


def synthetic_grids(levels: int, sentences: int, transfer: int) -> EvaluationGrids:
    """Evaluation grids filled with random numbers."""
    rng = np.random.default_rng(0)
    grids = object.__new__(EvaluationGrids)
    shape = (len(METRICS), levels, sentences)
    grids.methods = {method: (rng.random(shape) < 0.2).astype(float) for method in EVERY_SENTENCE_METHODS}
    grids.arbitrary = (rng.random((len(METRICS), levels, levels, transfer)) < 0.2).astype(float)
    grids.sentences = grids.documents = np.arange(sentences)
    grids.positions = np.ones(sentences, int)
    return grids


def copied_means(columns: np.ndarray, seed: int) -> np.ndarray:
    """Means over the rows, [N, c], of FEW resamples: [FEW, c]."""
    rng = np.random.default_rng(seed)
    return np.stack([columns[rng.integers(0, len(columns), len(columns))].mean(0) for _ in range(FEW)])


def compare(levels: int, sentences: int, transfer: int, rounds: int) -> list[measure.Row]:
    """Rows of the table for one size.

    Raises:
        OnejumpError: the spreads differ.
    """
    grids = synthetic_grids(levels, sentences, transfer)
    columns = np.concatenate(list(sentence_columns(grids).values()), 1)
    selection = {"ojfa": 0, "bootstrap_share": [1 / levels] * levels}
    weights = np.ones((RESAMPLES, sentences))
    turns = measure.take_turns(
        {
            measure.OURS: lambda turn: claims_table(grids, selection, {"ojfa": 1, "n_njtc": levels}, 0),
            COPIED: lambda turn: copied_means(columns, turn),
            measure.LIMIT: lambda turn: weights @ columns,
        },
        rounds,
        parts={COPIED: RESAMPLES / FEW},
    )
    ours = np.concatenate(list(resampled_means(columns, grids.documents, 0, RESAMPLES)))
    measure.require_close("spread", ours.std(0).mean(), turns.results[COPIED].std(0).mean(), 0.05)
    return measure.rows_of(turns, f"K={levels} N={sentences}", "float64 product of weights and columns")


if __name__ == "__main__":
    measure.run(
        __doc__,
        lambda given: {"claims": compare(given.levels, given.sentences, given.transfer, given.rounds)},
        levels=(30, "exit levels"),
        sentences=(3000, "test sentences"),
        transfer=(300, "of them in the K x K grid"),
        rounds=(3, "rounds"),
    )
