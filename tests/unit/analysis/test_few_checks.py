"""Checks at few levels against plain loops over sentences, levels and thresholds."""

import itertools

import numpy as np
import pytest

from onejump.analysis.costs import Costs
from onejump.analysis.dynamic_exit import AGREEMENT, candidates, dynamic_exit_table
from onejump.analysis.few_checks import few_checks_table

K, N = 6, 50
DOCUMENTS = np.arange(N) // 4
COSTS = Costs(n_blocks=K, hidden_size=8, vocabulary=50, rank=2, block=300, shortlist=90)
CHECKS = {"identity": 8 * 50, "joint": 2 * (8 + 50), "joint_shortlist": 90}


def make_exits(seed: int, n: int) -> dict[str, np.ndarray]:
    """Exits that are right as often as they are confident, and deeper ones more often: [2, K, n]."""
    random = np.random.default_rng(seed)
    found = {}
    for method in CHECKS:
        confidence = random.random((K, n)) ** np.linspace(1.5, 0.3, K)[:, None]
        found[method] = np.stack([random.random((K, n)) < confidence**0.5, confidence])
    return found


@pytest.fixture(scope="module")
def exits():
    return make_exits(0, N), make_exits(1, 40)


@pytest.fixture(scope="module")
def table(exits):
    return few_checks_table(*exits, DOCUMENTS, COSTS)


def naive(exits: np.ndarray, threshold: float, levels: list[int], check: int) -> tuple[float, float, float, float]:
    """Agreement, share of blocks, checks and cost, one sentence after another."""
    rows = []
    for right, confidence in zip(*exits.transpose(0, 2, 1), strict=True):
        agreed, level, looked = 1.0, K, 0
        for k in levels:
            looked += 1
            if confidence[k] >= threshold:
                agreed, level = right[k], k
                break
        cost = 300 * level + (8 * 50 if level == K else 0) + looked * check
        rows.append((agreed, level / K, looked, cost / (K * 300 + 8 * 50)))
    return tuple(np.mean(rows, 0))


def naive_choice(exits: np.ndarray, levels: list[int], check: int) -> tuple[float, float]:
    """The lowest threshold with which these levels agree enough, and what the exit then costs."""
    for threshold in candidates(exits[1]):
        agreement, _, _, cost = naive(exits, threshold, levels, check)
        if agreement >= AGREEMENT:
            return threshold, cost
    raise AssertionError("never to exit agrees")


def test_levels_are_added_one_after_another_where_the_exit_is_then_cheapest(exits, table):
    for method, part in table.groupby("method"):
        assert part["n_levels"].tolist() == [1, 2, 4, K]
        chosen = []
        for n in range(1, 5):
            costs = {
                k: naive_choice(exits[1][method], sorted([*chosen, k]), CHECKS[method])[1]
                for k in range(K)
                if k not in chosen
            }
            chosen.append(min(costs, key=costs.get))
            if n in (1, 2, 4):
                found = part.loc[part["n_levels"] == n, "levels"].item()
                assert found == ", ".join(map(str, sorted(chosen)))
    assert table.loc[table["n_levels"] == K, "levels"].unique().tolist() == ["0, 1, 2, 3, 4, 5"]


def test_the_token_table_exits_before_the_first_block_or_never(exits):
    alike = [part | {"token_table": part["identity"][:, :1].repeat(K, 1)} for part in exits]
    test, held_out = (part["token_table"] for part in alike)
    threshold, _ = naive_choice(held_out, [0], 0)
    agreement, blocks, checks, cost = naive(test, threshold, [0], 0)
    assert 0 < blocks < 1
    table = few_checks_table(*alike, DOCUMENTS, COSTS)
    (row,) = table[table["method"] == "token_table"].to_dict("records")
    assert (row["n_levels"], row["levels"], row["threshold"]) == (1, "0", threshold)
    found = (row["agreement"], row["blocks"], row["checks"], row["cost"])
    assert found == pytest.approx((agreement, blocks, checks, cost))
    curve = dynamic_exit_table(*alike, DOCUMENTS, COSTS)
    (row,) = curve[curve["chosen"] & (curve["method"] == "token_table")].to_dict("records")
    found = (row["threshold"], row["agreement"], row["checks"], row["fused_cost"])
    assert found == pytest.approx((threshold, agreement, checks, cost))


def test_every_row_is_that_of_a_plain_loop(exits, table):
    test, held_out = exits
    for row in table.itertuples():
        levels, check = [int(level) for level in row.levels.split(", ")], CHECKS[row.method]
        threshold, _ = naive_choice(held_out[row.method], levels, check)
        assert row.threshold == threshold
        assert row.held_out_agreement == pytest.approx(naive(held_out[row.method], threshold, levels, check)[0])
        found = (row.agreement, row.blocks, row.checks, row.cost)
        assert found == pytest.approx(naive(test[row.method], threshold, levels, check))
        assert row.agreement_low <= row.agreement <= row.agreement_high
    assert table.groupby("method")["cost"].nunique().min() > 1


def test_identity_gets_as_many_multiply_adds_as_each_method(exits, table):
    (test, held_out), check = exits, CHECKS["identity"]
    sets = [[int(level) for level in levels.split(", ")] for levels in table["levels"][table["method"] == "identity"]]
    options = [(1.0, 1.0, 1.0)]
    for levels, threshold in itertools.product(sets, candidates(held_out["identity"][1])):
        agreed, _, _, cost = naive(held_out["identity"], threshold, levels, check)
        options.append((cost, agreed, naive(test["identity"], threshold, levels, check)[0]))
    for row in table.itertuples():
        levels = [int(level) for level in row.levels.split(", ")]
        _, budget = naive_choice(held_out[row.method], levels, CHECKS[row.method])
        _, _, given = max((one for one in options if one[0] <= budget + 1e-12), key=lambda one: one[1])
        assert row.identity_agreement == pytest.approx(given)


def test_checks_at_all_levels_are_the_dynamic_exit(exits, table):
    every = dynamic_exit_table(*exits, DOCUMENTS, COSTS)
    every = every[every["chosen"]].set_index("method")
    found = table[table["n_levels"] == K].set_index("method")
    for name in ("threshold", "held_out_agreement", "blocks", "agreement", "checks"):
        np.testing.assert_allclose(found[name], every.loc[found.index, name], rtol=1e-12)
    assert found.loc["joint", "cost"] == pytest.approx(every.loc["joint", "fused_cost"])
    assert found.loc["identity", "cost"] == pytest.approx(every.loc["identity", "plain_cost"])
