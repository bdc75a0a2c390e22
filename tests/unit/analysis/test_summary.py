"""Every number of the summary against the files of the stages, by plain loops and pandas."""

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from naive_bootstrap import naive_means
from safetensors import safe_open
from scipy import stats
from tiny_study import CONFIG, LENSES, N_TEST, N_TRAIN, TRANSFER, VARIANTS, K, write_summary_of

from onejump.analysis import tables
from onejump.analysis.claims import n_parameters
from onejump.analysis.costs import Costs
from onejump.analysis.dynamic_exit import METHODS, dynamic_exit_table
from onejump.analysis.few_checks import few_checks_table
from onejump.analysis.summary import _across_seeds, _spread
from onejump.exits.columns import EVERY_SENTENCE_METHODS, JOINT_METHODS, REFERENCE_METHODS
from onejump.files.tables import read_table
from onejump.files.tensors import TensorFile, write_tensors
from onejump.study.layout import TABLES
from onejump.study.lenses import LENSES as STUDY_LENSES

BRANCHES = pytest.mark.parametrize(
    ("seed", "variant"), [(0, "paper"), (0, "exact"), (1, "paper"), (1, "exact"), (0, "gated")]
)
# Tables that variants with the joint jump alone have too.
EVERY_VARIANT = ("levels", "methods", "by_position", "jumps", "dynamic_exit", "few_checks", "switches", "norms")
WITH_ALL_JUMPS = [name for name, choices in VARIANTS.items() if choices["jumps"] == "all"]
AND_ALONE = pytest.mark.parametrize(("seed", "variant"), [(0, "paper"), (0, "exact"), (1, "gated"), (0, "alone")])


def lenses_of(seed: int, variant: str) -> list[str]:
    """The lenses that are evaluated beside a variant."""
    return [lens for lens, own in LENSES.items() if variant != "alone" and seed in (own["seeds"] or [seed])]


def lens_file(results: Path, seed: int, variant: str, lens: str) -> Path:
    target = VARIANTS[variant]["target"] if lens == "jtc" else "pre_norm"
    folder = results / "tiny" / f"seed-{seed}" / "lenses"
    return folder / f"{lens}.{target}.{VARIANTS[variant]['positions']}.safetensors"


def methods_of(seed: int, variant: str) -> list[str]:
    """Those of a variant that are evaluated on all test sentences, in order."""
    has = JOINT_METHODS
    if variant != "alone":
        has = set(EVERY_SENTENCE_METHODS) - {"joint_shortlist", *STUDY_LENSES} | {*lenses_of(seed, variant)}
    return [method for method in EVERY_SENTENCE_METHODS if method in has]


def read_evaluations(results: Path, seed: int, variant: str) -> pd.DataFrame:
    """All evaluations of a variant as one table, by plain pandas."""
    branch, choices = results / "tiny" / f"seed-{seed}", VARIANTS[variant]
    positions = choices["positions"]
    files = [branch / "references" / f"{positions}.parquet", branch / variant / "evaluation.parquet"]
    if variant == "alone":
        files.append(branch / variant / "shortlist_evaluation.parquet")
    files += [lens_file(results, seed, variant, lens).with_suffix(".parquet") for lens in lenses_of(seed, variant)]
    parts = [pd.read_parquet(path) for path in files]
    sentences = pd.read_parquet(results / "corpus" / f"seed-{seed}" / "sentences.parquet")
    rows = pd.concat(parts).merge(sentences[["sentence_id", "document"]], on="sentence_id", how="left")
    return rows.astype({"method": str, "surprisal": float, "correct": float, "correct_at_5": float})


def read_held_out(results: Path, seed: int, variant: str) -> pd.DataFrame:
    """The evaluations of a variant and of identity on the validation slice as one table, by plain pandas."""
    branch = results / "tiny" / f"seed-{seed}"
    names = ("held_out", "shortlist_held_out") if variant == "alone" else ("held_out",)
    files = [branch / "references" / f"{VARIANTS[variant]['positions']}.held_out.parquet"]
    files += [branch / variant / f"{name}.parquet" for name in names]
    return pd.concat(pd.read_parquet(path).astype({"method": str}) for path in files)


