"""The bootstrap against theory, and every number of the summary against the stages' files."""

import functools
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from tiny_models import make_dump

from onejump.activations.reading import Activations
from onejump.analysis import bootstrap
from onejump.analysis.bootstrap import interval, resampled_means
from onejump.analysis.claims import claims_table
from onejump.analysis.dynamic_exit import METHODS, Costs, dynamic_exit_table
from onejump.analysis.grids import EvaluationGrids
from onejump.analysis.oracle import evaluate_oracle
from onejump.analysis.ranks import evaluate_ranks, read_ridges
from onejump.analysis.scores import score_jumps, scores_table
from onejump.analysis.selection import select_jump
from onejump.analysis.summary import BRANCH_TABLES, TABLES, _across_seeds, _oracle_table, summarise
from onejump.exits.evaluation import evaluate_jumps, evaluate_references
from onejump.exits.methods import JumpExits
from onejump.files.atomic import OnejumpError, read_json, write_json
from onejump.files.tables import read_table, write_table
from onejump.files.tensors import write_tensors
from onejump.jumps.fitting import fit_jump
from onejump.jumps.jtc import fit_jtc
from onejump.jumps.storage import load_folded_jumps, load_joint_jump, open_jtc, save_jump
from onejump.models.unembedding import Unembedding

torch.set_num_threads(1)  # for matrices this small, threads only wait for each other
CPU = torch.device("cpu")
K, N_TRAIN, N_TEST, TRANSFER = 3, 80, 25, 12
VARIANTS = {
    "paper": {"fit": "adam", "target": "pre_norm", "positions": "all", "score_levels": "1..K", "rank": 2},
    "exact": {"fit": "exact", "target": "post_norm", "positions": "not_first", "score_levels": "0..K-1", "rank": 3},
}
VARIANTS = {name: choices | {"joint_batches": "mixed"} for name, choices in VARIANTS.items()}
CONFIG = {
    "models": {"tiny": {}},
    "seeds": [0, 1],
    "variants": VARIANTS,
    "evaluation": {"transfer_sentences": TRANSFER},
}

# --------------------------------------------------------------------------------------------------------- bootstrap


def all_means(values: np.ndarray, seed: int, resamples: int = bootstrap.RESAMPLES) -> np.ndarray:
    return np.concatenate(list(resampled_means(values, seed, resamples)))


def naive_means(values: np.ndarray, seed: int, resamples: int = bootstrap.RESAMPLES) -> np.ndarray:
    """One resample after another: how often each row is drawn, and the mean of the rows drawn."""
    generator, n = np.random.default_rng(seed), len(values)
    means = []
    for _ in range(resamples):
        drawn = np.repeat(np.arange(n), generator.multinomial(n, np.full(n, 1 / n)))
        means.append(values[drawn].mean(0))
    return np.array(means)


def test_each_mean_is_over_as_many_rows_drawn_with_replacement():
    values = np.random.default_rng(0).normal(size=(30, 2, 3))
    found = all_means(values, seed=5, resamples=300)
    assert found.shape == (300, 2, 3) and found.dtype == np.float64
    np.testing.assert_allclose(found, naive_means(values, seed=5, resamples=300), rtol=1e-9, atol=1e-12)


def test_the_means_have_the_mean_and_the_variance_that_theory_gives():
    values = np.random.default_rng(0).gamma(2.0, size=40)
    means = all_means(values, seed=1, resamples=20_000)
    standard_error = values.std() / np.sqrt(40)
    assert means.mean() == pytest.approx(values.mean(), abs=4 * standard_error / np.sqrt(20_000))
    assert means.std() == pytest.approx(standard_error, rel=0.02)  # four standard errors of a standard deviation


def test_a_seed_determines_the_resamples():
    values = np.arange(20.0)
    assert np.array_equal(all_means(values, 3, 50), all_means(values, 3, 50))
    assert not np.array_equal(all_means(values, 3, 50), all_means(values, 4, 50))


@pytest.mark.parametrize("block", [1, 7, 999, 5000])
def test_the_size_of_a_block_does_not_change_the_resamples(monkeypatch, block):
    values = np.random.default_rng(0).normal(size=(15, 2))
    expected = all_means(values, 3, 1000)
    monkeypatch.setattr(bootstrap, "BLOCK", block)
    blocks = list(resampled_means(values, 3, 1000))
    assert max(len(part) for part in blocks) == min(block, 1000)
    assert sum(len(part) for part in blocks) == 1000
    np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=1e-12, atol=1e-14)


