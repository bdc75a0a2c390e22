"""Verdicts against truths planted in synthetic evaluations, and against their rules."""

import numpy as np
import pandas as pd
import pytest
from claim_grids import CORRECT, FLAT, OJFA, SURPRISAL, planted, random_grids, row, table_of, whole_table_of

from onejump.analysis import claims


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(claims, "RESAMPLES", 400)


def test_the_papers_picture_supports_every_claim():
    grids = planted(
        ojfa=[0.38, 0.39, 0.40, 0.40, 0.41, 0.40],
        n_njtc=[0.40, 0.40, 0.41, 0.41, 0.42, 0.42],
        joint=[0.30] * 6,
        identity=[0.01, 0.02, 0.1, 0.3, 0.6, 0.8],
    )
    others = np.arange(6) != OJFA
    grids.arbitrary[CORRECT, others, :, ::3] = 0
    grids.arbitrary[SURPRISAL, others] += 1
    table = table_of(grids)
    assert set(table["claim"]) == {"C1", "C2", "C3", "C4", "C5", "C6"}
    assert set(table.loc[table["claim"] != "C1", "claim_verdict"]) == {"supported"}
    assert row(table, "C4", "crossing_level")["estimate"] == 4
    assert row(table, "C2", "rank")["estimate"] == 1


@pytest.mark.parametrize(
    ("claim", "precision"),
    [
        ("C3", {"ojfa": FLAT, "joint": [0.5] * 6}),
        ("C4", {"ojfa": FLAT, "identity": [0.5, 0.5, 0.1, 0.1, 0.9, 0.9]}),
        ("C4", {"ojfa": FLAT, "identity": [0.1] * 6}),
        ("C5", {"ojfa": FLAT, "n_njtc": [0.5] * 6}),
        ("C6", {"ojfa": [0.5, 0.5, 0.5, 0.5, 0.5, 0.3], "n_njtc": [0.5] * 6}),
        ("C6", {"ojfa": [0.6, 0.5, 0.4, 0.4, 0.3, 0.2]}),
    ],
)
def test_a_planted_falsehood_is_contradicted(claim, precision):
    table = table_of(planted(**precision)).set_index("claim")
    assert set(table.loc[[claim], "claim_verdict"]) == {"contradicted"}


def test_methods_that_are_equally_good_on_other_sentences_decide_nothing():
    grids, rng = planted(ojfa=FLAT), np.random.default_rng(1)
    for method in ("joint", "identity"):
        grids.methods[method] = grids.methods[method][..., rng.permutation(2000)]
    for jump in set(range(6)) - {OJFA}:
        grids.arbitrary[:, jump] = grids.arbitrary[:, jump][..., rng.permutation(500)]
    table = table_of(grids)
    for claim in ("C2", "C3", "C4"):
        assert set(table.loc[table["claim"] == claim, "claim_verdict"]) == {"inconclusive"}
    assert row(table, "C3", "difference")["high"] > 0 > row(table, "C3", "difference")["low"]
    assert row(table, "C3", "difference")["verdict"] == "inconclusive"  # too few sentences to say that it is small


