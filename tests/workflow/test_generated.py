"""A tiny study whose model writes text: jumps trained on either kind or on both, all evaluated on both."""

import pandas as pd
import pytest
import yaml
from reference import TOLERANCE, compare
from report_pages import Page
from studies import ROOT, Study

from onejump.files.tensors import TensorFile

pytestmark = pytest.mark.xdist_group("generated")

TRAIN_ON = {"exact": "corpus", "own": "generated", "mixed": "both", "alone": "both"}
TOKENS = 4


@pytest.fixture(scope="module")
def writing_study(tiny_folder, tmp_path_factory):
    """One tiny model, run to its end."""
    folder = tmp_path_factory.mktemp("writing")
    for name in ("models", "texts"):
        (folder / name).symlink_to(tiny_folder / name)
    config = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    config["corpus"]["generated"] = {"tokens": TOKENS}
    config["models"] = {"tiny-llama": config["models"]["tiny-llama"]}
    config["variants"] = {name: {"fit": "exact", "rank": 2, "train_on": kind} for name, kind in TRAIN_ON.items()}
    config["variants"]["alone"] |= {"jumps": "joint", "target": "post_norm", "gate": "level"}
    study = Study(folder, config)
    study.snakemake()
    return study


@pytest.mark.parametrize("variant", ["exact", "own", "mixed"])
def test_every_variant_agrees_with_its_naive_float64_reference(writing_study, variant):
    differences = compare(writing_study.results(), "tiny-llama", 0, variant)
    assert max(differences.values()) <= TOLERANCE, differences


def test_each_variant_is_trained_on_its_text_and_evaluated_on_both(writing_study):
    branch = writing_study.results("tiny-llama", "seed-0")
    positions = pd.read_parquet(branch / "positions.parquet")
    counts = positions.groupby(["split", "origin"]).size().to_dict()
    assert counts == {
        (split, kind): n for split, n in (("train", 60), ("test", 20)) for kind in ("corpus", "generated")
    }
    for variant, kind in TRAIN_ON.items():
        fitted = TensorFile(branch / variant / "jumps" / "joint.safetensors").value("n_rows")
        assert fitted == 60 * (2 if kind == "both" else 1)
        evaluated = pd.read_parquet(branch / variant / "evaluation.parquet").query("method == 'joint'")
        assert set(evaluated["sentence_id"]) == set(positions.loc[positions["split"] == "test", "sentence_id"])


def test_positions_in_continuations_are_tokens_that_the_model_wrote(writing_study):
    branch = writing_study.results("tiny-llama", "seed-0")
    texts = pd.read_parquet(branch / "texts.parquet").set_index("sentence_id")
    rows = pd.read_parquet(branch / "positions.parquet").query("origin == 'generated'")
    first = texts.loc[rows["sentence_id"], "n_prompt"].to_numpy()
    assert ((rows["position"] >= first) & (rows["position"] < first + TOKENS)).all()


def test_means_by_origin_are_those_of_the_evaluation(writing_study):
    branch = writing_study.results("tiny-llama", "seed-0")
    found = pd.read_csv(writing_study.results("summary", "by_origin.csv"))
    known = pd.read_parquet(branch / "positions.parquet").set_index("sentence_id")
    assert set(found["variant"]) == set(TRAIN_ON)
    for variant in TRAIN_ON:
        rows = pd.read_parquet(branch / variant / "evaluation.parquet").query("method == 'joint'")
        rows = rows.join(known[["position", "origin"]], on="sentence_id").query("position > 0")
        for origin, part in rows.groupby("origin"):
            chosen = (found["variant"] == variant) & (found["origin"] == origin) & (found["method"] == "joint")
            (own,) = found[chosen & (found["position"] == "1+") & found["level"].isna()].to_dict("records")
            assert own["n"] == part["sentence_id"].nunique()
            for column, metric in (("precision", "correct"), ("surprisal", "surprisal")):
                assert own[column] == pytest.approx(part[metric].astype(float).mean())
                assert own[f"{column}_low"] <= own[column] <= own[f"{column}_high"]


def test_the_report_sets_both_kinds_of_text_side_by_side(writing_study):
    page = Page((writing_study.folder / "reports" / "test.html").read_text())
    (table,) = page.find("table", id="texts-table")
    rows = [[page.text(cell) for cell in page.find("td", inside=row)] for row in page.find("tr", inside=table)[1:]]
    names = [page.text(page.find("th", inside=row)[0]) for row in page.find("tr", inside=table)[1:]]
    shown = {(name, *row[:2]) for name, row in zip(names, rows, strict=True)}
    assert ("Identity", "–", "–") in shown and len(rows) == 1 + 3 * 3 + 1
    assert {kind for _, variant, kind in shown if variant != "–"} == {"corpus", "generated", "both"}
    found = pd.read_csv(writing_study.results("summary", "by_origin.csv"))
    (own,) = found.query(
        "variant == 'alone' and origin == 'generated' and position == '1+' and method == 'joint' and level.isna()"
    )["precision"]
    (row,) = [row for row in rows if row[0] == "alone"]
    assert row[3].startswith(f"{own:.3f} [")


def test_a_second_run_does_nothing(writing_study):
    assert "Nothing to be done" in writing_study.snakemake().stdout