def test_columns_share_each_resample_so_that_a_constant_difference_has_no_spread():
    first = np.random.default_rng(0).normal(size=50)
    means = all_means(np.stack([first, first + 2.0], 1), seed=0, resamples=500)
    assert means[:, 0].std() > 0.05
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 2.0, rtol=1e-12)


def test_an_interval_is_the_quantiles_of_the_resampled_means():
    values = np.random.default_rng(0).normal(size=(30, 2))
    for level, (lowest, highest) in {0.95: (2.5, 97.5), 0.8: (10, 90)}.items():
        low, high = interval(values, 4, level)
        means = naive_means(values, 4)
        np.testing.assert_allclose(low, np.percentile(means, lowest, axis=0), rtol=1e-9)
        np.testing.assert_allclose(high, np.percentile(means, highest, axis=0), rtol=1e-9)


def test_a_95_percent_interval_covers_the_true_mean_in_about_95_of_100_samples():
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(100, 1000))  # 1,000 samples of 100 rows
    low, high = interval(samples, seed=0)
    covered = ((low <= 3.0) & (high >= 3.0)).mean()
    assert 0.92 < covered < 0.97  # percentile intervals of 100 rows cover a little less than 95 %


def test_an_interval_of_equal_values_has_no_width():
    low, high = interval(np.full((20, 3), 0.25), seed=0)
    np.testing.assert_allclose([low, high], 0.25, rtol=1e-12)


# ------------------------------------------------------------------------------------------------------------- study


def run_variant(branch: Path, dump, seed: int, variant: str) -> None:
    """All stages of a variant on dumped activations, as the workflow runs them."""
    choices, unembedding, folder = VARIANTS[variant], Unembedding.load(dump.unembedding), branch / variant
    target, positions = choices["target"], choices["positions"]
    train = Activations(dump.train, dump.positions, unembedding, "train", positions)
    test = Activations(dump.test, dump.positions, unembedding, "test", positions)
    jtc = branch / "jtc" / f"{target}.{positions}.safetensors"
    write_tensors(jtc, *fit_jtc(train, unembedding, target, CPU))
    paths = [folder / "jumps" / f"level-{level:02d}.safetensors" for level in range(K)]
    shared = folder / "jumps" / "joint.safetensors"
    for level, path in [*enumerate(paths), (None, shared)]:
        how = (choices["fit"], target, choices["rank"], "mixed", seed, CPU)
        save_jump(path, *fit_jump(train, unembedding, level, *how))
    jumps = load_folded_jumps(paths, unembedding, target)
    cosines = score_jumps(train, unembedding, jumps, target, CPU)
    write_table(folder / "scores.parquet", scores_table(cosines))
    selection = select_jump(cosines, choices["score_levels"], seed)
    write_json(folder / "selection.json", selection)
    joint, ojfa = load_joint_jump(shared, unembedding, target), selection["ojfa"]
    evaluation, transfer = evaluate_jumps(test, unembedding, JumpExits(jumps, ojfa, joint), target, TRANSFER, CPU)
    write_table(folder / "evaluation.parquet", evaluation)
    write_table(folder / "transfer.parquet", transfer)
    references = evaluate_references(test, unembedding, open_jtc(jtc, unembedding, target), target, CPU)
    arguments = (cosines, choices["score_levels"], target, CPU)
    oracle = evaluate_oracle(train, unembedding, jumps, joint, *arguments)
    write_table(folder / "oracle.parquet", oracle)
    of_target = branch / "references" / f"{target}.{positions}.parquet"
    write_table(of_target, references)
    parameters = {"ojfa": 1, "n_njtc": K}
    if choices["fit"] == "exact":
        arguments = (*read_ridges([*paths, shared]), target, choices["score_levels"], TRANSFER, CPU)
        ranks = evaluate_ranks(train, test, unembedding, *arguments)
        write_table(folder / "ranks.parquet", pa.Table.from_pandas(ranks, preserve_index=False))
    claims = claims_table(EvaluationGrids(of_target, folder / "evaluation.parquet", K), ojfa, parameters, seed)
    write_table(folder / "claims.parquet", pa.Table.from_pandas(claims, preserve_index=False))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A whole study of a tiny model: two seeds, two variants, every file written by its stage."""
    folder = tmp_path_factory.mktemp("results")
    for seed in CONFIG["seeds"]:
        made = make_dump(tmp_path_factory.mktemp("dump"), N_TRAIN, N_TEST, seed=seed)
        branch = folder / "tiny" / f"seed-{seed}"
        branch.mkdir(parents=True)
        shutil.copy(made.positions, branch / "positions.parquet")
        shutil.copy(made.unembedding, folder / "tiny" / "unembedding.safetensors")
        for variant in VARIANTS:
            run_variant(branch, made, seed, variant)
    return folder


@pytest.fixture(scope="module")
def summary(results, tmp_path_factory):
    """A function that reads a table of the study's summary, one variant of one seed of it."""
    folder = tmp_path_factory.mktemp("summary")
    summarise(results, CONFIG, folder)

    @functools.cache
    def read(name: str, seed: int | None = None, variant: str | None = None) -> pd.DataFrame:
        table = pd.read_csv(folder / f"{name}.csv", float_precision="round_trip")
        table = table if seed is None else table[table["seed"] == seed]
        table = table if variant is None else table[table["variant"] == variant]
        return table.reset_index(drop=True)

    return SimpleNamespace(read=read, folder=folder)


