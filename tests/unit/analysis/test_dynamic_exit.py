"""Dynamic exit against a plain loop over sentences, levels and thresholds."""

import numpy as np
import pytest

from onejump.analysis.costs import Costs
from onejump.analysis.dynamic_exit import (
    AGREEMENT,
    METHODS,
    POINTS,
    TOP_POINTS,
    chosen_threshold,
    dynamic_exit_table,
)

K, N = 5, 60
DOCUMENTS = np.arange(N) // 4
COSTS = Costs(n_blocks=K, hidden_size=8, vocabulary=50, rank=2, block=300, shortlist=90)


def make_exits(seed: int, n: int, right: float = 0.4) -> dict[str, np.ndarray]:
    """Of each method, whether the exits are right, and their confidence: [2, K, n]."""
    random = np.random.default_rng(seed)
    found = {method: np.stack([random.random((K, n)) < right, random.random((K, n)).round(2)]) for method in METHODS}
    return found | {"token_table": found["token_table"][:, :1].repeat(K, 1)}  # it is the same at each level


@pytest.fixture(scope="module")
def exits():
    """On the test sentences, and on others."""
    return make_exits(0, N), make_exits(1, 40, right=0.8)


def naive(correct: np.ndarray, confidence: np.ndarray, threshold: float, check: int) -> dict[str, float]:
    """One sentence after another, down the levels."""
    agreement, blocks, checks, plain, fused = [], [], [], [], []
    for sentence in range(correct.shape[1]):
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
    test, held_out = exits
    table = dynamic_exit_table(test, held_out, DOCUMENTS, COSTS)
    counts = table["method"].value_counts()
    assert set(counts.index) == set(METHODS)
    assert counts.between(POINTS, POINTS + TOP_POINTS + 2).all()
    for row in table.itertuples():
        check = {"token_table": 0, "joint_shortlist": 90}.get(row.method, 2 * (8 + 50))
        expected = naive(*test[row.method], row.threshold, check)
        expected |= {"identity": {"fused_cost": np.nan}}.get(row.method, {})
        expected |= {"plain_cost": np.nan} if row.method in ("token_table", "joint_shortlist") else {}
        expected |= {"checks": 1} if row.method == "token_table" else {}
        expected["held_out_agreement"] = naive(*held_out[row.method], row.threshold, check)["agreement"]
        found = {name: getattr(row, name) for name in expected}
        assert found == pytest.approx(expected, nan_ok=True), row
        assert row.agreement_low <= row.agreement <= row.agreement_high


def test_the_threshold_is_chosen_on_other_sentences_as_the_lowest_that_agrees_enough(exits):
    test, held_out = exits
    table = dynamic_exit_table(test, held_out, DOCUMENTS, COSTS)
    assert table.groupby("method")["chosen"].sum().to_dict() == dict.fromkeys(METHODS, 1)
    for row in table[table["chosen"]].itertuples():
        enough = [
            threshold
            for threshold in np.unique(held_out[row.method][1])  # 40 sentences: all that occur are candidates
            if naive(*held_out[row.method], threshold, 0)["agreement"] >= AGREEMENT
        ]
        assert row.threshold >= min(enough)  # candidates are quantiles
        assert row.held_out_agreement >= AGREEMENT
    assert (table.loc[table["chosen"], "agreement"] < AGREEMENT).any()  # which the test sentences do not promise
    once_more = dynamic_exit_table(make_exits(2, N), held_out, DOCUMENTS, COSTS)
    chosen = [one.loc[one["chosen"], "threshold"].tolist() for one in (table, once_more)]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(("right", "expected"), [(1.0, 0.01), (0.0, np.inf)])
def test_a_method_that_is_always_right_exits_at_once_and_one_that_is_always_wrong_never(right, expected):
    confidence = np.linspace(0.01, 0.99, K * 5).reshape(K, 5)  # of so few sentences, none may be wrong
    assert chosen_threshold(np.full((K, 5), right), confidence) == expected


def test_a_curve_runs_from_the_first_level_to_the_full_model(exits):
    test, _ = exits
    table = dynamic_exit_table(*exits, DOCUMENTS, COSTS)
    for method, part in table.groupby("method"):
        first, last = part.iloc[0], part.iloc[-1]
        assert (first["blocks"], first["checks"]) == (0, 1)
        assert first["agreement"] == pytest.approx(test[method][0, 0].mean())
        checks = 1 if method == "token_table" else K
        assert (last["threshold"], last["blocks"], last["agreement"], last["checks"]) == (np.inf, 1, 1, checks)
        assert (part["blocks"].diff().dropna() >= 0).all()  # a higher threshold runs more blocks


def test_thresholds_are_fine_enough_for_any_share_of_sentences_to_exit(exits):
    """With many levels nearly every sentence has one confident level: quantiles of all confidences end too early."""
    many = {method: np.tile(values, (1, 40, 1)) for method, values in exits[0].items()}
    for values in many.values():
        values[1] += np.arange(200)[:, None] * 1e-6
    table = dynamic_exit_table(many, many, DOCUMENTS, COSTS)
    for method, part in table.groupby("method"):
        exiting = [(many[method][1].max(0) >= threshold).mean() for threshold in part["threshold"]]
        assert np.abs(np.diff(sorted(exiting))).max() < 0.1