def exits_of(rows: pd.DataFrame, methods: list[str]) -> dict[str, np.ndarray]:
    """Of each method, [2, level, sentence]: whether it is right, and how confident it is."""

    def grid(method: str, metric: str) -> np.ndarray:
        some = rows[rows["method"] == method]
        return some.pivot(index="level", columns="sentence_id", values=metric)[some["sentence_id"].unique()].to_numpy()

    return {method: np.array([grid(method, name) for name in ("correct", "confidence")], float) for method in methods}


def naive_interval(values: pd.Series, rows: pd.DataFrame, seed: int = 0) -> tuple[float, float]:
    """Of the mean of values by sentence, whose index is sentence ids in the order of `rows`."""
    documents = rows.drop_duplicates("sentence_id").set_index("sentence_id")["document"]
    numbers = pd.Series(pd.factorize(documents)[0], documents.index).loc[values.index].to_numpy()
    numbers = numbers if len(set(numbers)) > 1 else np.arange(len(numbers))
    return np.percentile(naive_means(values.to_numpy(), numbers, seed), [2.5, 97.5])


def read_ojfa_of(results: Path, seed: int, variant: str) -> int | None:
    if VARIANTS[variant]["jumps"] == "joint":
        return None
    return json.loads((results / "tiny" / f"seed-{seed}" / variant / "selection.json").read_text())["ojfa"]


def read_facts(path: Path) -> tuple[dict, int]:
    """Metadata of a safetensors file, and how many numbers its tensors hold."""
    with safe_open(path, "np") as file:
        return file.metadata(), sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118


def test_the_summary_has_all_tables_and_nothing_else(summary):
    assert {path.name for path in summary.folder.iterdir()} == {
        f"{name}.{suffix}" for name in TABLES for suffix in ("csv", "parquet")
    }


def test_what_stages_read_is_what_the_csv_says(summary):
    """Read back as text for all that is text; only an empty field is missing."""
    text = {name: "string" for name in ("model", "variant", "jump", "revision", "name", "metric")}
    for name in TABLES:
        table = pd.read_csv(
            summary.folder / f"{name}.csv",
            dtype=text,
            keep_default_na=False,
            na_values=[""],
            float_precision="round_trip",
        )
        found = read_table(summary.folder / f"{name}.parquet").to_pandas()
        pd.testing.assert_frame_equal(found, table, check_dtype=False, check_exact=True)
    for name in set(TABLES) - {"models", "verdicts", "spread", "methods_spread", "one_jump_spread", "chosen"}:
        table = summary.read(name)
        assert list(table.columns[:3]) == ["model", "seed", "variant"]
        found = set(table[["seed", "variant"]].itertuples(index=False, name=None))
        some = {"curves": ["paper"], "ranks": ["exact"], "gates": ["gated", "alone"], "one_jump": ["alone"]}
        some |= {"shortlist": ["alone"]}
        some |= dict.fromkeys(EVERY_VARIANT, VARIANTS)
        assert found == set(itertools.product(CONFIG["seeds"], some.get(name, WITH_ALL_JUMPS)))


def test_models_csv_counts_what_the_files_hold(summary, results):
    facts, _ = read_facts(results / "tiny" / "unembedding.safetensors")
    table = summary.read("models")
    assert table["seed"].tolist() == [0, 1]
    for row in table.itertuples():
        assert (row.model, row.name, row.revision, row.dtype) == ("tiny", "model", facts["revision"], "float32")
        assert (row.n_blocks, row.hidden_size, row.vocabulary) == (K, 32, 97)
        assert row.parameters == int(facts["parameters"])
        assert (row.n_train, row.n_test, row.transfer_sentences) == (N_TRAIN, N_TEST, TRANSFER)


@AND_ALONE
def test_levels_csv_is_the_means_and_intervals_of_the_evaluations(summary, results, seed, variant):
    rows = read_evaluations(results, seed, variant)
    table = summary.read("levels", seed, variant)
    assert len(table) == len(methods_of(seed, variant)) * K
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
            low, high = naive_interval(some.set_index("sentence_id")[names[column]], rows)
            assert getattr(found, f"{column}_low") == pytest.approx(low, rel=1e-9, abs=1e-12)
            assert getattr(found, f"{column}_high") == pytest.approx(high, rel=1e-9, abs=1e-12)
    every = N_TEST if variant in ("paper", "alone") else table["n"].iloc[0]
    assert set(table["n"]) == {every}
    assert TRANSFER < every <= N_TEST