BRANCHES = pytest.mark.parametrize(("seed", "variant"), [(0, "paper"), (0, "exact"), (1, "paper"), (1, "exact")])


def read_evaluations(results: Path, seed: int, variant: str) -> pd.DataFrame:
    """All evaluations of a variant as one table, by plain pandas."""
    branch, choices = results / "tiny" / f"seed-{seed}", VARIANTS[variant]
    references = branch / "references" / f"{choices['target']}.{choices['positions']}.parquet"
    parts = [pd.read_parquet(path) for path in (references, branch / variant / "evaluation.parquet")]
    return pd.concat(parts).astype({"method": str, "surprisal": float, "correct": float, "correct_at_5": float})


def read_ojfa_of(results: Path, seed: int, variant: str) -> int:
    return json.loads((results / "tiny" / f"seed-{seed}" / variant / "selection.json").read_text())["ojfa"]


def read_facts(path: Path) -> tuple[dict, int]:
    """Metadata of a safetensors file, and how many numbers its tensors hold."""
    with safe_open(path, "np") as file:
        return file.metadata(), sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118


def test_the_summary_has_all_tables_and_nothing_else(summary):
    assert {path.name for path in summary.folder.iterdir()} == {f"{name}.csv" for name in TABLES}
    for name in set(BRANCH_TABLES) - {"models"}:
        table = summary.read(name)
        assert list(table.columns[:3]) == ["model", "seed", "variant"]
        found = set(table[["seed", "variant"]].itertuples(index=False, name=None))
        by_fit = {"curves": ["paper"], "ranks": ["exact"]}
        assert found == set(itertools.product(CONFIG["seeds"], by_fit.get(name, VARIANTS)))


def test_models_csv_counts_what_the_files_hold(summary, results):
    facts, _ = read_facts(results / "tiny" / "unembedding.safetensors")
    table = summary.read("models")
    assert table["seed"].tolist() == [0, 1]
    for row in table.itertuples():
        assert (row.model, row.name, row.revision, row.dtype) == ("tiny", "model", facts["revision"], "float32")
        assert (row.n_blocks, row.hidden_size, row.vocabulary) == (K, 32, 97)
        assert row.parameters == int(facts["parameters"])
        assert (row.n_train, row.n_test, row.transfer_sentences) == (N_TRAIN, N_TEST, TRANSFER)


@BRANCHES
def test_levels_csv_is_the_means_and_intervals_of_the_evaluations(summary, results, seed, variant):
    rows = read_evaluations(results, seed, variant)
    table = summary.read("levels", seed, variant)
    assert len(table) == 5 * K
    names = {
        "precision": "correct",
        "precision_at_5": "correct_at_5",
        "surprisal": "surprisal",
        "exit_surprisal": "exit_surprisal",
        "kl": "kl",
        "confidence": "confidence",
    }
    for found in table.itertuples():
        some = rows[(rows["method"] == found.method) & (rows["level"] == found.level)]
        assert found.n == len(some) == some["sentence_id"].nunique()
        for column, name in names.items():
            assert getattr(found, column) == pytest.approx(some[name].astype(float).mean(), rel=1e-9, abs=1e-12)
        for column in ("precision", "surprisal"):
            low, high = np.percentile(naive_means(some[names[column]].to_numpy(), seed=0), [2.5, 97.5])
            assert getattr(found, f"{column}_low") == pytest.approx(low, rel=1e-9, abs=1e-12)
            assert getattr(found, f"{column}_high") == pytest.approx(high, rel=1e-9, abs=1e-12)
    every = N_TEST if variant == "paper" else table["n"].iloc[0]
    assert set(table["n"]) == {every} and TRANSFER < every <= N_TEST


