"""All stages run on a device that has no float64 and that no table lists, and compute what the CPU computes there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from device_stages import require_alike

# Not imported, since it makes the fits of its process short.
SCRIPT = Path(__file__).with_name("strange_stages.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of all results, and what went wrong in the stages that failed."""
    folder = tmp_path_factory.mktemp("strange")
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_all_stages_run(run):
    assert run[1] == {}


def test_the_results_are_those_of_the_cpu(run):
    require_alike(run[0] / "strange", run[0] / "cpu")