@AND_ALONE
def test_methods_csv_is_the_means_over_all_exit_levels(summary, results, seed, variant):
    rows, ojfa = read_evaluations(results, seed, variant), read_ojfa_of(results, seed, variant)
    assert 3 < rows["document"].nunique() < rows["sentence_id"].nunique() / 2
    table = summary.read("methods", seed, variant)
    assert table["method"].tolist() == [*methods_of(seed, variant), *(["arbitrary"] if variant != "alone" else [])]
    for found in table.itertuples():
        some = rows[rows["method"] == found.method]
        if found.method == "arbitrary":
            some = some[some["jump"] != ojfa]
        for column, name in (("precision", "correct"), ("surprisal", "surprisal")):
            by_sentence = some.groupby("sentence_id", sort=False)[name].mean()
            assert getattr(found, column) == pytest.approx(some[name].mean(), rel=1e-9)
            low, high = naive_interval(by_sentence, rows)
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
    lenses = {lens: read_facts(lens_file(results, seed, variant, lens))[1] for lens in lenses_of(seed, variant)}
    found = summary.read("methods", seed, variant).set_index("method")["parameters"].to_dict()
    gated = choices["gate"] == "level"
    one, both = 2 * 32 * choices["rank"] + 4 * 32 + gated, 2 * 32 * choices["rank"] + 4 * 32 + gated * K
    assert jumps == [one] * K
    assert joint == both
    sizes = {"jtc": K * (32 * 32 + 32), "lora_lens": K * (2 * 32 + 32), "jacobian_lens_mean": 32 * 32}
    sizes["imported_jacobian_lens"] = K * 32 * 32  # with the identity of level 0
    assert lenses == {lens: sizes[lens] for lens in lenses_of(seed, variant)}
    expected = {"identity": 0, "n_njtc": K * one, "ojfa": one, "joint": both, "arbitrary": one} | lenses
    expected |= {"constant": 97, "constant_by_position": 2 * 97, "identity_temperature": K, "middle": one}
    assert np.isnan(found.pop("token_table"))
    assert found == expected


@AND_ALONE
def test_by_position_csv_is_the_means_over_the_sentences_of_each_group(summary, results, seed, variant):
    rows = read_evaluations(results, seed, variant)
    rows = rows[rows["method"].isin(EVERY_SENTENCE_METHODS)]
    positions = read_table(results / "tiny" / f"seed-{seed}" / "positions.parquet").to_pandas()
    rows = rows.merge(positions[["sentence_id", "position"]], on="sentence_id")
    groups = {"0": [0], "1-4": [1, 2, 3, 4], "5+": range(5, 1000), "1+": range(1, 1000)}
    table = summary.read("by_position", seed, variant)
    assert set(table["position"]) == {group for group, some in groups.items() if rows["position"].isin(some).any()}
    assert (variant != "exact") == ("0" in set(table["position"]))
    for found in table.itertuples():
        some = rows[(rows["method"] == found.method) & rows["position"].isin(groups[found.position])]
        if not np.isnan(found.level):
            some = some[some["level"] == found.level]
        assert found.n == some["sentence_id"].nunique()
        for column, name in (("precision", "correct"), ("surprisal", "surprisal")):
            by_sentence = some.groupby("sentence_id", sort=False)[name].mean()
            assert getattr(found, column) == pytest.approx(by_sentence.mean(), rel=1e-9, abs=1e-12)
            low, high = naive_interval(by_sentence, rows)
            assert getattr(found, f"{column}_low") == pytest.approx(low, rel=1e-9, abs=1e-12)
            assert getattr(found, f"{column}_high") == pytest.approx(high, rel=1e-9, abs=1e-12)


def test_parameters_are_counted_without_reading_a_tensor(tmp_path, monkeypatch):
    write_tensors(
        tmp_path / "jtc.safetensors", {"A": torch.zeros(3, 4, 4), "b": torch.zeros(3, 4), "c": torch.ones(())}, {}
    )
    monkeypatch.delattr(TensorFile, "tensor")
    assert n_parameters(TensorFile(tmp_path / "jtc.safetensors")) == 3 * 16 + 3 * 4 + 1