@BRANCHES
def test_methods_csv_is_the_means_over_all_exit_levels(summary, results, seed, variant):
    rows, ojfa = read_evaluations(results, seed, variant), read_ojfa_of(results, seed, variant)
    table = summary.read("methods", seed, variant)
    assert table["method"].tolist() == ["identity", "n_njtc", "ojfa", "joint", "jtc", "arbitrary"]
    for found in table.itertuples():
        some = rows[rows["method"] == found.method]
        if found.method == "arbitrary":
            some = some[some["jump"] != ojfa]
        for column, name in (("precision", "correct"), ("surprisal", "surprisal")):
            by_sentence = some.groupby("sentence_id", sort=False)[name].mean().to_numpy()
            assert getattr(found, column) == pytest.approx(some[name].mean(), rel=1e-9)
            low, high = np.percentile(naive_means(by_sentence, seed=0), [2.5, 97.5])
            assert getattr(found, f"{column}_low") == pytest.approx(low, rel=1e-9, abs=1e-12)
            assert getattr(found, f"{column}_high") == pytest.approx(high, rel=1e-9, abs=1e-12)
        by_level = some.groupby("level")["correct"].mean()
        assert found.precision_at_5 == pytest.approx(some["correct_at_5"].mean(), rel=1e-9)
        assert found.worst_precision == pytest.approx(by_level.min(), rel=1e-9)
        assert by_level[found.worst_level] == pytest.approx(by_level.min(), rel=1e-9)


@BRANCHES
def test_methods_csv_counts_parameters_in_the_tensors(summary, results, seed, variant):
    folder = results / "tiny" / f"seed-{seed}"
    choices = VARIANTS[variant]
    jumps = [read_facts(folder / variant / "jumps" / f"level-{level:02d}.safetensors")[1] for level in range(K)]
    joint = read_facts(folder / variant / "jumps" / "joint.safetensors")[1]
    jtc = read_facts(folder / "jtc" / f"{choices['target']}.{choices['positions']}.safetensors")[1]
    found = summary.read("methods", seed, variant).set_index("method")["parameters"].to_dict()
    one = 2 * 32 * choices["rank"] + 4 * 32
    assert jumps == [one] * K and joint == one and jtc == K * (32 * 32 + 32)
    expected = {"identity": 0, "n_njtc": K * one, "ojfa": one, "joint": one, "jtc": jtc, "arbitrary": one}
    assert found == expected


@BRANCHES
def test_single_jumps_csv_compares_jumps_on_the_transfer_sentences(summary, results, seed, variant):
    rows, ojfa = read_evaluations(results, seed, variant), read_ojfa_of(results, seed, variant)
    table = summary.read("single_jumps", seed, variant)
    assert list(zip(table["metric"], table["level"], strict=True)) == [
        (metric, level) for metric in ("precision", "surprisal") for level in range(K)
    ]
    transfer = set(rows.loc[rows["method"] == "arbitrary", "sentence_id"])
    assert len(transfer) == TRANSFER
    for found in table.itertuples():
        name = {"precision": "correct", "surprisal": "surprisal"}[found.metric]
        some = rows[(rows["level"] == found.level) & rows["sentence_id"].isin(transfer)]
        means = some[some["method"] == "arbitrary"].groupby("jump")[name].mean()
        others = means.drop(ojfa)
        assert len(others) == K - 1
        assert found.ojfa == pytest.approx(means[ojfa], rel=1e-9)
        assert found.joint == pytest.approx(some.loc[some["method"] == "joint", name].mean(), rel=1e-9)
        assert found.arbitrary_mean == pytest.approx(others.mean(), rel=1e-9)
        for q in (5, 25, 75, 95):
            value = getattr(found, f"arbitrary_q{q:02d}")
            assert value == pytest.approx(others.quantile(q / 100), rel=1e-9, abs=1e-12)