def test_a_tie_in_every_sentence_differs_by_exactly_zero_and_decides_nothing():
    table = table_of(planted(ojfa=[0.1, 0.2, 0.3, 0.35, 0.47, 0.55]))  # joint and all single jumps are OJFA itself
    for claim in ("C2", "C3"):
        for metric in ("precision", "surprisal"):
            found = row(table, claim, "difference", metric)
            assert (found["estimate"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)
            assert found["verdict"] == {"precision": "equivalent", "surprisal": "inconclusive"}[metric]
            assert found["claim_verdict"] == "inconclusive"
    assert row(table, "C2", "rank")[["estimate", "low", "high"]].tolist() == [1, 1, 1]


def test_better_precision_at_worse_surprisal_is_no_support():
    grids = planted(ojfa=FLAT, joint=[0.3] * 6)
    assert row(table_of(grids), "C3", "difference")["claim_verdict"] == "supported"
    grids.methods["joint"][SURPRISAL] -= 3
    table = table_of(grids)
    assert row(table, "C3", "difference")["verdict"] == "supported"
    assert row(table, "C3", "difference", "surprisal")["verdict"] == "contradicted"
    assert row(table, "C3", "difference")["claim_verdict"] == "contradicted"


@pytest.mark.parametrize(("n_njtc", "expected"), [(3000, "supported"), (2999, "contradicted"), (1200, "contradicted")])
def test_c1_counts_parameters_and_30_times_fewer_are_enough(n_njtc, expected):
    grids = random_grids(0, n=20, n_levels=30, transfer=5)
    found = row(table_of(grids, {"ojfa": 100, "n_njtc": n_njtc}), "C1", "ratio", "parameters")
    assert found["estimate"] == n_njtc / 100
    assert np.isnan(found["low"])
    assert np.isnan(found["high"])
    assert found["claim_verdict"] == expected


def test_c1_does_not_apply_to_a_model_of_fewer_blocks_than_the_paper_speaks_of():
    grids = random_grids(0, n=20, n_levels=29, transfer=5)
    found = row(table_of(grids, {"ojfa": 100, "n_njtc": 2900}), "C1", "ratio", "parameters")
    assert (found["estimate"], found["verdict"], found["claim_verdict"]) == (29, "inapplicable", "inapplicable")


def test_a_share_of_zero_is_undefined_and_inconclusive():
    grids = random_grids(0, precision=0.0)
    table = table_of(grids)
    undefined = ("C5", "kept"), ("C5", "worst_loss"), ("C5", "kept_above_floor"), ("C6", "smallest_share")
    for claim, statistic in (*undefined, ("C6", "largest_drop")):
        found = table[(table["claim"] == claim) & (table["statistic"] == statistic) & (table["metric"] == "precision")]
        assert found[["estimate", "low", "high", "p"]].isna().all(axis=None)
        assert set(found["verdict"]) == set(found["claim_verdict"]) == {"inconclusive"}


@pytest.mark.parametrize(
    ("low", "high", "side", "expected"),
    [
        (0.1, 0.2, ">", "supported"),
        (0.1, 0.2, "<", "contradicted"),
        (-0.2, -0.1, ">", "contradicted"),
        (-0.2, -0.1, "<", "supported"),
        (-0.1, 0.1, ">", "inconclusive"),
        (0.0, 0.1, ">", "inconclusive"),
        (-0.1, 0.0, "<", "inconclusive"),
        (np.nan, np.nan, ">", "inconclusive"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low, high, side, expected):
    assert claims.verdict(low, high, side, 0) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.009, 0.009, "equivalent"),
        (-0.01, 0.009, "inconclusive"),
        (-0.001, 0.011, "inconclusive"),
        (0.001, 0.002, "supported"),
        (-0.002, -0.001, "contradicted"),
    ],
)
def test_a_difference_that_is_known_to_be_small_is_equivalent(low, high, expected):
    assert claims.verdict(low, high, ">", 0, claims.EQUIVALENT) == expected


def test_only_differences_in_precision_can_be_equivalent():
    table = table_of(planted(ojfa=FLAT))
    equivalent = table[table["verdict"] == "equivalent"]
    assert set(equivalent["metric"]) == {"precision"}
    assert set(equivalent["rule"]) == {"> 0", "< 0"}


def test_getting_better_with_depth_is_stable_and_dropping_by_half_the_mean_is_not():
    rising = [0.1, 0.2, 0.4, 0.5, 0.6, 0.7]
    for ojfa, drop, expected in ((rising, 0, "supported"), (rising[::-1], 0.6 / np.mean(rising), "contradicted")):
        found = row(table_of(planted(ojfa=ojfa)), "C6", "largest_drop")
        assert found["estimate"] == pytest.approx(drop, abs=0.05)
        assert found["verdict"] == expected