@AND_ALONE
def test_methods_csv_says_what_a_check_costs(summary, results, seed, variant):
    facts, _ = read_facts(results / "tiny" / "unembedding.safetensors")
    rank, gated = VARIANTS[variant]["rank"], VARIANTS[variant]["gate"] == "level"
    jump = 32 * rank + rank * 97 + (32 * 97 if gated else 0)
    expected = dict.fromkeys(("constant", "constant_by_position", "token_table"), 0)
    expected |= {"identity": 32 * 97, "identity_temperature": 32 * 97, "jtc": 32 * 97 + 32 * 32}
    expected |= {"lora_lens": 32 * 97 + 2 * 32}
    expected |= dict.fromkeys(("jacobian_lens_mean", "imported_jacobian_lens"), 32 * 97 + 32 * 32)
    if variant == "alone":
        tried = summary.read("shortlist", seed, variant)
        expected["joint_shortlist"] = tried.loc[tried["chosen"], "check"].item()
    table = summary.read("methods", seed, variant).set_index("method")
    assert table["check"].to_dict() == {method: expected.get(method, jump) for method in table.index}
    full = K * int(facts["block_parameters"]) + 32 * 97
    np.testing.assert_allclose(table["check_cost"], table["check"] / full, rtol=1e-12)


def test_lenses_say_what_their_fits_took_and_how_they_ended(summary, results):
    table = summary.read("methods", 0, "paper").set_index("method")
    lenses = lenses_of(0, "paper")
    assert lenses == list(LENSES)
    *fitted, imported = lenses
    assert table.index[table["fit_cost"].notna()].tolist() == fitted
    levels = summary.read("levels", 0, "paper").query("level > 0").set_index("method")["surprisal"]
    np.testing.assert_allclose(levels[imported], levels["jacobian_lens_mean"], rtol=1e-6)  # which it is a copy of
    for lens in fitted:
        facts, _ = read_facts(lens_file(results, 0, "paper", lens))
        assert table["fit_cost"][lens] == int(facts["multiply_adds"])
        rows = summary.read("lenses", 0, "paper")
        rows = rows[rows["lens"] == lens]
        assert rows["level"].tolist() == ([] if lens == "jacobian_lens_mean" else list(range(K)))
        for row in rows.itertuples():
            of_level = json.loads(facts[f"level.{row.level:02d}"])
            if lens == "jtc":
                assert row.ridge == of_level["ridge"]
                assert np.isnan(row.validation_kl)
            else:
                assert (row.best_step, row.converged) == (of_level["best_step"], of_level["converged"])
                assert row.validation_kl == min(of_level["validation_curve"])
    assert list(summary.read("lenses", 1, "paper")["lens"]) == ["jtc"] * K
    assert summary.read("lenses", 0, "alone").empty


def test_shortlist_csv_is_what_the_stage_wrote(summary, results):
    expected = pd.read_parquet(results / "tiny" / "seed-1" / "alone" / "shortlist.parquet")
    found = summary.read("shortlist", 1, "alone").drop(columns=["model", "seed", "variant"])
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert (
        summary.read("methods", 1, "alone").set_index("method")["parameters"]["joint_shortlist"]
        == 2 * 32 * 3 + 4 * 32 + K
    )


@pytest.mark.parametrize(("seed", "variant"), [(0, "gated"), (1, "alone")])
def test_gates_csv_holds_the_gates_of_the_files(summary, results, seed, variant):
    table = summary.read("gates", seed, variant)
    for jump, rows in table.groupby("jump"):
        name = "joint" if jump == "joint" else f"level-{int(jump):02d}"
        with safe_open(results / "tiny" / f"seed-{seed}" / variant / "jumps" / f"{name}.safetensors", "np") as file:
            np.testing.assert_array_equal(rows["gate"], file.get_tensor("gates"))
        assert rows["level"].tolist() == (list(range(K)) if jump == "joint" else [int(jump)])
    assert set(table["jump"]) == ({"joint"} if variant == "alone" else {"0", "1", "2", "joint"})


def test_a_gate_of_all_levels_is_of_none(tmp_path):
    for gate, expected in (("shared", [None]), ("level", [0])):
        write_tensors(tmp_path / f"{gate}.safetensors", {"gates": torch.tensor([0.25])}, {"gate": gate})
        found = tables.gates("joint", TensorFile(tmp_path / f"{gate}.safetensors"))
        assert found["gate"].tolist() == [0.25]
        assert found["level"].astype(object).where(found["level"].notna(), None).tolist() == expected


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