@BRANCHES
def test_dynamic_exit_csv_is_the_table_of_the_evaluations(summary, results, seed, variant):
    rows = read_evaluations(results, seed, variant)
    facts, _ = read_facts(results / "tiny" / "unembedding.safetensors")

    def grid(method: str, metric: str) -> np.ndarray:
        some = rows[rows["method"] == method]
        return some.pivot(index="level", columns="sentence_id", values=metric)[some["sentence_id"].unique()].to_numpy()

    blocks = int(facts["block_parameters"])
    assert K * blocks + 32 * 97 < int(facts["parameters"]) < K * blocks + 3 * 32 * 97
    costs = Costs(K, 32, 97, VARIANTS[variant]["rank"], blocks)
    metrics = ({method: grid(method, metric) for method in METHODS} for metric in ("correct", "confidence"))
    expected = dynamic_exit_table(*metrics, costs)
    found = summary.read("dynamic_exit", seed, variant)[expected.columns]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9)


@BRANCHES
def test_shared_jumps_csv_sets_error_beside_precision(summary, results, seed, variant):
    oracle = pd.read_parquet(results / "tiny" / f"seed-{seed}" / variant / "oracle.parquet")
    methods, ojfa = summary.read("methods", seed, variant).set_index("method"), read_ojfa_of(results, seed, variant)
    table = summary.read("shared_jumps", seed, variant).set_index("method")
    assert table.index.tolist() == ["ojfa", "joint"] and table.loc["ojfa", "jump"] == ojfa
    for method, own in (("ojfa", oracle["jump"] == ojfa), ("joint", oracle["jump"].isna())):
        row, (facts,) = table.loc[method], oracle[own].itertuples()
        assert (row["mse"], row["explained"]) == pytest.approx((facts.mse, facts.explained), rel=1e-9)
        assert row["held_out_precision"] == pytest.approx(facts.precision, rel=1e-9)
        assert row["precision"] == pytest.approx(methods.loc[method, "precision"], rel=1e-9)
        assert row["surprisal"] == pytest.approx(methods.loc[method, "surprisal"], rel=1e-9)


@pytest.mark.parametrize("seed", CONFIG["seeds"])
def test_ranks_csv_passes_through_the_variants_own_results(summary, results, seed):
    found = summary.read("ranks", seed, "exact")
    own = found[found["rank"] == VARIANTS["exact"]["rank"]].set_index("method")
    rows = read_evaluations(results, seed, "exact")
    transfer = rows.loc[rows["method"] == "arbitrary", "sentence_id"].unique()
    means = rows[rows["sentence_id"].isin(transfer)].groupby("method")[["correct", "surprisal"]].mean()
    for method in ("n_njtc", "ojfa", "joint"):
        assert own.loc[method, "precision"] == pytest.approx(means.loc[method, "correct"], rel=1e-6)
        assert own.loc[method, "surprisal"] == pytest.approx(means.loc[method, "surprisal"], rel=1e-4)
    assert own.loc["ojfa", "jump"] == read_ojfa_of(results, seed, "exact")


@BRANCHES
def test_transfer_csv_is_the_grid_of_the_arbitrary_jumps(summary, results, seed, variant):
    rows = read_evaluations(results, seed, variant).query("method == 'arbitrary'")
    expected = rows.groupby(["jump", "level"])[["correct", "surprisal"]].mean()
    table = summary.read("transfer", seed, variant).set_index(["jump", "level"])
    assert sorted(table.index) == [(m, k) for m in range(K) for k in range(K)]
    for cell, found in table.iterrows():
        assert found["precision"] == pytest.approx(expected.loc[cell, "correct"], rel=1e-9)
        assert found["surprisal"] == pytest.approx(expected.loc[cell, "surprisal"], rel=1e-6)


@BRANCHES
def test_jumps_csv_is_what_the_jumps_files_say(summary, results, seed, variant):
    table = summary.read("jumps", seed, variant)
    assert table["jump"].tolist() == ["0", "1", "2", "joint"]
    for found in table.itertuples():
        name = "joint" if found.jump == "joint" else f"level-{int(found.jump):02d}"
        facts, size = read_facts(results / "tiny" / f"seed-{seed}" / variant / "jumps" / f"{name}.safetensors")
        assert facts["level"] == found.jump
        assert (found.fit, found.target) == (facts["fit"], facts["target"]) == tuple(VARIANTS[variant].values())[:2]
        assert (found.rank, found.n_rows, found.parameters) == (int(facts["rank"]), int(facts["n_rows"]), size)
        for column in ("train_mse", "validation_mse", "optimum_mse", "mean_mse", "gap"):
            assert getattr(found, column) == float(facts[column])
        gap = (found.train_mse - found.optimum_mse) / (found.mean_mse - found.optimum_mse)
        assert found.gap == pytest.approx(gap, rel=1e-9)
        for column in ("ridge", "best_epoch"):
            value = getattr(found, column)
            assert value == float(facts[column]) if column in facts else np.isnan(value)
        assert ("ridge" in facts, "best_epoch" in facts) == (variant == "exact", variant == "paper")


