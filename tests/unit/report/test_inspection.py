"""What a file holds and how studies differ, said in text."""

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from refusals import error_of
from summary_tables import read_frame, write_summary

from onejump.cli import cli
from onejump.files.sealed import write_sealed_json
from onejump.files.tables import write_frame, write_table
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


@pytest.mark.parametrize(
    ("content", "line"),
    [("3", "  3"), ('"text"', '  "text"'), ("null", "  null"), ('[{"a": 1}, 2]', '  0: {"a": 1}'), ("{}", None)],
)
def test_json_of_every_shape_is_told(tmp_path, content, line):
    (tmp_path / "x.json").write_text(content)
    lines = describe(tmp_path / "x.json").splitlines()
    assert lines[1:2] == ([] if line is None else [line])


def test_a_sealed_json_that_was_altered_is_refused(tmp_path):
    path = tmp_path / "selection.json"
    write_sealed_json(path, {"ojfa": 23})
    assert describe(path).splitlines()[1] == "  ojfa: 23"
    path.write_text(path.read_text().replace("23", "22"))
    assert "does not match its checksum" in error_of(lambda: describe(path))


def test_a_table_of_another_program_is_told_whatever_its_columns_hold(tmp_path):
    day = datetime.date(2024, 2, 29)
    columns = {
        "date": pa.array([day, None, day + datetime.timedelta(1)]),
        "time": pa.array([datetime.datetime(2024, 2, 29, 12), None, None]),
        "wait": pa.array([datetime.timedelta(hours=1)] * 3),
        "text": ["a\nb", None, "c"],
        "long": pa.array(["x", None, "x"], pa.large_string()),
        "bytes": [b"a", None, b"b"],
        "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        "struct": [{"a": 1}, None, {"a": 2}],
        "lists": pa.array([[], None, None], pa.list_(pa.int8())),
        "price": pa.array([decimal.Decimal("1.5"), None, decimal.Decimal("2.5")]),
        "category": pa.array([3, None, 3]).dictionary_encode(),
        "none": pa.nulls(3),
        "flags": pa.array([None, None, None], pa.bool_()),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert describe(tmp_path / "t.parquet").splitlines()[1:] == [
        "  3 rows",
        "  date: date32[day], 1 null, 2024-02-29 to 2024-03-01",
        "  time: timestamp[us], 2 null, 2024-02-29 12:00:00 to 2024-02-29 12:00:00",
        "  wait: duration[us]",
        "  text: string, 1 null, a b, c",
        "  long: large_string, 1 null, x",
        "  bytes: binary, 1 null",
        "  map: map<string, int64 ('map')>, 1 null",
        "  struct: struct<a: int64>, 1 null",
        "  lists: list<element: int8>, 2 null, 0 to 0 values each",
        "  price: decimal128(2, 1), 1 null, 1.5 to 2.5, mean 2",
        "  category: int64, 1 null, 3 to 3, mean 3",
        "  none: null, 3 null",
        "  flags: bool, 3 null",
    ]


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
    scores = read_frame(folder / "scores.parquet")
    scores["ojfa"] = scores["jump"] == 0
    write_frame(folder / "scores.parquet", scores)
    verdicts = read_frame(folder / "verdicts.parquet")
    verdicts.loc[verdicts["claim"] == "C5", "verdict"] = "supported"
    write_frame(folder / "verdicts.parquet", verdicts)
    methods = read_frame(folder / "methods.parquet")
    methods["precision"] += 0.125
    write_frame(folder / "methods.parquet", methods)
    return tmp_path / "one", tmp_path / "two"


def test_two_studies_stand_side_by_side(studies):
    lines = compare(*studies).splitlines()
    methods = read_frame(studies[0] / "summary" / "methods.parquet").query("variant == 'paper'").set_index("method")
    scores = read_frame(studies[0] / "summary" / "scores.parquet").query("variant == 'paper' and ojfa")
    assert lines[0] == f"smollm2-135m, seed 0, variant paper: jump {scores['jump'].item()} | 0"
    value = methods.loc["ojfa", "precision"]
    assert f"  ojfa                 {value:.4f} | {value + 0.125:.4f}  +0.1250" in lines
    for positions, line in zip(("all", "1+"), lines[-2:], strict=True):
        assert line == f"smollm2-135m, variant paper, positions {positions}, C5: contradicted | supported"
    assert len(lines) == 1 + 11 + 2  # the variant that only one of them has is left out
    done = CliRunner().invoke(cli, ["compare", *map(str, studies)])
    assert done.exit_code == 0
    assert done.output.splitlines() == lines


def test_studies_without_a_common_branch_are_refused_with_what_each_has(studies):
    folder = studies[1] / "summary"
    for name in ("methods", "scores", "verdicts"):
        write_frame(folder / f"{name}.parquet", read_frame(folder / f"{name}.parquet").assign(model="other"))
    message = error_of(lambda: compare(*studies))
    assert "the first has smollm2-135m/0/paper; smollm2-135m/0/exact, the second other/0/paper" in message


def test_a_model_named_by_digits_keeps_its_name(tmp_path):
    for study in ("one", "two"):
        write_summary(tmp_path / study / "summary", models=("007",), variants=("1e3",), n_levels=4)
    assert compare(tmp_path / "one", tmp_path / "two").startswith("007, seed 0, variant 1e3: jump ")