@AND_ALONE
def test_dynamic_exit_csv_and_few_checks_csv_are_the_tables_of_the_evaluations(summary, results, seed, variant):
    rows = read_evaluations(results, seed, variant)
    facts, _ = read_facts(results / "tiny" / "unembedding.safetensors")
    held_out = read_held_out(results, seed, variant)
    assert not set(held_out["sentence_id"]) & set(rows["sentence_id"])
    blocks = int(facts["block_parameters"])
    assert K * blocks + 32 * 97 < int(facts["parameters"]) < K * blocks + 3 * 32 * 97
    gated = VARIANTS[variant]["gate"] == "level"
    tried = summary.read("shortlist", seed, variant)
    check = tried.loc[tried["chosen"].astype(bool), "check"].item() if variant == "alone" else None
    costs = Costs(K, 32, 97, VARIANTS[variant]["rank"], blocks, gated, check)
    assert costs.fused_check == VARIANTS[variant]["rank"] * (32 + 97) + 32 * 97 * gated
    methods = ("token_table", "identity", "joint", "joint_shortlist") if variant == "alone" else METHODS[:-1]
    exits = [exits_of(table, methods) for table in (rows, held_out)]
    first = rows[(rows["method"] == "joint") & (rows["level"] == 0)]
    for name, table_of in (("dynamic_exit", dynamic_exit_table), ("few_checks", few_checks_table)):
        expected = table_of(*exits, pd.factorize(first["document"])[0], costs)
        found = summary.read(name, seed, variant)[expected.columns]
        pd.testing.assert_frame_equal(
            found.astype({"levels": str}) if "levels" in found else found, expected, rtol=1e-9
        )


@AND_ALONE
def test_switches_csv_takes_identity_where_the_validation_slice_says_so(summary, results, seed, variant):
    rows = read_evaluations(results, seed, variant)
    held_out = read_held_out(results, seed, variant)
    found = summary.read("switches", seed, variant).set_index("method")
    assert set(found.index) == set(held_out["method"]) - {"identity", "token_table"}
    before = held_out.groupby(["method", "level"])["correct"].mean()
    checks = summary.read("methods", seed, variant).set_index("method")["check"]
    for method, row in found.iterrows():
        better = {level: max((method, "identity"), key=lambda name: before[name, level]) for level in range(K)}
        switched = [str(level) for level, name in better.items() if name == "identity"]
        assert ("" if pd.isna(row["identity_levels"]) else row["identity_levels"]) == ", ".join(switched)
        assert row["held_out_precision"] == pytest.approx(np.mean([before[better[level], level] for level in range(K)]))
        assert row["check"] == pytest.approx(np.mean([checks[better[level]] for level in range(K)]))
        used = pd.concat(rows[(rows["method"] == name) & (rows["level"] == level)] for level, name in better.items())
        for column, name in (("precision", "correct"), ("surprisal", "surprisal")):
            means = used.groupby("sentence_id", sort=False)[name].mean()
            assert row[column] == pytest.approx(means.mean(), rel=1e-9)
            ends = row[[f"{column}_low", f"{column}_high"]].to_numpy(float)
            np.testing.assert_allclose(ends, naive_interval(means, used), rtol=1e-6)
    assert found["identity_levels"].notna().any(), "identity is better nowhere: nothing was tested"