@pytest.mark.parametrize("seed", CONFIG["seeds"])
def test_curves_csv_is_each_adam_fits_course_towards_its_optimum(summary, results, seed):
    table = summary.read("curves", seed, "paper")
    for jump, found in table.groupby("jump"):
        name = "joint" if jump == "joint" else f"level-{int(jump):02d}"
        facts, _ = read_facts(results / "tiny" / f"seed-{seed}" / "paper" / "jumps" / f"{name}.safetensors")
        errors = json.loads(facts["train_curve"])
        optimum, mean = float(facts["optimum_mse"]), float(facts["mean_mse"])
        assert found["step"].tolist() == list(range(1, len(errors) + 1))
        np.testing.assert_allclose(found["gap"], [(e - optimum) / (mean - optimum) for e in errors], rtol=1e-9)
        assert found["validation_mse"].tolist() == json.loads(facts["validation_curve"])
    assert set(table["jump"]) == {"0", "1", "2", "joint"}


@BRANCHES
def test_scores_csv_is_the_selection_and_its_scores_are_those_of_the_training_rows(summary, results, seed, variant):
    folder = results / "tiny" / f"seed-{seed}" / variant
    selection = json.loads((folder / "selection.json").read_text())
    table = summary.read("scores", seed, variant)
    assert table["jump"].tolist() == list(range(K))
    for column, key in (("score", "scores"), ("softmax", "softmax"), ("bootstrap_share", "bootstrap_share")):
        assert table[column].tolist() == selection[key]
    assert table["ojfa"].tolist() == [jump == selection["ojfa"] for jump in range(K)]
    assert table["score"].idxmax() == selection["ojfa"]
    left_out = 0 if VARIANTS[variant]["score_levels"] == "1..K" else K
    scores = pd.read_parquet(folder / "scores.parquet")
    means = scores[scores["level"] != left_out].groupby("jump")["signed_squared_cosine"].mean()
    np.testing.assert_allclose(table["score"], means, rtol=1e-5)


@BRANCHES
def test_claims_csv_is_what_the_claims_files_say(summary, results, seed, variant):
    expected = pd.read_parquet(results / "tiny" / f"seed-{seed}" / variant / "claims.parquet")
    found = summary.read("claims", seed, variant).drop(columns=["model", "seed", "variant"])
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-12)


@pytest.fixture
def claims_of_seeds():
    """A study's claims with a statistic that spreads over three seeds, and a verdict that two of them share."""
    verdicts = {"C2": ["supported"] * 3, "C3": ["supported", "supported", "contradicted"]}
    rows = [
        {"model": "m", "seed": seed, "variant": "v", "claim": claim, "statistic": "difference", "metric": metric}
        | {"level": np.nan, "estimate": value, "claim_verdict": verdicts[claim][seed]}
        for claim in verdicts
        for seed, value in enumerate([1.0, 2.0, 6.0])
        for metric in ("precision", "surprisal")
    ]
    scores = [
        {"model": "m", "seed": seed, "variant": "v", "jump": jump, "ojfa": jump == chosen, "bootstrap_share": share}
        for seed, (chosen, shares) in enumerate([(0, (0.9, 0.1)), (1, (0.3, 0.7)), (0, (0.6, 0.4))])
        for jump, share in enumerate(shares)
    ]
    return _across_seeds(pd.DataFrame(rows), pd.DataFrame(scores))


def test_seeds_that_agree_share_a_verdict_and_seeds_that_do_not_leave_it_open(claims_of_seeds):
    found = claims_of_seeds["verdicts"].set_index("claim")
    counts = ["seeds", "supported", "contradicted", "inconclusive"]
    assert found.loc["C2", ["verdict", *counts]].tolist() == ["supported", 3, 3, 0, 0]
    assert found.loc["C3", ["verdict", *counts]].tolist() == ["inconclusive", 3, 2, 1, 0]


def test_the_spread_is_that_of_the_estimates_over_seeds(claims_of_seeds):
    found = claims_of_seeds["spread"]
    assert len(found) == 4
    for row in found.itertuples():
        assert (row.seeds, row.mean, row.min, row.max) == (3, 3.0, 1.0, 6.0)
        assert row.sd == pytest.approx(np.sqrt(7))  # squares 4 + 1 + 9 over two


