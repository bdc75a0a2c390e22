"""Claims against a naive bootstrap, against truths planted in synthetic evaluations, and against their rules."""

from copy import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from onejump.analysis import claims
from onejump.analysis.reading import EvaluationGrids
from onejump.exits.columns import EVERY_SENTENCE_METHODS, JUMP_METHODS, METRICS, REFERENCE_METHODS
from onejump.exits.evaluation import JumpExits, evaluate_jumps
from onejump.exits.references import evaluate_references
from onejump.files.tables import write_table
from onejump.jumps.exact import fit_exact
from onejump.jumps.moments import Moments
from onejump.models.unembedding import Unembedding

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


def table_of(grids, parameters=PARAMETERS, seed: int = 0) -> pd.DataFrame:
    return claims.claims_table(grids, OJFA, parameters, seed)


def row(table: pd.DataFrame, claim: str, statistic: str, metric: str = "precision") -> pd.Series:
    found = table[(table["claim"] == claim) & (table["statistic"] == statistic) & (table["metric"] == metric)]
    assert found["level"].isna().sum() == 1
    return found[found["level"].isna()].iloc[0]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(claims, "RESAMPLES", 400)


# ------------------------------------------------------------------------------------------------- the naive bootstrap


def naive_statistics(methods: dict, transfer: np.ndarray) -> dict:
    """Every statistic from rows that are there as often as drawn: methods[name][metric, level, row], by plain loops."""
    found = {}
    for metric, m in (("precision", CORRECT), ("surprisal", SURPRISAL)):
        means = {name: [float(np.mean(values[m, k])) for k in range(K)] for name, values in methods.items()}
        ojfa = means["ojfa"]
        singles = [float(np.mean([np.mean(transfer[m, jump, k]) for k in range(K)])) for jump in range(K)]
        others = [value for jump, value in enumerate(singles) if jump != OJFA]
        found["C2", "difference", metric, None] = singles[OJFA] - sum(others) / len(others)
        found["C3", "difference", metric, None] = np.mean(ojfa) - np.mean(means["joint"])
        by_level = [a - b for a, b in zip(ojfa, means["identity"], strict=True)]
        found["C4", "early_difference", metric, None] = by_level[0]  # a third of five levels is one
        found["C4", "late_difference", metric, None] = by_level[4]
        for k in range(K):
            found["C4", "difference", metric, k] = by_level[k]
        found["C5", "difference", metric, None] = np.mean(ojfa) - np.mean(means["n_njtc"])
        if metric == "precision":
            found["C2", "rank", metric, None] = 1 + sum(value > singles[OJFA] + 1e-12 for value in others)
            crossing = K
            while crossing > 0 and by_level[crossing - 1] <= 0:
                crossing -= 1
            found["C4", "crossing_level", metric, None] = crossing
            lost = [(b - a) / np.mean(means["n_njtc"]) for a, b in zip(ojfa, means["n_njtc"], strict=True)]
            found["C5", "kept", metric, None] = np.mean(ojfa) / np.mean(means["n_njtc"])
            found["C5", "worst_loss", metric, None] = lost
            found["C5", "worst_level", metric, None] = lost.index(max(lost))
            found["C6", "relative_range", metric, None] = [value / np.mean(ojfa) for value in ojfa]
            found["C6", "range", metric, None] = ojfa
    return found


def test_every_estimate_and_interval_is_that_of_a_bootstrap_that_copies_rows():
    grids = random_grids(0)
    table = table_of(grids, seed=7)
    test_rng, transfer_rng = np.random.default_rng(7), np.random.default_rng(7)
    resampled = []
    for _ in range(400):
        drawn = np.repeat(np.arange(N), test_rng.multinomial(N, np.full(N, 1 / N)))
        some = np.repeat(np.arange(TRANSFER), transfer_rng.multinomial(TRANSFER, np.full(TRANSFER, 1 / TRANSFER)))
        methods = {name: values[:, :, drawn] for name, values in grids.methods.items()}
        resampled.append(naive_statistics(methods, grids.arbitrary[..., some]))
    estimates = naive_statistics(grids.methods, grids.arbitrary)
    assert len(table) == 1 + len(estimates)
    for found in table[table["claim"] != "C1"].itertuples():
        key = (found.claim, found.statistic, found.metric, None if pd.isna(found.level) else found.level)
        estimate, values = estimates[key], np.array([one[key] for one in resampled])
        if values.ndim == 1:
            low, high = np.percentile(values, [2.5, 97.5])
        else:
            moved = values - np.array(estimate)
            if found.statistic == "worst_loss":
                estimate, reach = max(estimate), [max(abs(level) for level in one) for one in moved]
            else:
                estimate, reach = max(estimate) - min(estimate), [max(one) - min(one) for one in moved]
            reach = np.percentile(reach, 95)
            low, high = estimate - reach, estimate + reach
        assert [found.estimate, found.low, found.high] == pytest.approx([estimate, low, high], rel=1e-9, abs=1e-12), key


def test_intervals_cover_the_truth_in_95_of_100_samples():
    truth = {
        ("C2", "difference", "precision"): 0.0,
        ("C3", "difference", "precision"): 0.0,
        ("C3", "difference", "surprisal"): 0.0,
        ("C4", "late_difference", "precision"): 0.0,
        ("C5", "kept", "precision"): 1.0,
        ("C5", "worst_loss", "precision"): 0.0,
        ("C6", "relative_range", "precision"): 0.0,
    }
    covered = dict.fromkeys(truth, 0)
    for sample in range(200):
        table = table_of(random_grids(sample + 1, n=120, n_levels=4, transfer=80), seed=sample)
        for key, value in truth.items():
            found = row(table, *key)
            covered[key] += found["low"] <= value <= found["high"]
    for key, count in covered.items():
        # Three standard errors of a share of 200 are 0.05. Extremes may be covered more often.
        assert 0.90 <= count / 200 <= (1.0 if key[1] in claims.EXTREMES else 0.995), (key, count)


