"""Files are written whole or not at all, are refused when altered, and errors reach the user as one line."""

import hashlib
import json
import os
import subprocess
import sys
import time

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import error_of
from safetensors.torch import save_file

from onejump.cli import cli
from onejump.files.atomic import OnejumpError, atomic_path, read_json, require_file, write_json, write_text
from onejump.files.digests import sha256_of_file
from onejump.files.tables import read_table, write_table
from onejump.files.tensors import TensorFile, write_tensors

TENSORS = {"ab": torch.arange(3), "x": torch.tensor([[1.5, -2.0, 0.25], [3.0, 4.0, -5.0]])}
METADATA = {"kind": "test", "n": 3, "softcap": None}
TABLE = pa.table(
    {
        "sentence_id": pa.array(range(40), pa.int32()),
        "split": ["train", "test"] * 20,
        "input_ids": pa.array([[i, 2 * i] for i in range(40)], pa.list_(pa.int32())),
    }
)
FAST = settings(max_examples=20, deadline=None)


def flipped(content, position, bit):
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


def read_all(path):
    return TensorFile(path).tensors()


# ------------------------------------------------------------------------------------------------------ atomic writes


class Interrupted(BaseException):
    """Stands for a KeyboardInterrupt or SystemExit, which are no Exception either."""


