"""A real one-node Slurm for the tests of this folder; without one they are skipped, and in CI they fail."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from cluster import NODE, SCRIPT, SlurmStudy
from missing import do_without


def pytest_terminal_summary(terminalreporter) -> None:
    """Nobody should take a run without Slurm for a run with it."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "tests/cluster" in report.nodeid]
    if skipped:
        terminalreporter.section(f"THE {len(skipped)} TESTS ON SLURM WERE SKIPPED", sep="!", red=True, bold=True)
        terminalreporter.line(str(skipped[0].longrepr[2]))


@pytest.fixture(scope="session")
def slurm():
    """Start the cluster before the first test that uses it, and stop it after the last."""
    # A machine has one Slurm: another session of these tests has to end first.
    with open(Path(tempfile.gettempdir(), "onejump-slurm-tests.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield from running_slurm()


def running_slurm():
    environment = os.environ | NODE
    done = subprocess.run([SCRIPT, "up"], env=environment, text=True, capture_output=True)
    if done.returncode != 0:
        reason = f"no Slurm here ({done.stderr.strip() or done.stdout.strip()})"
        do_without(reason)
    yield
    subprocess.run([SCRIPT, "down", "--purge"], env=environment, check=True)


@pytest.fixture
def slurm_study(slurm, tiny_study) -> SlurmStudy:
    """config/test.yaml as the default config of a clone."""
    return SlurmStudy(tiny_study.folder, tiny_study.config)


@pytest.fixture
def finished_slurm_study(slurm, finished_study, tmp_path) -> SlurmStudy:
    """A copy of the finished study, for the tests that redo parts of it on Slurm."""
    folder = tmp_path / "copy"
    shutil.copytree(finished_study.folder, folder, symlinks=True)
    return SlurmStudy(folder, finished_study.config)