# ---------------------------------------------------------------------------------------------------- planted verdicts


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
        ("C5", {"ojfa": [0.5, 0.5, 0.5, 0.5, 0.5, 0.3], "n_njtc": [0.5] * 6}),
        ("C6", {"ojfa": [0.2, 0.3, 0.4, 0.5, 0.6, 0.6]}),
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


def test_a_tie_in_every_sentence_differs_by_exactly_zero_and_decides_nothing():
    table = table_of(planted(ojfa=[0.1, 0.2, 0.3, 0.35, 0.47, 0.55]))  # joint and all single jumps are OJFA itself
    for claim in ("C2", "C3"):
        for metric in ("precision", "surprisal"):
            found = row(table, claim, "difference", metric)
            assert (found["estimate"], found["low"], found["high"]) == (0, 0, 0)
            assert found["verdict"] == found["claim_verdict"] == "inconclusive"
    assert row(table, "C2", "rank")[["estimate", "low", "high"]].tolist() == [1, 1, 1]


def test_better_precision_at_worse_surprisal_is_no_support():
    grids = planted(ojfa=FLAT, joint=[0.3] * 6)
    assert row(table_of(grids), "C3", "difference")["claim_verdict"] == "supported"
    grids.methods["joint"][SURPRISAL] -= 3
    table = table_of(grids)
    assert row(table, "C3", "difference")["verdict"] == "supported"
    assert row(table, "C3", "difference", "surprisal")["verdict"] == "contradicted"
    assert row(table, "C3", "difference")["claim_verdict"] == "contradicted"


class Synthetic:
    """Hidden states that are the final representation and some noise, the same at every level: activations to exit."""

    def __init__(self, n: int, n_blocks: int = 3, hidden_size: int = 12) -> None:
        generator = torch.Generator().manual_seed(n)
        self.n_blocks, self.sentence_ids = n_blocks, torch.arange(n, dtype=torch.int32)
        self.positions = self.token_ids = self.sentence_ids % 7
        self._final = torch.randn(n, hidden_size, generator=generator)
        self._levels = [self._final + 0.1 * torch.randn(n, hidden_size, generator=generator) for _ in range(n_blocks)]

    def __len__(self) -> int:
        return len(self.sentence_ids)

    def rows(self, first: int, last: int) -> "Synthetic":
        part = copy(self)
        part.sentence_ids, part._final = self.sentence_ids[first:last], self._final[first:last]
        part.positions = part.token_ids = self.positions[first:last]
        part._levels = [level[first:last] for level in self._levels]
        return part

    def level(self, level: int) -> torch.Tensor:
        return [*self._levels, self._final][level]


def claims_of_a_study(folder, wrong: bool) -> pd.DataFrame:
    """Fit, evaluate and assess one jump for all levels; wrong: with the rows of its B shuffled."""
    train, test = Synthetic(2000), Synthetic(1000)
    unembedding = Unembedding(
        "rms", torch.ones(12), None, 1e-5, torch.randn(40, 12, generator=torch.Generator().manual_seed(0)), None
    )
    y = train.level(3)
    parts = [[Moments.of(train.level(k)[rows], y[rows]) for rows in (slice(1800), slice(1800, None))] for k in range(3)]
    jumps = [fit_exact(fit, validation, rank=11).map.jump().fold() for fit, validation in parts]
    if wrong:
        jumps[OJFA] = replace(jumps[OJFA], B=jumps[OJFA].B.roll(1, 0))
    cpu = torch.device("cpu")
    evaluation, _ = evaluate_jumps(test, unembedding, JumpExits(jumps, OJFA, jumps[0]), "pre_norm", 300, cpu)
    write_table(folder / "evaluation.parquet", evaluation)
    write_table(folder / "references.parquet", evaluate_references(train, test, unembedding, cpu))
    methods = {folder / "references.parquet": REFERENCE_METHODS, folder / "evaluation.parquet": JUMP_METHODS}
    return table_of(EvaluationGrids(methods, 3))


def test_a_wrong_jump_turns_c5_from_supported_to_contradicted(tmp_path):
    right, wrong = (claims_of_a_study(tmp_path, wrong) for wrong in (False, True))
    assert row(right, "C5", "kept")["claim_verdict"] == "supported"
    assert row(right, "C5", "kept")["estimate"] > 0.9 > 0.5 > row(wrong, "C5", "kept")["estimate"]
    assert row(wrong, "C5", "kept")["claim_verdict"] == "contradicted"


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
    for claim, statistic in (("C5", "kept"), ("C5", "worst_loss"), ("C6", "relative_range")):
        found = row(table, claim, statistic)
        assert np.isnan(found["estimate"])
        assert found["verdict"] == found["claim_verdict"] == "inconclusive"


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


def test_a_seed_determines_the_table():
    grids = random_grids(0)
    pd.testing.assert_frame_equal(table_of(grids, seed=1), table_of(grids, seed=1))
    assert not table_of(grids, seed=1)["low"].equals(table_of(grids, seed=2)["low"])
