"""The whole DAG on two tiny models, as a user runs it."""

import json
import zipfile

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from reference import TOLERANCE, compare

from onejump.files.tensors import TensorFile

pytestmark = pytest.mark.xdist_group("study")

MODELS = ("tiny-llama", "tiny-gpt2")
VARIANTS = ("paper", "exact", "other")


def test_the_report_shows_every_model_and_variant(finished_study):
    page = (finished_study.folder / "reports" / "test.html").read_text()
    for name in (*MODELS, *VARIANTS):
        assert name in page
    assert page.count("<svg") >= len(MODELS) * len(VARIANTS) * 5


def test_every_file_of_the_contract_is_there(finished_study):
    for model in MODELS:
        branch = finished_study.results(model, "seed-0")
        assert {"position", "input_ids", "n_tokens"} <= set(pq.read_schema(branch / "positions.parquet").names)
        for split, shards in (("train", 2 if model == "tiny-llama" else 1), ("test", 1)):
            files = sorted((branch / "activations" / split).iterdir())
            assert [file.name for file in files] == [f"shard-{i:02d}.safetensors" for i in range(shards)]
            assert {f"level.{k:02d}" for k in range(4)} <= set(TensorFile(files[0]).names)
        for variant in VARIANTS:
            names = {
                str(file.relative_to(branch / variant)) for file in (branch / variant).rglob("*.*") if file.is_file()
            }
            assert names == (
                {f"jumps/level-{k:02d}.safetensors" for k in range(3)}
                | {
                    "claims.parquet",
                    "oracle.parquet",
                    "jumps/joint.safetensors",
                    "scores.parquet",
                    "cosines.safetensors",
                    "evaluation.parquet",
                    "held_out.parquet",
                    "selection.json",
                    "transfer.parquet",
                }
                | ({"ranks.parquet"} if variant != "paper" else set())
            )


def test_the_provenance_report_holds_every_figure_and_table_with_captions(finished_study):
    file = finished_study.folder / "reports" / "test-provenance.zip"
    finished_study.snakemake("--report", str(file.relative_to(finished_study.folder)))
    with zipfile.ZipFile(file) as pages:
        names = {name.rpartition("/")[2] for name in pages.namelist()}
        page = next(pages.read(name).decode() for name in pages.namelist() if name.endswith("report.html"))
    file.unlink()
    figures = {path.name for path in finished_study.results("figures").glob("*.svg")}
    tables = {path.name for path in finished_study.results("summary").glob("*.csv")}
    assert figures and tables and figures | tables | {"test.html"} <= names
    for words in ("2 tiny-llama", "3 Tables", "The study's report", "share of blocks run", "60 training and 20 test"):
        assert words in page


def test_figures_are_there_for_pages_and_for_papers(finished_study):
    folder = finished_study.results("figures")
    drawn = {suffix: {path.stem for path in folder.glob(f"*.{suffix}")} for suffix in ("svg", "pdf")}
    # Of a model: six of three variants, ranks of two, two of the joint jump alone, and three of all variants.
    assert len(drawn["svg"]) == 2 * (3 * 6 + 2 + 2 + 3) and drawn["svg"] == drawn["pdf"]
    assert all(path.read_bytes().startswith(b"%PDF") for path in folder.glob("*.pdf"))


def test_no_temporary_file_is_left(finished_study):
    assert [file for file in finished_study.folder.rglob("*.tmp")] == []


def test_the_selected_jump_has_the_largest_mean_score(finished_study):
    for model in MODELS:
        for variant, levels in (("paper", [1, 2, 3]), ("exact", [1, 2, 3]), ("other", [0, 1, 2])):
            folder = finished_study.results(model, "seed-0", variant)
            scores = pd.read_parquet(folder / "scores.parquet")
            D = scores[scores["level"].isin(levels)].groupby("jump")["signed_squared_cosine"].mean()
            selection = json.loads((folder / "selection.json").read_text())
            assert selection["ojfa"] == D.idxmax()
            np.testing.assert_allclose(selection["scores"], D, atol=1e-6)