@BRANCHES
def test_shared_jumps_csv_sets_error_beside_precision(summary, results, seed, variant):
    oracle = pd.read_parquet(results / "tiny" / f"seed-{seed}" / variant / "oracle.parquet")
    methods, ojfa = summary.read("methods", seed, variant).set_index("method"), read_ojfa_of(results, seed, variant)
    table = summary.read("shared_jumps", seed, variant).set_index("method")
    assert table.index.tolist() == ["ojfa", "joint"]
    assert table.loc["ojfa", "jump"] == ojfa
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
        assert ("ridge" in facts, "best_epoch" in facts) == (variant != "paper", variant == "paper")
        assert pd.isna(found.converged) if variant != "paper" else found.converged == (found.gap <= 0.01)


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

    def said(claim: str, seed: int, metric: str) -> str | None:  # surprisal has no rule here
        return verdicts[claim][seed] if metric == "precision" else None

    rows = [
        {"model": "m", "seed": seed, "variant": "v", "claim": claim, "statistic": "difference", "metric": metric}
        | {"level": np.nan, "estimate": value, "claim_verdict": verdicts[claim][seed], "positions": positions}
        | {"decides": metric == "precision", "against": "v"}
        | {"rule": "> 0" if metric == "precision" else None, "verdict": said(claim, seed, metric)}
        for claim in verdicts
        for seed, value in enumerate([1.0, 2.0, 6.0])
        for metric in ("precision", "surprisal")
        for positions in ("all", "1+")
    ]
    scores = [
        {"model": "m", "seed": seed, "variant": "v", "jump": jump, "ojfa": jump == chosen, "bootstrap_share": share}
        for seed, (chosen, shares) in enumerate([(0, (0.9, 0.1)), (1, (0.3, 0.7)), (0, (0.6, 0.4))])
        for jump, share in enumerate(shares)
    ]
    methods = [
        {"model": "m", "seed": seed, "variant": "v", "method": "joint", "precision": value / 10, "surprisal": -value}
        for seed, value in enumerate([1.0, 2.0, 6.0])
    ]
    one_jump = pd.DataFrame(rows)
    one_jump = pd.concat([one_jump, one_jump.assign(against="again", estimate=99.0)])
    claims = pd.DataFrame(rows).drop(columns="against")
    refits = {"v": "v", "again": "v"}
    return _across_seeds(claims, one_jump, pd.DataFrame(scores), pd.DataFrame(methods), refits)


def test_seeds_that_agree_share_a_verdict_and_seeds_that_do_not_leave_it_open(claims_of_seeds):
    found = claims_of_seeds["verdicts"].set_index(["positions", "claim"])
    counts = ["seeds", "supported", "contradicted", "inconclusive"]
    assert len(found) == 4
    for positions in ("all", "1+"):
        assert found.loc[(positions, "C2"), ["verdict", *counts]].tolist() == ["supported", 3, 3, 0, 0]
        assert found.loc[(positions, "C3"), ["verdict", *counts]].tolist() == ["inconclusive", 3, 2, 1, 0]


def test_the_spread_is_that_of_the_estimates_over_seeds(claims_of_seeds):
    found = claims_of_seeds["spread"]
    assert len(found) == 8
    for row in found.itertuples():
        assert (row.seeds, row.mean, row.min, row.max) == (3, 3.0, 1.0, 6.0)
        assert row.sd == pytest.approx(np.sqrt(7))  # squares 4 + 1 + 9 over two
        assert (row.low, row.high) == pytest.approx(stats.t.interval(0.95, 2, 3.0, np.sqrt(7 / 3)), rel=1e-5)
        if row.metric == "precision":
            assert row.verdict == {"C2": "supported", "C3": "inconclusive"}[row.claim]
        else:
            assert pd.isna(row.verdict)


def test_one_jump_is_spread_against_the_first_fits_of_a_variant_alone(claims_of_seeds):
    found, claims = claims_of_seeds["one_jump_spread"], claims_of_seeds["spread"]
    assert set(found["against"]) == {"v"}
    pd.testing.assert_frame_equal(found.drop(columns="against"), claims)


def test_methods_spread_over_seeds_as_statistics_do(claims_of_seeds):
    found = claims_of_seeds["methods_spread"].set_index(["method", "metric"])
    assert len(found) == 2
    assert found.loc[("joint", "precision"), ["seeds", "fits", "mean", "min", "max"]].tolist() == [3, 3, 0.3, 0.1, 0.6]
    assert found.loc[("joint", "surprisal"), "mean"] == -3.0
    assert found[["sd_fits", "sd_texts"]].isna().all(axis=None)  # one fit a seed: nobody can tell


def test_the_noise_of_fits_is_told_from_that_of_texts_by_the_analysis_of_variance():
    """By hand, with a seed that has one fit less."""
    estimates = {
        (0, "a"): 1.0,
        (0, "b"): 3.0,
        (1, "a"): 6.0,
        (1, "b"): 6.0,
        (2, "a"): 12.0,
        (3, "a"): 1.0,
        (3, "b"): 2.0,
    }
    table = pd.DataFrame(
        {"model": "m", "seed": seed, "x": None, "estimate": value} for (seed, _), value in estimates.items()
    )
    (found,) = _spread(table, ["model", "x"]).reset_index().itertuples()
    means = [2.0, 6.0, 12.0, 1.5]
    within = (2.0 + 0.0 + 0.5) / 3  # squares about the means of seeds 0, 1 and 3, by their degrees of freedom
    assert (found.seeds, found.fits, found.min, found.max) == (4, 7, 1.0, 12.0)
    assert (found.mean, found.sd) == pytest.approx((np.mean(means), np.std(means, ddof=1)))
    assert found.sd_fits == pytest.approx(np.sqrt(within))
    assert found.sd_texts == pytest.approx(np.sqrt(np.var(means, ddof=1) - within * (0.5 + 0.5 + 1 + 0.5) / 4))
    expected = stats.t.interval(0.95, 3, np.mean(means), stats.sem(means))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-5)
    noise = table.assign(estimate=[0.0, 4.0, 4.0, 0.0, 2.0, 1.0, 3.0])  # all seeds alike but for their fits
    assert _spread(noise, ["model", "x"])["sd_texts"].tolist() == [0.0]


