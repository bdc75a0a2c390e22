"""Tables read back as written; an altered file is refused."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import error_of, flipped

from onejump.files.atomic import OnejumpError
from onejump.files.tables import _column_digest, read_table, write_table

TABLE = pa.table(
    {
        "sentence_id": pa.array(range(40), pa.int32()),
        "split": ["train", "test"] * 20,
        "input_ids": pa.array([[i, 2 * i] for i in range(40)], pa.list_(pa.int32())),
    }
)


def test_a_table_reads_back_as_written_whole_or_by_column(tmp_path):
    write_table(tmp_path / "t", TABLE)
    assert read_table(tmp_path / "t").equals(TABLE)
    assert read_table(tmp_path / "t", ["split", "sentence_id"]).equals(TABLE.select(["split", "sentence_id"]))


def test_the_same_table_gives_the_same_bytes(tmp_path):
    write_table(tmp_path / "1", TABLE)
    write_table(tmp_path / "2", TABLE.slice(0))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["b", None, "a'\n", "é", "b"]),
        pa.array([None, "b", "b", "a"]).dictionary_encode(),
        pa.array([[1, 2], None, []]),
        pa.array([], pa.string()),
    ],
    ids=["text", "dictionary", "list", "empty"],
)
def test_the_digest_of_a_column_is_that_of_its_values_written_out(column):
    found = _column_digest(pa.table({"x": column}), "x")
    assert found == hashlib.sha256(repr(column.to_pylist()).encode()).hexdigest()


def page_bytes(path):
    """Positions of the compressed values themselves, without page headers and the footer."""
    file = pq.ParquetFile(path)
    group = file.metadata.row_group(0)
    for index in range(group.num_columns):
        column = group.column(index)
        end = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
        # The values of the last page end where the column chunk ends; its header stands before them.
        yield from range(end - 12, end)


def test_a_table_with_a_flipped_bit_among_its_values_is_refused_by_name(tmp_path):
    path = tmp_path / "positions.parquet"
    write_table(path, TABLE)
    content = path.read_bytes()
    positions = list(page_bytes(path))
    assert len(positions) == 36
    for position in positions:
        path.write_bytes(flipped(content, position, position % 8))
        assert str(path) in error_of(lambda: read_table(path)), f"byte {position}"


@pytest.mark.parametrize("columns", [None, TABLE.column_names], ids=["whole", "by column"])
def test_a_table_with_a_flipped_bit_anywhere_is_read_rightly_or_refused_in_one_line(tmp_path, columns):
    path = tmp_path / "positions.parquet"
    write_table(path, TABLE)
    content = path.read_bytes()
    refusals = []
    for position in range(0, len(content), 3):
        path.write_bytes(flipped(content, position, position % 8))
        try:
            assert read_table(path, columns).to_pydict() == TABLE.to_pydict(), f"byte {position}"
        except OnejumpError as error:
            refusals.append(str(error))
    assert len(refusals) > len(content) / 12
    assert all(str(path) in refusal for refusal in refusals)
    assert not any("\n" in refusal for refusal in refusals)


@pytest.mark.parametrize("name", ["sentence_id", "split", "input_ids"])
def test_a_table_whose_column_names_are_no_longer_text_is_refused_by_name(tmp_path, name):
    path = tmp_path / "positions.parquet"
    write_table(path, TABLE)
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(name.encode()), 7))
    assert str(path) in error_of(lambda: read_table(path, [name]))


def test_a_table_cut_short_anywhere_is_refused_by_name(tmp_path):
    path = tmp_path / "positions.parquet"
    write_table(path, TABLE)
    content = path.read_bytes()
    for length in [*range(0, len(content), 25), len(content) - 1]:
        path.write_bytes(content[:length])
        assert str(path) in error_of(lambda: read_table(path)), f"cut to {length} bytes"


def test_a_table_that_lacks_a_column_is_refused_by_name_with_the_columns_it_has(tmp_path):
    write_table(tmp_path / "t", TABLE.select(["split", "sentence_id"]))
    message = error_of(lambda: read_table(tmp_path / "t", ["input_ids", "split", "shard"]))
    assert message == f"{tmp_path / 't'}: has no column input_ids, shard, only split, sentence_id"


def test_values_of_every_kind_of_column_survive(tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "correct": rng.random(1000) < 0.5,
            "kl": rng.standard_normal(1000),
            "surprisal": rng.standard_normal(1000).astype(np.float32),
            "empty": pa.nulls(1000, pa.string()),
            "tokens": pa.array([list(range(i % 7)) for i in range(1000)], pa.list_(pa.int32())),
        }
    )
    write_table(tmp_path / "t", table)
    assert read_table(tmp_path / "t").equals(table)