def test_chosen_counts_the_seeds_that_select_a_jump(claims_of_seeds):
    found = claims_of_seeds["chosen"].set_index("jump")
    assert found["chosen"].tolist() == [2, 1]
    assert found["seeds"].tolist() == [3, 3]
    np.testing.assert_allclose(found["bootstrap_share"], [0.6, 0.4])


def test_the_tables_across_seeds_have_each_model_and_variant(summary):
    assert len(summary.read("verdicts")) == 6 * len(VARIANTS)
    assert set(summary.read("verdicts")["seeds"]) == {2}
    assert len(summary.read("chosen")) == K * len(VARIANTS)
    assert (summary.read("chosen").groupby("variant")["chosen"].sum() == 2).all()
    assert len(summary.read("spread")) == len(summary.read("claims")) / 2


def test_score_quality_is_the_loss_of_the_jump_that_a_score_picks():
    oracle = pd.DataFrame(
        {
            "d_m": [0.1, 0.2, 0.3, 0.4],
            "cosine": [0.4, 0.3, 0.2, 0.1],
            "squared_cosine": [0.1, 0.4, 0.2, 0.3],
            "mse": [9.0, 1.0, 5.0, 3.0],
            "precision": [0.10, 0.40, 0.20, 0.30],
        }
    )
    transfer = pd.DataFrame(
        {
            "jump": np.repeat(range(4), 2),
            "level": [0, 1] * 4,
            "precision": [0.1, 0.3, 0.2, 0.4, 0.3, 0.3, 0.5, 0.5],
        }
    )
    found = _oracle_table(oracle, transfer).set_index("score")
    assert found["jump"].to_dict() == {"d_m": 3, "cosine": 0, "squared_cosine": 1, "mse": 1}
    assert set(found["oracle"]) == {1}
    np.testing.assert_allclose(found["regret"], [0.1, 0.3, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(found["test_regret"], [-0.2, 0.1, 0.0, 0.0], atol=1e-12)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with squared differences of ranks that sum to 6, 14, 0 and 0
    np.testing.assert_allclose(found["rank_correlation"], [0.4, -0.4, 1.0, 1.0], atol=1e-12)


@BRANCHES
def test_score_quality_csv_is_that_of_the_oracles_files(summary, results, seed, variant):
    oracle = pd.read_parquet(results / "tiny" / f"seed-{seed}" / variant / "oracle.parquet").dropna(subset="jump")
    found = summary.read("oracle", seed, variant).set_index("score")
    assert found.loc["d_m", "jump"] == read_ojfa_of(results, seed, variant)
    assert found.loc["mse", "jump"] == oracle["mse"].idxmin()
    assert (found["regret"] >= 0).all()
    assert set(found["oracle"]) == {oracle["precision"].idxmax()}


def test_a_study_of_exact_fits_alone_has_a_table_of_curves_without_rows(results, tmp_path):
    summarise(results, CONFIG | {"variants": {"exact": VARIANTS["exact"]}}, tmp_path)
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert list(curves.columns) == [
        "model",
        "seed",
        "variant",
        "jump",
        "step",
        "gap",
        "validation_mse",
        "validation_kl",
    ]
    assert len(curves) == 0


def test_the_same_files_give_the_same_bytes(results, summary, tmp_path):
    summarise(results, CONFIG, tmp_path)
    for name in TABLES:
        assert (tmp_path / f"{name}.csv").read_bytes() == (summary.folder / f"{name}.csv").read_bytes()


# ---------------------------------------------------------------------------------------------------------- refusals


ONE = CONFIG | {"seeds": [0], "variants": {"paper": VARIANTS["paper"]}}


@pytest.fixture
def own_results(results, tmp_path):
    """A copy of the study that a test may spoil."""
    shutil.copytree(results, tmp_path / "results")
    return tmp_path / "results"


@pytest.mark.parametrize(
    "name",
    [
        "tiny/unembedding.safetensors",
        "tiny/seed-0/positions.parquet",
        "tiny/seed-0/jtc/pre_norm.all.safetensors",
        "tiny/seed-0/paper/jumps/level-01.safetensors",
        "tiny/seed-0/paper/jumps/joint.safetensors",
        "tiny/seed-0/paper/selection.json",
        "tiny/seed-0/paper/evaluation.parquet",
        "tiny/seed-0/references/pre_norm.all.parquet",
        "tiny/seed-0/paper/transfer.parquet",
        "tiny/seed-0/paper/claims.parquet",
        "tiny/seed-0/paper/oracle.parquet",
    ],
)
def test_a_missing_file_is_refused_by_name_and_no_table_is_written(own_results, tmp_path, name):
    (own_results / name).unlink()
    with pytest.raises(OnejumpError, match=f"{name}: no such file"):
        summarise(own_results, ONE, tmp_path / "summary")
    assert not (tmp_path / "summary").exists()


EVALUATION, REFERENCES = "paper/evaluation.parquet", "references/pre_norm.all.parquet"


def alter(results: Path, name: str, change) -> None:
    """Write a table of the study again, changed."""
    path = results / "tiny" / "seed-0" / name
    write_table(path, pa.Table.from_pandas(change(read_table(path).to_pandas()), preserve_index=False))


@pytest.mark.parametrize("name", [EVALUATION, REFERENCES])
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.assign(sentence_id=rows["sentence_id"] + (rows["level"] == 1)),
        lambda rows: rows.assign(
            sentence_id=rows["sentence_id"].where(rows["level"] != 1, rows["sentence_id"].values[::-1])
        ),
        lambda rows: rows[(rows["level"] != 1) | (rows["sentence_id"] != rows["sentence_id"].iloc[-1])],
        lambda rows: rows[rows["level"] != 2],
        lambda rows: rows.assign(level=rows["level"].replace({1: 2, 2: 1})),
        lambda rows: rows[rows["level"] > 0].assign(level=rows["level"] - 1),
        lambda rows: rows.sort_values("sentence_id", ascending=False),
    ],
    ids=["other sentences", "another order", "fewer sentences", "a level missing", "swapped", "shifted", "sorted"],
)
def test_rows_that_are_not_of_every_level_with_the_same_sentences_are_refused(own_results, tmp_path, name, change):
    alter(own_results, name, change)
    with pytest.raises(OnejumpError, match=f"{name}: the rows of [a-z_]+ are not of 3 levels with the same sentences"):
        summarise(own_results, ONE, tmp_path / "summary")


