"""Files of a study that are missing or do not fit each other are refused, and no table is written."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from tiny_study import CONFIG, VARIANTS, write_summary_of

from onejump.files.atomic import OnejumpError
from onejump.files.sealed import read_sealed_json, write_sealed_json
from onejump.files.tables import read_table, write_table

ONE = CONFIG | {"seeds": [0], "variants": {"paper": VARIANTS["paper"]}}


@pytest.fixture
def own_results(results, tmp_path):
    """A copy of the study that a test may spoil."""
    return Path(shutil.copytree(results, tmp_path / "results" / "study"))


@pytest.mark.parametrize(
    "name",
    [
        "tiny/unembedding.safetensors",
        "tiny/seed-0/positions.parquet",
        "corpus/seed-0/sentences.parquet",
        "tiny/seed-0/lenses/jtc.pre_norm.all.safetensors",
        "tiny/seed-0/paper/jumps/level-01.safetensors",
        "tiny/seed-0/paper/jumps/joint.safetensors",
        "tiny/seed-0/paper/selection.json",
        "tiny/seed-0/paper/evaluation.parquet",
        "tiny/seed-0/lenses/lora_lens.pre_norm.all.parquet",
        "tiny/seed-0/references/all.parquet",
        "tiny/seed-0/paper/transfer.parquet",
        "tiny/seed-0/paper/claims.parquet",
        "tiny/seed-0/paper/oracle.parquet",
    ],
)
def test_a_missing_file_is_refused_by_name_and_no_table_is_written(own_results, tmp_path, name):
    (own_results / name).unlink()
    with pytest.raises(OnejumpError, match=f"{name}: no such file"):
        write_summary_of(own_results, ONE, tmp_path / "summary")
    assert not (tmp_path / "summary").exists()


EVALUATION, REFERENCES = "paper/evaluation.parquet", "references/all.parquet"
JTC = "lenses/jtc.pre_norm.all.parquet"


def alter(results: Path, name: str, change) -> None:
    """Write a table of the study again, changed."""
    path = results / "tiny" / "seed-0" / name
    write_table(path, pa.Table.from_pandas(change(read_table(path).to_pandas()), preserve_index=False))


@pytest.mark.parametrize("name", [EVALUATION, REFERENCES, JTC])
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
        write_summary_of(own_results, ONE, tmp_path / "summary")


def test_references_of_fewer_sentences_than_the_evaluation_has_are_refused(own_results, tmp_path):
    last = read_table(own_results / "tiny" / "seed-0" / REFERENCES)["sentence_id"][-1].as_py()
    alter(own_results, REFERENCES, lambda rows: rows[rows["sentence_id"] != last])
    with pytest.raises(OnejumpError, match=f"{EVALUATION}: the rows of middle are not of 3 levels"):
        write_summary_of(own_results, ONE, tmp_path / "summary")


@pytest.mark.parametrize("name", ["corpus/seed-0/sentences.parquet", "tiny/seed-0/positions.parquet"])
def test_a_corpus_without_a_sentence_that_was_evaluated_is_refused(own_results, tmp_path, name):
    last = read_table(own_results / "tiny" / "seed-0" / EVALUATION)["sentence_id"][-1].as_py()
    table = read_table(own_results / name).to_pandas()
    write_table(own_results / name, pa.Table.from_pandas(table[table["sentence_id"] != last], preserve_index=False))
    with pytest.raises(OnejumpError, match=f"{name}: lacks sentences of the activations"):
        write_summary_of(own_results, ONE, tmp_path / "summary")


@pytest.mark.parametrize(
    ("name", "method"), [(EVALUATION, "joint"), (EVALUATION, "arbitrary"), (REFERENCES, "identity"), (JTC, "jtc")]
)
def test_a_table_without_one_of_the_methods_is_refused(own_results, tmp_path, name, method):
    alter(own_results, name, lambda rows: rows[rows["method"] != method])
    with pytest.raises(OnejumpError, match=f"{name}: has no rows of {method}"):
        write_summary_of(own_results, ONE, tmp_path / "summary")


def test_a_grid_without_one_of_its_jumps_is_refused(own_results, tmp_path):
    alter(own_results, EVALUATION, lambda rows: rows[(rows["method"] != "arbitrary") | (rows["jump"] != 1)])
    with pytest.raises(OnejumpError, match=f"{EVALUATION}: the rows of arbitrary are not of 3 levels"):
        write_summary_of(own_results, ONE, tmp_path / "summary")


def test_n_njtc_by_another_levels_jump_is_refused(own_results, tmp_path):
    alter(own_results, EVALUATION, lambda rows: rows.assign(jump=rows["jump"].where(rows["method"] != "n_njtc", 1)))
    with pytest.raises(OnejumpError, match=f"{EVALUATION}: n_njtc uses other jumps than each level's own"):
        write_summary_of(own_results, ONE, tmp_path / "summary")


def test_a_selection_among_another_number_of_jumps_is_refused(own_results, tmp_path):
    path = own_results / "tiny" / "seed-0" / "paper" / "selection.json"
    selection = read_sealed_json(path)
    for key in ("scores", "softmax", "bootstrap_share"):
        selection[key] = [*selection[key], 0.0]
    write_sealed_json(path, selection)
    with pytest.raises(OnejumpError, match=r"selection\.json: selects among 4 jumps, expected 3"):
        write_summary_of(own_results, ONE, tmp_path / "summary")