def test_fits_without_an_estimate_do_not_count_and_a_seed_without_any_leaves_the_mean_open():
    estimates = {0: [1.0, 3.0, np.nan], 1: [6.0, 6.0, 7.5], 2: [np.nan] * 3}
    table = pd.DataFrame(
        {"x": 0, "seed": seed, "estimate": value} for seed, values in estimates.items() for value in values
    )
    (found,) = _spread(table, ["x"]).itertuples()
    within = (2.0 + 1.5) / 3  # squares about the means 2 and 6.5
    assert (found.seeds, found.fits, found.min, found.max) == (3, 5, 1.0, 7.5)
    assert found.sd_fits == pytest.approx(np.sqrt(within))
    assert np.isnan([found.mean, found.sd, found.low, found.high, found.sd_texts]).all()
    (found,) = _spread(table[table["seed"] < 2], ["x"]).itertuples()
    assert (found.seeds, found.fits, found.mean) == (2, 5, 4.25)
    assert found.sd_texts == pytest.approx(np.sqrt(4.5**2 / 2 - within * (1 / 2 + 1 / 3) / 2))


def test_the_components_of_variance_are_right_on_average():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 3, (4000, 5, 1)) + rng.normal(0, 2, (4000, 5, 3))
    study, seed, fit = (index.ravel() for index in np.indices(values.shape))
    table = pd.DataFrame({"study": study, "seed": seed, "fit": fit, "estimate": values.ravel()})
    found = _spread(table, ["study"])
    assert (found["sd_fits"] ** 2).mean() == pytest.approx(4, rel=0.03)
    assert (found["sd_texts"] ** 2).mean() == pytest.approx(9, rel=0.05)
    assert ((found["low"] < 0) & (found["high"] > 0)).mean() == pytest.approx(0.95, abs=0.015)


def test_fits_of_the_same_texts_count_as_one_variant(results, summary, tmp_path):
    """A second fit with its own numbers: here the files of the first under another name."""
    study = tmp_path / "study"
    shutil.copytree(results, study)
    for seed in CONFIG["seeds"]:
        branch = study / "tiny" / f"seed-{seed}"
        shutil.copytree(branch / "exact", branch / "again")
    variants = {name: VARIANTS[name] for name in ("paper", "exact")} | {"again": VARIANTS["exact"] | {"fit_seed": 1}}
    write_summary_of(study, CONFIG | {"variants": variants}, tmp_path / "summary")
    verdicts, spread, methods = (
        pd.read_csv(tmp_path / "summary" / f"{name}.csv") for name in ("verdicts", "spread", "methods_spread")
    )
    methods = methods[methods["method"].isin(methods_of(1, "paper"))]  # those of both seeds
    shared = methods["method"].isin((*REFERENCE_METHODS, *STUDY_LENSES))
    assert shared.any() and set(methods.loc[shared, "fits"]) == {2}  # one for each seed, and no refits
    for table in (verdicts, spread, methods[~shared]):
        assert set(table["variant"]) == {"paper", "exact"}
        if "mean" in table:
            table = table[table["mean"].notna()]
        fits = table.groupby("variant")["fits"].unique()
        assert (fits["paper"].tolist(), fits["exact"].tolist()) == ([2], [4])
        assert set(table["seeds"]) == {2}
    noise = spread.groupby("variant")["sd_fits"]
    assert noise.max()["exact"] == 0
    assert noise.count()["paper"] == 0
    np.testing.assert_allclose(
        spread["sd_texts"].dropna(), spread.loc[spread["sd_texts"].notna(), "sd"], rtol=1e-9, atol=1e-12
    )
    once = summary.read("spread").query("variant == 'exact'")["mean"]
    np.testing.assert_allclose(spread.query("variant == 'exact'")["mean"], once, rtol=1e-12)