def test_references_of_fewer_sentences_than_the_evaluation_has_are_refused(own_results, tmp_path):
    last = read_table(own_results / "tiny" / "seed-0" / REFERENCES)["sentence_id"][-1].as_py()
    alter(own_results, REFERENCES, lambda rows: rows[rows["sentence_id"] != last])
    with pytest.raises(OnejumpError, match=f"{EVALUATION}: the rows of n_njtc are not of 3 levels"):
        summarise(own_results, ONE, tmp_path / "summary")


@pytest.mark.parametrize(("name", "method"), [(EVALUATION, "joint"), (EVALUATION, "arbitrary"), (REFERENCES, "jtc")])
def test_a_table_without_one_of_the_methods_is_refused(own_results, tmp_path, name, method):
    alter(own_results, name, lambda rows: rows[rows["method"] != method])
    with pytest.raises(OnejumpError, match=f"{name}: has no rows of {method}"):
        summarise(own_results, ONE, tmp_path / "summary")


def test_a_grid_without_one_of_its_jumps_is_refused(own_results, tmp_path):
    alter(own_results, EVALUATION, lambda rows: rows[(rows["method"] != "arbitrary") | (rows["jump"] != 1)])
    with pytest.raises(OnejumpError, match=f"{EVALUATION}: the rows of arbitrary are not of 3 levels"):
        summarise(own_results, ONE, tmp_path / "summary")


def test_n_njtc_by_another_levels_jump_is_refused(own_results, tmp_path):
    alter(own_results, EVALUATION, lambda rows: rows.assign(jump=rows["jump"].where(rows["method"] != "n_njtc", 1)))
    with pytest.raises(OnejumpError, match=f"{EVALUATION}: n_njtc uses other jumps than each level's own"):
        summarise(own_results, ONE, tmp_path / "summary")


def test_a_selection_among_another_number_of_jumps_is_refused(own_results, tmp_path):
    path = own_results / "tiny" / "seed-0" / "paper" / "selection.json"
    selection = read_json(path)
    for key in ("scores", "softmax", "bootstrap_share"):
        selection[key] = [*selection[key], 0.0]
    path.write_text(json.dumps(selection))
    with pytest.raises(OnejumpError, match="selection.json"):
        summarise(own_results, ONE, tmp_path / "summary")