@pytest.mark.parametrize("interruption", [ValueError, Interrupted])
def test_a_write_that_raises_leaves_no_file_at_all(tmp_path, interruption):
    def write():
        with atomic_path(tmp_path / "out.txt") as temporary:
            temporary.write_text("half")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_raises_before_it_opens_its_file_raises_the_same_error(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "out.txt"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_while_a_write_runs_nothing_stands_under_the_final_name(tmp_path):
    path = tmp_path / "out.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename is atomic only within one file system
    assert [file.name for file in tmp_path.iterdir()] == ["out.txt"]
    assert path.read_text() == "whole"


def test_an_existing_file_survives_a_rewrite_that_raises(tmp_path):
    path = tmp_path / "out.txt"
    write_text(path, "first")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "out.txt"
    with atomic_path(path) as first, atomic_path(path) as second:
        assert first != second
        first.write_text("one")
        second.write_text("two")
    assert path.read_text() == "one"  # the outer block ends last
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_the_file_needs_are_made(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", {"x": 1})
    assert read_json(tmp_path / "a" / "b" / "c.json") == {"x": 1}


def test_files_are_readable_as_the_umask_says(tmp_path):
    write_tensors(tmp_path / "t.safetensors", TENSORS, METADATA)
    (tmp_path / "plain").touch()
    assert (tmp_path / "t.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("write", [write_tensors, lambda path, tensors, facts: write_table(path, TABLE)])
def test_tensors_and_tables_are_written_beside_their_name_and_renamed(tmp_path, monkeypatch, write):
    path, renamed = tmp_path / "out", []
    replace = os.replace

    def watch(source, target):
        assert not path.exists()
        renamed.append(str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write(path, TENSORS, METADATA)
    assert renamed == [str(path)]
    assert list(tmp_path.iterdir()) == [path]


# --------------------------------------------------------------------------------------------------------------- JSON


@FAST
@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.booleans(), st.none(), st.lists(st.text()))))
def test_json_reads_back_as_written_and_does_not_depend_on_the_order_of_keys(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("json")
    write_json(folder / "a.json", value)
    write_json(folder / "b.json", dict(reversed(value.items())))
    assert read_json(folder / "a.json") == value
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00"])
def test_a_file_that_is_not_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "selection.json"
    path.write_bytes(content)
    assert str(path) in error_of(lambda: read_json(path))


@pytest.mark.parametrize("read", [read_json, TensorFile, read_table, require_file, sha256_of_file])
def test_a_missing_file_is_refused_by_name(tmp_path, read):
    path = tmp_path / "missing.file"
    assert error_of(lambda: read(path)) == f"{path}: no such file; run the stage that makes it, or correct the path"


def test_sha256_of_a_file_is_the_sha256_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    assert sha256_of_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


# -------------------------------------------------------------------------------------------------------- safetensors


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(3,), (4, 5), (0, 5), (2, 3, 4)])
def test_tensors_of_every_dtype_and_shape_read_back_as_written(tmp_path, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    tensor = (100 * torch.randn(shape, generator=generator)).to(dtype)
    write_tensors(tmp_path / "t", {"x": tensor, "other": torch.ones(2)}, {})
    file = TensorFile(tmp_path / "t")
    found = file.tensor("x")
    assert found.dtype == dtype
    assert torch.equal(found, tensor)
    assert file.names == ["other", "x"]


@pytest.mark.parametrize("rows", [slice(0, 4), slice(1, 3), slice(2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_rows_of_a_tensor_are_those_of_the_whole_whenever_it_is_verified(tmp_path, rows, dtype):
    tensor = torch.arange(20).reshape(4, 5).to(dtype)
    write_tensors(tmp_path / "t", {"x": tensor}, {})
    file = TensorFile(tmp_path / "t")
    for _ in range(2):
        assert torch.equal(file.tensor("x", rows), tensor[rows])


def test_damage_outside_the_rows_asked_for_is_found(tmp_path):
    write_tensors(tmp_path / "t", {"x": torch.ones(100, 5)}, {})
    content = bytearray((tmp_path / "t").read_bytes())
    content[-1] ^= 1
    (tmp_path / "t").write_bytes(content)
    assert "does not match its checksum" in error_of(lambda: TensorFile(tmp_path / "t").tensor("x", slice(0, 1)))


def test_a_tensor_without_dimensions_reads_back_as_written(tmp_path):
    write_tensors(tmp_path / "t", {"x": torch.tensor(1.5)}, {})
    assert torch.equal(read_all(tmp_path / "t")["x"], torch.tensor(1.5))


def test_views_and_parameters_read_back_as_written(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"transposed": base.T, "row": base[1], "parameter": torch.nn.Parameter(base.clone())}
    write_tensors(tmp_path / "t", tensors, {})
    found = read_all(tmp_path / "t")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_nan_and_infinity_read_back_as_written(tmp_path):
    tensor = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    write_tensors(tmp_path / "t", {"x": tensor}, {})
    assert torch.equal(read_all(tmp_path / "t")["x"].view(torch.int32), tensor.view(torch.int32))


def test_metadata_read_back_as_written(tmp_path):
    write_tensors(tmp_path / "t", TENSORS, METADATA | {"eps": 1e-5, "list": [1, 2]})
    file = TensorFile(tmp_path / "t")
    assert file.metadata["kind"] == "test"
    assert [file.value(key) for key in ("n", "softcap", "eps", "list")] == [3, None, 1e-5, [1, 2]]


def test_the_same_content_gives_the_same_bytes_and_digest(tmp_path):
    one = write_tensors(tmp_path / "1", TENSORS, METADATA)
    two = write_tensors(tmp_path / "2", {name: tensor.clone() for name, tensor in TENSORS.items()}, dict(METADATA))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert one == two == TensorFile(tmp_path / "1").sha256


@pytest.mark.parametrize(
    "tensors, metadata",
    [
        (TENSORS | {"x": TENSORS["x"] + 1e-6}, METADATA),
        (TENSORS | {"x": TENSORS["x"].reshape(3, 2)}, METADATA),
        (TENSORS | {"x": TENSORS["x"].view(torch.int32)}, METADATA),
        (TENSORS | {"y": TENSORS["x"].clone()}, METADATA),
        ({"ba": TENSORS["ab"], "x": TENSORS["x"]}, METADATA),
        (TENSORS, METADATA | {"n": 4}),
        (TENSORS, METADATA | {"more": 1}),
    ],
    ids=["value", "shape", "dtype", "one more tensor", "tensor name", "metadata value", "one more key"],
)
def test_any_other_content_gives_another_digest(tmp_path, tensors, metadata):
    assert write_tensors(tmp_path / "1", TENSORS, METADATA) != write_tensors(tmp_path / "2", tensors, metadata)


def test_a_safetensors_file_with_a_bit_flipped_in_any_byte_is_refused_by_name(tmp_path):
    path = tmp_path / "level.safetensors"
    write_tensors(path, TENSORS, METADATA)
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in (position % 8, (position + 3) % 8):
            path.write_bytes(flipped(content, position, bit))
            assert str(path) in error_of(lambda: read_all(path)), f"byte {position}, bit {bit}"
    path.write_bytes(content)
    assert torch.equal(read_all(path)["x"], TENSORS["x"])


def test_a_safetensors_file_cut_short_anywhere_is_refused_by_name(tmp_path):
    path = tmp_path / "level.safetensors"
    write_tensors(path, TENSORS, METADATA)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert str(path) in error_of(lambda: read_all(path)), f"cut to {length} bytes"


def test_a_safetensors_file_with_bytes_after_its_end_is_refused(tmp_path):
    path = tmp_path / "t"
    write_tensors(path, TENSORS, METADATA)
    path.write_bytes(path.read_bytes() + b"\0")
    assert str(path) in error_of(lambda: read_all(path))


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_safetensors_file_of_another_program_is_refused_as_such(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata)
    assert error_of(lambda: TensorFile(path)) == (
        f"{path}: has no sha256 in its metadata, so it was not written by onejump"
    )


def test_a_file_whose_tensors_were_exchanged_is_refused(tmp_path):
    """A header of one run over the data of another: each part is whole, and only the digests tell."""
    path = tmp_path / "t"
    write_tensors(path, TENSORS, METADATA)
    save_file(TENSORS | {"x": TENSORS["x"].flip(0)}, path, TensorFile(path).metadata)
    assert "tensor 'x' does not match its checksum" in error_of(lambda: read_all(path))


def test_a_tensor_that_is_not_there_is_named_with_those_that_are(tmp_path):
    write_tensors(tmp_path / "t", TENSORS, METADATA)
    message = error_of(lambda: TensorFile(tmp_path / "t").tensor("level.07"))
    assert message == f"{tmp_path / 't'}: has no tensor 'level.07', only ab, x"


# ------------------------------------------------------------------------------------------------------------ Parquet


def test_a_table_reads_back_as_written_whole_or_by_column(tmp_path):
    write_table(tmp_path / "t", TABLE)
    assert read_table(tmp_path / "t").equals(TABLE)
    assert read_table(tmp_path / "t", ["split", "sentence_id"]).equals(TABLE.select(["split", "sentence_id"]))


def test_the_same_table_gives_the_same_bytes(tmp_path):
    write_table(tmp_path / "1", TABLE)
    write_table(tmp_path / "2", TABLE.slice(0))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


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


def test_a_table_with_a_flipped_bit_anywhere_is_read_rightly_or_refused_in_one_line(tmp_path):
    path = tmp_path / "positions.parquet"
    write_table(path, TABLE)
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), 3):
        path.write_bytes(flipped(content, position, position % 8))
        try:
            found = read_table(path, TABLE.column_names)
        except OnejumpError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error), f"byte {position}: {error}"
        else:
            assert found.to_pydict() == TABLE.to_pydict(), f"byte {position}"
    assert refused > len(content) / 12


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


# -------------------------------------------------------------------------------------------------------- command line


def onejump(*arguments, **environment):
    command = [sys.executable, "-m", "onejump.cli", *map(str, arguments)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=100)
    return done, time.monotonic() - started


def test_an_error_that_the_user_can_mend_is_one_line_on_stderr_and_status_1(tmp_path):
    missing = tmp_path / "cosines.safetensors"
    done, _ = onejump("select-jump", "--cosines", missing, "--out", tmp_path / "selection.json")
    assert done.returncode == 1
    assert done.stderr == f"onejump: error: {missing}: no such file; run the stage that makes it, or correct the path\n"
    assert done.stdout == ""


def test_a_hub_model_that_cannot_be_reached_is_one_line_and_comes_soon(tmp_path):
    model = "nobody-of-this-name/no-such-model"
    done, seconds = onejump("extract-unembedding", "--model", model, "--out", tmp_path / "h", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"onejump: error: model {model}: revision 'main' is not in the cache and the hub")
    assert done.stderr.count("\n") == 1
    assert seconds < 60
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_status_2_and_names_the_option():
    done, _ = onejump("select-jump", "--no-such-option")
    assert done.returncode == 2
    assert "No such option" in done.stderr and "--no-such-option" in done.stderr
    assert "Traceback" not in done.stderr


def test_success_is_status_0_and_what_was_printed_arrives(tmp_path):
    done, _ = onejump("write-config", "--config", json.dumps({"study": "demo"}), "--out", tmp_path / "config.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert read_json(tmp_path / "config.json") == {"study": "demo"}
    done, _ = onejump("--version")
    assert done.returncode == 0
    assert "onejump" in done.stdout or "version" in done.stdout


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_explains_itself_and_each_of_its_required_options(name):
    done = CliRunner().invoke(cli, [name, "--help"])
    assert done.exit_code == 0
    assert done.output.startswith("Usage:")
    assert cli.commands[name].help.split("\n")[0] in " ".join(done.output.split())
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Argument):
            assert parameter.human_readable_name in done.output
        else:
            assert parameter.opts[0] in done.output
            assert parameter.required <= ("[required]" in done.output)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_refuses_to_run_without_its_required_options(name):
    done = CliRunner().invoke(cli, [name])
    assert done.exit_code == 2
    assert "Missing option" in done.output or "Missing argument" in done.output


def test_asking_for_help_does_not_load_torch():
    code = "import sys; from onejump.cli import cli; assert not {'torch', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("sources", [[], ["--hub", "a/b", "--file", "t.txt"]])
def test_sampling_sentences_needs_exactly_one_source(tmp_path, sources):
    sizes = ["--train", "1", "--test", "1", "--out", str(tmp_path / "s.parquet")]
    done = CliRunner().invoke(cli, ["sample-sentences", *sources, *sizes])
    assert done.exit_code == 2
    assert "exactly one source" in done.output


def test_a_level_that_is_neither_a_number_nor_joint_is_a_usage_error(tmp_path):
    files = [
        word
        for option in ("--unembedding", "--positions-file", "--shard", "--out")
        for word in (option, str(tmp_path / "x"))
    ]
    done = CliRunner().invoke(cli, ["fit-jump", *files, "--level", "last", "--device", "cpu"])
    assert done.exit_code == 2
    assert "neither a level number nor 'joint'" in done.output
    done = CliRunner().invoke(cli, ["fit-jump", *files, "--level", "0", "--level", "1", "--device", "cpu"])
    assert done.exit_code == 2
    assert "1 for 2 --level" in done.output
