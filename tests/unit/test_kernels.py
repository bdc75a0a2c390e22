"""All stages with other kernels and threads, as on another machine: the digits that README and findings give hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from device_stages import require_alike, stages_of
from tiny_models import make_dump

from onejump.files.tensors import TensorFile
from onejump.parameters import Compute

# One thread and the kernels of this processor, and two threads with those of any.
MACHINES = {"own": ("1", {}), "other": ("2", {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"})}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder for each of MACHINES, with the activations and all that the stages make of them."""
    folder = tmp_path_factory.mktemp("kernels")
    for name, (threads, environment) in MACHINES.items():
        command = [sys.executable, __file__, str(folder / name), threads]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


def test_the_kernels_are_others(results):
    """Else nothing is compared: rounded otherwise, some file differs."""
    files = [sorted((results / name).rglob("*.safetensors")) for name in MACHINES]
    assert any(first.read_bytes() != second.read_bytes() for first, second in zip(*files, strict=True))


def test_the_digits_hold(results):
    require_alike(results / "other" / "results", results / "own" / "results")


def test_fits_on_the_divergence_come_to_the_same_one(results):
    """To two digits, which such fits are quoted with: three hundredths, on a validation slice of six sentences."""
    files = sorted((results / "own" / "results" / "kl").glob("*.safetensors"))
    assert files
    for file in files:
        both = (file, results / "other" / file.relative_to(results / "own"))
        first, second = (min(json.loads(TensorFile(path).metadata["validation_curve"])) for path in both)
        assert first == pytest.approx(second, rel=0.03), file.name


if __name__ == "__main__":
    folder, compute = Path(sys.argv[1]), Compute("cpu", int(sys.argv[2]))
    for stage in stages_of(make_dump(folder / "dump", 60, 20), folder / "results", compute).values():
        stage()
