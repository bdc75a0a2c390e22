"""A full disk, a read-only folder, two runs at once: a clear message, and a later run succeeds."""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from missing import do_without

pytestmark = pytest.mark.xdist_group("cache")

HEAD = "results/test/tiny-llama/unembedding.safetensors"


@contextmanager
def file_system(folder: Path, options: str):
    """A small file system of its own in a folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "onejump-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        do_without("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_nothing_half_written_stays(tiny_study):
    results = tiny_study.folder / "results"
    with file_system(results, "size=12k"):
        done = tiny_study.snakemake("--show-failed-logs", "--", HEAD, check=False)
        assert done.returncode != 0
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("onejump: error: ")]
        assert HEAD in line and "make room or fix its permissions" in line
        assert not (tiny_study.folder / HEAD).exists()
        assert list(results.rglob(".*.tmp")) == []
        subprocess.run(["mount", "-o", "remount,size=50m", str(results)], check=True)
        tiny_study.snakemake("--", HEAD)
        assert (tiny_study.folder / HEAD).exists()


def test_a_read_only_results_folder_is_refused_at_the_start(tiny_study):
    results = tiny_study.folder / "results"
    with file_system(results, "ro"):
        done = tiny_study.snakemake("--", HEAD, check=False)
        assert done.returncode != 0
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{results}: ")]
        assert (
            line
            == f"{results}: Read-only file system; make room, fix its permissions, or run elsewhere with --directory"
        )
        assert "Traceback" not in done.stdout
        subprocess.run(["mount", "-o", "remount,rw", str(results)], check=True)
        tiny_study.snakemake("--", HEAD)


def test_a_second_run_of_the_same_study_is_refused_while_the_first_lasts(tiny_study):
    first = tiny_study.start("--", HEAD)
    lock = tiny_study.folder / ".snakemake" / "locks"
    while not (lock.exists() and any(lock.iterdir())):
        assert first.poll() is None
    second = tiny_study.snakemake("--", HEAD, check=False)
    assert second.returncode != 0
    assert "Directory cannot be locked" in second.stdout
    first.communicate()
    assert first.returncode == 0
    assert "Nothing to be done" in tiny_study.snakemake("--", HEAD).stdout