def test_c2_rests_on_the_median_where_one_jump_is_catastrophic():
    """Five others as good as OJFA but one, whose surprisal is a hundred times worse: the mean says that OJFA wins."""
    grids, rng = planted(ojfa=FLAT), np.random.default_rng(0)
    grids.arbitrary[SURPRISAL, 0] += 300
    grids.arbitrary[SURPRISAL, [1, 3, 4, 5]] += rng.normal(0, 0.1, (4, 6, 500))
    grids.arbitrary[CORRECT, [0, 1, 3, 4, 5]] = 0
    table = table_of(grids)
    assert row(table, "C2", "difference", "surprisal")["verdict"] == "supported"
    assert not row(table, "C2", "difference", "surprisal")["decides"]
    assert row(table, "C2", "difference_to_median", "surprisal")["verdict"] == "inconclusive"
    assert set(table.loc[table["claim"] == "C2", "claim_verdict"]) == {"inconclusive"}


def test_statements_beside_a_claim_do_not_decide_it():
    grids = planted(ojfa=FLAT, n_njtc=FLAT, constant_by_position=[0.9] * 6)
    table = table_of(grids)
    beside = table[(table["claim"] == "C5") & ~table["decides"] & table["rule"].notna()]
    assert set(beside["rule"]) >= {"> 0.8", "> 0.9", "> 0.95", "< 0.25"}
    assert "inconclusive" in set(beside["verdict"])  # nothing is above such a floor
    assert set(table.loc[table["claim"] == "C5", "claim_verdict"]) == {"supported"}
    assert (table["decides"] == table["p_holm"].notna())[table["claim"] != "C1"].all()


def test_what_is_kept_above_the_floor_is_less_than_what_is_kept():
    grids = planted(ojfa=[0.36] * 6, n_njtc=[0.4] * 6, constant_by_position=[0.3] * 6)
    table = table_of(grids)
    assert row(table, "C5", "kept")["estimate"] == pytest.approx(0.9, abs=0.02)
    above = table[(table["statistic"] == "kept_above_floor") & (table["metric"] == "precision")]
    assert above["estimate"].tolist() == pytest.approx([0.6] * 3, abs=0.05)
    assert set(above["verdict"]) == {"contradicted"}


def test_verdicts_without_position_0_are_of_the_other_sentences_alone():
    grids = planted(ojfa=FLAT, joint=[0.3] * 6)
    first = grids.positions == 0
    for name in ("joint", "ojfa"):
        grids.methods[name][CORRECT][:, first] = name == "joint"
        grids.methods[name][SURPRISAL][:, first] = 0 if name == "joint" else 9
    verdicts = whole_table_of(grids).groupby(["positions", "claim"])["claim_verdict"].first()
    assert verdicts["all", "C3"] == "contradicted"
    assert verdicts["1+", "C3"] == "supported"
    assert verdicts["all", "C1"] == verdicts["1+", "C1"]
    alone = grids.where(~first)
    alone.positions = np.zeros(len(alone.sentences))
    found = whole_table_of(alone)
    assert set(found["positions"]) == {"all"}  # nothing is left without position 0
    later = whole_table_of(grids).query("positions == '1+'").drop(columns="positions").reset_index(drop=True)
    pd.testing.assert_frame_equal(found.drop(columns="positions"), later)


def test_holm_is_that_of_plain_steps():
    """From the smallest p on: each times how many are left, and no smaller than the one before."""
    rng = np.random.default_rng(0)
    for p in (rng.random(5) ** 3, np.array([0.02, 0.02]), np.array([0.03, 0.01, 0.9]), np.array([0.2])):
        expected, last = {}, 0.0
        for left, i in zip(range(len(p), 0, -1), sorted(range(len(p)), key=lambda i: p[i]), strict=True):
            last = expected[i] = max(last, min(1, left * p[i]))
        np.testing.assert_allclose(claims.holm(p), [expected[i] for i in range(len(p))])


def test_a_claim_of_two_statements_needs_more_to_be_contradicted_by_one():
    """At a p of 0.03 one statement alone is contradicted; as one of two it is not enough for the claim."""
    table = pd.DataFrame({"verdict": ["contradicted", "supported"], "p": [0.03, 0.6]})
    assert claims._claim_verdict(table.assign(p_holm=claims.holm(table["p"].to_numpy()))) == "inconclusive"
    assert claims._claim_verdict(table.assign(p_holm=table["p"])) == "contradicted"