def test_ojfa_is_the_selected_arbitrary_jump_on_the_transfer_sentences(finished_study):
    folder = finished_study.results("tiny-gpt2", "seed-0", "paper")
    ojfa = json.loads((folder / "selection.json").read_text())["ojfa"]
    evaluation = pd.read_parquet(folder / "evaluation.parquet")
    for k in range(3):
        rows = evaluation[evaluation["level"] == k]
        arbitrary = rows[(rows["method"] == "arbitrary") & (rows["jump"] == ojfa)]
        selected = rows[rows["method"] == "ojfa"].head(len(arbitrary))
        assert len(arbitrary) == 8
        np.testing.assert_allclose(arbitrary["surprisal"], selected["surprisal"], atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_agrees_with_its_naive_float64_reference(finished_study, model, variant):
    differences = compare(finished_study.results(), model, 0, variant)
    assert ("exact predictions" in differences) == (variant != "paper")
    assert max(differences.values()) <= TOLERANCE, differences


def test_the_joint_jump_alone_is_evaluated_on_all_test_sentences_and_nothing_is_chosen(finished_study):
    folder = finished_study.results("tiny-llama", "seed-0", "alone")
    assert {path.name for path in folder.iterdir()} == {
        *("jumps", "evaluation.parquet", "shortlist.parquet", "shortlist_evaluation.parquet"),
        *("held_out.parquet", "shortlist_held_out.parquet", "preview.safetensors"),
    }
    assert [path.name for path in (folder / "jumps").iterdir()] == ["joint.safetensors"]
    rows = pd.read_parquet(folder / "evaluation.parquet")
    assert set(rows["method"]) == {"joint"} and rows["jump"].isna().all()
    assert (rows.groupby("level")["sentence_id"].nunique() == 20).all() and len(rows) == 3 * 20


def test_a_variant_is_fitted_as_it_says(finished_study):
    folder = finished_study.results("tiny-llama", "seed-0", "other")
    facts = TensorFile(folder / "jumps" / "level-01.safetensors").metadata
    assert (facts["fit"], facts["target"], facts["rank"]) == ("exact", "post_norm", "2")
    evaluated = pd.read_parquet(folder / "evaluation.parquet")["sentence_id"]
    positions = pd.read_parquet(folder.parent / "positions.parquet").set_index("sentence_id")["position"]
    assert (positions[evaluated] > 0).all()
    assert set(evaluated) == set(positions[(positions.index >= 60) & (positions > 0)].index)


def test_a_second_run_does_nothing(finished_study):
    assert "Nothing to be done" in finished_study.snakemake().stdout


def jobs_for_another_variant(study, **choices) -> dict[str, int]:
    """Jobs of each rule that a new variant makes run."""
    config = study.config
    study.config = config | {"variants": config["variants"] | {"late": choices}}
    plan = study.snakemake("-n", "--quiet", "host").stdout
    study.config = config
    table = plan.split("Job stats:")[1].split("total")[0]
    jobs = dict(line.split() for line in table.splitlines() if line.split()[-1:] and line.split()[-1].isdigit())
    return {name: int(count) for name, count in jobs.items()}


OF_ANY_VARIANT = {
    "all": 1,
    "write_config": 1,
    "select_jump": 2,
    "evaluate_jumps": 2,
    "evaluate_held_out": 2,
    "assess_claims": 2,
    "evaluate_oracle": 2,
    "summarise": 1,
    "plot_joint_figures": 2,
    "plot_model_figures": 2,
    "collect_timings": 1,
    "render_report": 1,
}


def test_a_new_variant_runs_only_its_own_jobs(finished_study):
    assert jobs_for_another_variant(finished_study, fit="exact", rank=3) == OF_ANY_VARIANT | {
        "fit_jump": 6,
        "fit_joint_jump": 2,
        "score_jumps": 2,
        "evaluate_ranks": 2,
        "plot_nested_figures": 6,
        "plot_figures": 2,
    }


def test_a_new_variant_uses_the_jumps_of_one_that_fits_alike(finished_study):
    figures = {"plot_nested_figures": 4, "plot_figures": 4}
    assert jobs_for_another_variant(finished_study, score_levels="0..K-1") == OF_ANY_VARIANT | figures
    found = jobs_for_another_variant(finished_study, joint_batches="per_level")
    assert found == OF_ANY_VARIANT | figures | {"fit_joint_jump": 2}


def test_the_same_study_elsewhere_gives_the_same_bytes(finished_study, tiny_study):
    branch = "results/test/tiny-gpt2/seed-0"
    wanted = [f"{branch}/paper/jumps/joint.safetensors", f"{branch}/exact/evaluation.parquet"]
    tiny_study.snakemake("--", *wanted)
    for path in wanted:
        assert (tiny_study.folder / path).read_bytes() == (finished_study.folder / path).read_bytes(), path
