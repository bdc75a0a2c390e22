"""Text and JSON files are written whole or not at all, and refused when they are not what they should be."""

import json
import os
import re
import signal
import subprocess
import sys

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import error_of

from onejump.files.atomic import atomic_path, read_json, require_file, write_json, write_text
from onejump.files.checkpoints import Checkpoint
from onejump.files.digests import sha256_of_file
from onejump.files.tables import read_table, write_table
from onejump.files.tensors import TensorFile, write_tensors

FAST = settings(max_examples=20, deadline=None)


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
        assert temporary.parent.parent == path.parent  # a rename is atomic only within one file system
    assert [file.name for file in tmp_path.iterdir()] == ["out.txt"]
    assert path.read_text() == "whole"


def test_an_existing_file_survives_a_rewrite_that_raises(tmp_path):
    path = tmp_path / "out.txt"
    write_text(path, "first")

    def rewrite():
        with atomic_path(path) as temporary:
            temporary.write_text("second")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        rewrite()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def killed_while_writing(path, write):
    """Let a process write to `path` by a line of code, and be killed after 1,000 bytes."""
    code = f"""
import resource, signal, torch
import pyarrow as pa
from onejump.files.atomic import write_text
from onejump.files.checkpoints import Checkpoint
from onejump.files.tables import write_table
from onejump.files.tensors import write_tensors
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
path, cpu = {str(path)!r}, torch.device("cpu")
{write}
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGXFSZ


@pytest.mark.parametrize(
    "write",
    [
        "write_text(path, 'x' * 10**6)",
        "write_table(path, pa.table({'x': list(range(10**5))}))",
        "write_tensors(path, {'x': torch.ones(10**6)}, {})",
        "Checkpoint(path, {}, cpu).save({'x': torch.ones(10**6)})",
    ],
    ids=["text", "table", "tensors", "checkpoint"],
)
def test_what_a_killed_writer_leaves_has_one_kind_of_name_and_goes_at_the_next_start(tmp_path, write):
    path, other = tmp_path / "out", tmp_path / ".out.safetensors.01234567.tmp"
    other.mkdir()  # another file's
    killed_while_writing(path, write)
    left = set(tmp_path.iterdir()) - {other}
    assert left
    assert all(re.fullmatch(r"\.\.?out(\.checkpoint)?\.[0-9a-f]{8}\.tmp", file.name) for file in left)
    checkpoint = Checkpoint(path, {}, torch.device("cpu"))
    assert list(tmp_path.iterdir()) == [other]
    killed_while_writing(path, write)
    write_text(path, "whole")
    checkpoint.remove()
    assert set(tmp_path.iterdir()) == {other, path}


def test_a_writer_whose_file_another_began_to_write_leaves_it_alone(tmp_path):
    path = tmp_path / "out.txt"

    def write_twice():
        with atomic_path(path) as first:
            first.write_text("one")
            write_text(path, "two")

    with pytest.raises(FileNotFoundError):
        write_twice()
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_tensors(path, {"x": torch.ones(2)}, {}),
        lambda path: write_table(path, pa.table({"x": [1]})),
        lambda path: write_json(path, {"x": 1}),
    ],
)
def test_each_kind_of_file_is_written_beside_its_name_and_renamed(tmp_path, monkeypatch, write):
    path, renamed = tmp_path / "out", []
    replace = os.replace

    def watch(source, target):
        assert not path.exists()
        renamed.append(str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write(path)
    assert renamed == [str(path)]
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_the_file_needs_are_made(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", {"x": 1})
    assert read_json(tmp_path / "a" / "b" / "c.json") == {"x": 1}


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


@pytest.mark.parametrize("content", ["3", "null", '"text"', "[1, 2]"])
def test_json_of_another_shape_than_expected_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    message = error_of(lambda: read_json(tmp_path / "x.json"))
    assert message.startswith(f"{tmp_path / 'x.json'}: holds ")
    assert read_json(tmp_path / "x.json", object) == json.loads(content)
