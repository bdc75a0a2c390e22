"""The device that is used, and names that are refused."""

import ctypes
import subprocess
import sys

import pytest
import torch
from missing import do_without
from refusals import error_of

from onejump.models.devices import by_device, float64_device, resolve_device


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "hpu", "mtia", "xpu"])
def test_an_unknown_device_is_refused_with_the_known_ones(name):
    message = error_of(lambda: resolve_device(name))
    assert message.startswith(f"device {name!r} cannot be used here")
    assert message.endswith("use auto, cpu, cuda or mps")


def test_a_device_that_is_not_here_is_refused():
    assert error_of(lambda: resolve_device("cuda:99")).startswith("device 'cuda:99' cannot be used here")


def test_auto_is_the_best_device_here():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto").type == best
    assert resolve_device("cpu") == torch.device("cpu")


def test_float64_arithmetic_is_done_on_a_device_that_has_it():
    """tests/unit/test_strange_device.py has a device without it."""
    assert float64_device(torch.device("cpu")) == torch.device("cpu")


def test_sizes_for_a_device_that_is_not_listed_are_those_of_cuda():
    sizes = {"cpu": 1, "cuda": 2, "mps": 3}
    found = {kind: by_device(sizes, torch.device(kind)) for kind in ("cpu", "cuda", "mps", "xpu")}
    assert found == {"cpu": 1, "cuda": 2, "mps": 3, "xpu": 2}
    assert by_device(sizes, torch.device("cuda:1")) == 2


def test_memory_of_freed_arrays_is_used_again():
    """Else each new array of a size that is common here costs a fault for each of its pages, also the tenth."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        do_without("the C library is not glibc")
    code = """
import resource, torch
from onejump.parameters import Compute
Compute("cpu", 1).start()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 << 18)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    faults = [int(line) for line in done.stdout.split()]
    assert sum(faults[-5:]) < faults[0]
