"""Dynamic exit against a plain loop over sentences, levels and thresholds."""

import numpy as np
import pytest

from onejump.analysis.costs import Costs
from onejump.analysis.dynamic_exit import METHODS, POINTS, TOP_POINTS, dynamic_exit_table

K, N = 5, 60
DOCUMENTS = np.arange(N) // 4
COSTS = Costs(n_blocks=K, hidden_size=8, vocabulary=50, rank=2, block=300, shortlist=90)


@pytest.fixture(scope="module")
def exits():
    random = np.random.default_rng(0)
    confidence = {method: random.random((K, N)).round(2) for method in METHODS}
    correct = {method: (random.random((K, N)) < 0.4).astype(float) for method in METHODS}
    return correct, confidence


def naive(correct: np.ndarray, confidence: np.ndarray, threshold: float, check: int) -> dict[str, float]:
    """One sentence after another, down the levels."""
    agreement, blocks, checks, plain, fused = [], [], [], [], []
    for sentence in range(N):
        right, level, looked, cost = 1.0, K, 0, [0, 0]
        for k in range(K):
            looked += 1
            cost = [cost[0] + 8 * 50, cost[1] + check]
            if confidence[k, sentence] >= threshold:
                right, level = correct[k, sentence], k
                break
        work = level * 300 + (8 * 50 if level == K else 0)
        agreement.append(right)
        blocks.append(level / K)
        checks.append(looked)
        plain.append((work + cost[0]) / (K * 300 + 8 * 50))
        fused.append((work + cost[1]) / (K * 300 + 8 * 50))
    names = ("agreement", "blocks", "checks", "plain_cost", "fused_cost")
    return {
        name: np.mean(values) for name, values in zip(names, (agreement, blocks, checks, plain, fused), strict=True)
    }


def test_every_curve_is_that_of_a_plain_loop(exits):
    correct, confidence = exits
    table = dynamic_exit_table(correct, confidence, DOCUMENTS, COSTS)
    counts = table["method"].value_counts()
    assert set(counts.index) == set(METHODS)
    assert counts.between(POINTS, POINTS + TOP_POINTS + 1).all()
    for row in table.itertuples():
        check = 90 if row.method == "joint_shortlist" else 2 * (8 + 50)
        expected = naive(correct[row.method], confidence[row.method], row.threshold, check)
        expected |= {"identity": {"fused_cost": np.nan}, "joint_shortlist": {"plain_cost": np.nan}}.get(row.method, {})
        found = {name: getattr(row, name) for name in expected}
        assert found == pytest.approx(expected, nan_ok=True), row
        assert row.agreement_low <= row.agreement <= row.agreement_high


def test_a_curve_runs_from_the_first_level_to_the_full_model(exits):
    table = dynamic_exit_table(*exits, DOCUMENTS, COSTS)
    for method, part in table.groupby("method"):
        first, last = part.iloc[0], part.iloc[-1]
        assert (first["blocks"], first["checks"]) == (0, 1)
        assert first["agreement"] == pytest.approx(exits[0][method][0].mean())
        assert (last["threshold"], last["blocks"], last["agreement"], last["checks"]) == (np.inf, 1, 1, K)
        assert (part["blocks"].diff().dropna() >= 0).all()  # a higher threshold runs more blocks


def test_thresholds_are_fine_enough_for_any_share_of_sentences_to_exit(exits):
    """With many levels nearly every sentence has one confident level: quantiles of all confidences end too early."""
    correct, confidence = exits
    many = {method: np.tile(values, (40, 1)) + np.arange(200)[:, None] * 1e-6 for method, values in confidence.items()}
    tiled = {method: np.tile(values, (40, 1)) for method, values in correct.items()}
    table = dynamic_exit_table(tiled, many, DOCUMENTS, COSTS)
    for method, part in table.groupby("method"):
        exiting = [(many[method].max(0) >= threshold).mean() for threshold in part["threshold"]]
        assert np.abs(np.diff(sorted(exiting))).max() < 0.1
