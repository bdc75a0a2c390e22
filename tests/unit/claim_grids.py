"""Evaluation grids made by hand, random ones and ones with planted verdicts, and what the claims say of them."""

import numpy as np
import pandas as pd
import pytest

from onejump.analysis import claims
from onejump.analysis.reading import EvaluationGrids
from onejump.exits.columns import EVERY_SENTENCE_METHODS, METRICS

K, N, TRANSFER, OJFA = 5, 60, 40, 2
PARAMETERS = {"ojfa": 100, "n_njtc": 3200}
CORRECT, SURPRISAL = METRICS.index("correct"), METRICS.index("surprisal")


def grids_of(correct: dict[str, np.ndarray], surprisal: dict[str, np.ndarray], arbitrary: np.ndarray):
    """Evaluation grids from [level, sentence] of some methods (OJFA's stands in for others) and [2, jump, level, T]."""
    grids = object.__new__(EvaluationGrids)
    grids.methods = {}
    for method in EVERY_SENTENCE_METHODS:
        grids.methods[method] = np.zeros((len(METRICS), *correct["ojfa"].shape))
        grids.methods[method][CORRECT] = correct.get(method, correct["ojfa"])
        grids.methods[method][SURPRISAL] = surprisal.get(method, surprisal["ojfa"])
    grids.arbitrary = np.zeros((len(METRICS), *arbitrary.shape[1:]))
    grids.arbitrary[[CORRECT, SURPRISAL]] = arbitrary
    n = correct["ojfa"].shape[1]
    grids.sentences, grids.documents, grids.positions = np.arange(n), np.arange(n), np.arange(n) % 4
    return grids


def random_grids(seed: int, n: int = N, n_levels: int = K, transfer: int = TRANSFER, precision: float = 0.3):
    """All methods with the same true precision and surprisal, independent of each other."""
    rng = np.random.default_rng(seed)

    def hits(*shape):
        return (rng.random(shape) < precision).astype(float)

    correct = {method: hits(n_levels, n) for method in EVERY_SENTENCE_METHODS}
    surprisal = {method: rng.gamma(2.0, 3.0, (n_levels, n)) for method in EVERY_SENTENCE_METHODS}
    shape = (n_levels, n_levels, transfer)
    return grids_of(correct, surprisal, np.stack([hits(*shape), rng.gamma(2.0, 3.0, shape)]))


def whole_table_of(grids, parameters=PARAMETERS, seed: int = 0, shares=None) -> pd.DataFrame:
    """`shares` of the resamples of the training documents in which each jump is selected: in all of them OJFA."""
    shares = np.eye(grids.arbitrary.shape[1])[OJFA] if shares is None else shares
    return claims.claims_table(grids, {"ojfa": OJFA, "bootstrap_share": shares}, parameters, seed)


def table_of(*given, **options) -> pd.DataFrame:
    """On all sentences."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "CLAIM_POSITIONS", ("all",))
        return whole_table_of(*given, **options).drop(columns="positions")


def row(table: pd.DataFrame, claim: str, statistic: str, metric: str = "precision") -> pd.Series:
    found = table[(table["claim"] == claim) & (table["statistic"] == statistic) & (table["metric"] == metric)]
    found = found[found["level"].isna()]
    found = found[found["decides"]] if len(found) > 1 else found  # of several bounds
    assert len(found) == 1
    return found.iloc[0]


def planted(**precision: list[float]):
    """2,000 sentences on which each method has these precisions at the levels, nested so that they are paired."""
    rng = np.random.default_rng(0)
    hard, noise = rng.random(2000), rng.normal(0, 0.1, 2000)
    levels = {method: np.array(values)[:, None] for method, values in precision.items()}
    correct = {method: (hard < values).astype(float) for method, values in levels.items()}
    surprisal = {method: 5 - 4 * values + noise for method, values in levels.items()}
    n_levels = len(precision["ojfa"])
    one = np.stack([correct["ojfa"], surprisal["ojfa"]])[:, None, :, :500]
    return grids_of(correct, surprisal, np.repeat(one, n_levels, 1))


FLAT = [0.4] * 6