def test_chosen_counts_the_seeds_that_select_a_jump(claims_of_seeds):
    found = claims_of_seeds["chosen"].set_index("jump")
    assert found["chosen"].tolist() == [2, 1]
    assert found["seeds"].tolist() == [3, 3]
    np.testing.assert_allclose(found["bootstrap_share"], [0.6, 0.4])


def test_the_tables_across_seeds_have_each_model_and_variant(summary):
    assert len(summary.read("verdicts")) == 2 * 6 * len(WITH_ALL_JUMPS)
    assert set(summary.read("verdicts")["seeds"]) == {2}
    assert len(summary.read("chosen")) == K * len(WITH_ALL_JUMPS)
    assert (summary.read("chosen").groupby("variant")["chosen"].sum() == 2).all()
    assert len(summary.read("spread")) == len(summary.read("claims")) / 2
    assert summary.read("spread")[["low", "high"]].isna().all(axis=None)  # two seeds are too few


def test_regret_is_the_precision_lost_by_the_jump_that_a_score_picks():
    oracle = pd.DataFrame(
        {
            "d_m": [0.1, 0.2, 0.3, 0.4],
            "cosine": [0.4, 0.3, 0.2, 0.1],
            "squared_cosine": [0.1, 0.4, 0.2, 0.3],
            "mse": [9.0, 1.0, 5.0, 3.0],
            "precision": [0.10, 0.40, 0.20, 0.30],
        }
    )
    correct = np.random.default_rng(0).random((4, 2, 20))
    correct += np.array([0.2, 0.3, 0.3, 0.5])[:, None, None] - correct.mean((1, 2), keepdims=True)
    documents = np.arange(30) // 4  # of sentences beyond the transfer sentences too
    grids = SimpleNamespace(single_jumps={"correct": correct}.get, documents=documents)
    found = tables.oracle_table(oracle, grids).set_index("score")
    assert found["jump"].to_dict() == {"d_m": 3, "cosine": 0, "squared_cosine": 1, "mse": 1}
    assert set(found["oracle"]) == {1}
    np.testing.assert_allclose(found["regret"], [0.1, 0.3, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(found["test_regret"], [-0.2, 0.1, 0.0, 0.0], atol=1e-12)
    for score, jump in {"d_m": 3, "cosine": 0}.items():
        lost = (correct[1] - correct[jump]).mean(0)
        ends = np.percentile(naive_means(lost, documents[:20], 0), [2.5, 97.5])
        np.testing.assert_allclose(found.loc[score, ["test_regret_low", "test_regret_high"]].astype(float), ends)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with squared differences of ranks that sum to 6, 14, 0 and 0
    np.testing.assert_allclose(found["rank_correlation"], [0.4, -0.4, 1.0, 1.0], atol=1e-12)


@BRANCHES
def test_oracle_csv_is_that_of_the_oracle_files(summary, results, seed, variant):
    oracle = pd.read_parquet(results / "tiny" / f"seed-{seed}" / variant / "oracle.parquet").dropna(subset="jump")
    found = summary.read("oracle", seed, variant).set_index("score")
    assert found.loc["d_m", "jump"] == read_ojfa_of(results, seed, variant)
    assert found.loc["mse", "jump"] == oracle["mse"].idxmin()
    assert (found["regret"] >= 0).all()
    assert set(found["oracle"]) == {oracle["precision"].idxmax()}


def test_a_study_of_exact_fits_alone_has_a_table_of_curves_without_rows(results, tmp_path):
    write_summary_of(results, CONFIG | {"variants": {"exact": VARIANTS["exact"]}}, tmp_path / "summary")
    curves = pd.read_csv(tmp_path / "summary" / "curves.csv")
    columns = ["jump", "step", "gap", "validation_mse", "validation_kl"]
    assert list(curves.columns) == ["model", "seed", "variant", *columns]
    assert len(curves) == 0


def test_the_same_files_give_the_same_bytes(results, summary, tmp_path):
    write_summary_of(results, CONFIG, tmp_path / "summary")
    for name in TABLES:
        assert (tmp_path / "summary" / f"{name}.csv").read_bytes() == (summary.folder / f"{name}.csv").read_bytes()
