"""What a file holds and how studies differ, said in text."""

import json

import pandas as pd
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from refusals import error_of
from summary_tables import write_summary

from onejump.cli import cli
from onejump.files.tables import write_table
from onejump.files.tensors import write_tensors
from onejump.report.inspection import compare, describe


def test_a_tensor_files_facts_and_tensors_are_told(tmp_path):
    path = tmp_path / "jump.safetensors"
    write_tensors(path, {"A": torch.tensor([[1.0, -2.0], [0.5, 4.5]])}, {"level": "3", "curve": list(range(500))})
    lines = describe(path).splitlines()
    assert lines[0] == str(path)
    assert "  level: 3" in lines
    assert "  A: float32 [2, 2], -2 to 4.5, mean 1" in lines
    (curve,) = [line for line in lines if line.startswith("  curve: [0, 1, 2")]
    assert curve.endswith("characters)")
    assert len(curve) < 150


def test_a_tables_columns_are_told(tmp_path):
    path = tmp_path / "evaluation.parquet"
    columns = {
        "method": pa.array(["ojfa", "joint", "ojfa"]).dictionary_encode(),
        "jump": pa.array([3, None, 5], pa.int32()),
        "correct": [True, False, True],
        "surprisal": [0.5, 1.5, 4.0],
        "input_ids": [[1], [1, 2, 3], [4, 5]],
        "text": ["a", "b", "c"],
    }
    write_table(path, pa.table(columns))
    assert describe(path).splitlines()[1:] == [
        "  3 rows",
        "  method: string, ojfa, joint",
        "  jump: int32, 1 null, 3 to 5, mean 4",
        "  correct: bool, 0 to 1, mean 0.6667",
        "  surprisal: double, 0.5 to 4, mean 2",
        "  input_ids: list<element: int64>, 1 to 3 values each",
        "  text: string, a, b, c",
    ]


def test_a_selections_values_are_told(tmp_path):
    (tmp_path / "selection.json").write_text(json.dumps({"ojfa": 23, "scores": [0.5] * 100}))
    lines = describe(tmp_path / "selection.json").splitlines()
    assert lines[1] == "  ojfa: 23"
    assert lines[2].endswith("(500 characters)")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no tensors")
    (tmp_path / "x.txt").write_text("text")
    assert "damaged" in error_of(lambda: describe(tmp_path / "x.safetensors"))
    assert "no stage writes .txt files" in error_of(lambda: describe(tmp_path / "x.txt"))
    assert "no such file" in error_of(lambda: describe(tmp_path / "absent.json"))


@pytest.fixture
def studies(tmp_path):
    """Two studies that have one variant in common; in the second OJFA is another jump and one verdict differs."""
    for name, variants in (("one", ("paper", "exact")), ("two", ("paper",))):
        write_summary(tmp_path / name / "summary", variants=variants, n_levels=4)
    folder = tmp_path / "two" / "summary"
    scores = pd.read_csv(folder / "scores.csv")
    scores["ojfa"] = scores["jump"] == 0
    scores.to_csv(folder / "scores.csv", index=False)
    verdicts = pd.read_csv(folder / "verdicts.csv")
    verdicts.loc[verdicts["claim"] == "C5", "verdict"] = "supported"
    verdicts.to_csv(folder / "verdicts.csv", index=False)
    methods = pd.read_csv(folder / "methods.csv")
    methods["precision"] += 0.125
    methods.to_csv(folder / "methods.csv", index=False)
    return tmp_path / "one", tmp_path / "two"


def test_two_studies_stand_side_by_side(studies):
    lines = compare(*studies).splitlines()
    methods = pd.read_csv(studies[0] / "summary" / "methods.csv").query("variant == 'paper'").set_index("method")
    scores = pd.read_csv(studies[0] / "summary" / "scores.csv").query("variant == 'paper' and ojfa")
    assert lines[0] == f"smollm2-135m, seed 0, variant paper: jump {scores['jump'].item()} | 0"
    value = methods.loc["ojfa", "precision"]
    assert f"  ojfa       {value:.4f} | {value + 0.125:.4f}  +0.1250" in lines
    assert lines[-1] == "smollm2-135m, variant paper, C5: contradicted | supported"
    assert len(lines) == 1 + 6 + 1  # the variant that only one of them has is left out
    done = CliRunner().invoke(cli, ["compare", *map(str, studies)])
    assert done.exit_code == 0
    assert done.output.splitlines() == lines


def test_studies_without_a_common_branch_are_refused_with_what_each_has(studies):
    folder = studies[1] / "summary"
    for name in ("methods", "scores", "verdicts"):
        pd.read_csv(folder / f"{name}.csv").assign(model="other").to_csv(folder / f"{name}.csv", index=False)
    message = error_of(lambda: compare(*studies))
    assert "the first has smollm2-135m/0/paper; smollm2-135m/0/exact, the second other/0/paper" in message
