"""What the machine is and the most it can do, for the page: docs/benchmarks/machine.json.

    python benchmarks/machine.py

FLOP/s of matrix products in each dtype and memory bandwidth, on one core and on all, as `onejump rehearse` measures
them; and the rates at which a file is written to disk and read back.
"""

import os
import platform
import tempfile
import time
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path

import measure
import numpy as np
import torch

from onejump.files.atomic import write_json
from onejump.models.devices import describe_device
from onejump.planning.rehearsal import measure_machine

PACKAGES = ("torch", "numpy", "transformers", "pyarrow")
BLOCK = 1 << 24  # bytes of a write
FLOPS = ("float32", "float64", "bfloat16", "float16", "eigen")


def disk_rates(folder: Path, size: int) -> tuple[float, float]:
    """Bytes per second of writing a new file of `size` bytes to disk, synced, and of reading it back."""
    block = np.random.default_rng(0).bytes(BLOCK)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(size // BLOCK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - began
        if hasattr(os, "posix_fadvise"):  # not on macOS, which then reads from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = time.perf_counter()
        while file.read(BLOCK):
            pass
        return size / written, size / (time.perf_counter() - began)


def describe(disk_bytes: int) -> dict:
    """The machine's name, versions and rates."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    cores = os.cpu_count()
    rates = {str(threads): measure_machine(threads) for threads in sorted({1, cores})}
    write_rate, read_rate = disk_rates(Path.cwd(), disk_bytes)
    return {
        "processor": describe_device(torch.device("cpu"), cores).rpartition(", ")[0],
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "numpy_blas": f"{blas['name']} {blas['version']}",
        "torch_blas": "MKL" if torch.backends.mkl.is_available() else "another",
        "flops": {threads: {kind: machine.rates[kind] for kind in FLOPS} for threads, machine in rates.items()},
        "memory_bytes_per_second": {threads: machine.rates["touched"] for threads, machine in rates.items()},
        "disk_write_bytes_per_second": write_rate,
        "disk_read_bytes_per_second": read_rate,
    }


def tables(given: Namespace) -> dict[str, list]:
    """Write machine.json; there are no tables."""
    write_json(measure.RESULTS / "machine.json", describe(given.disk_bytes))
    return {}


if __name__ == "__main__":
    measure.run(__doc__, tables, disk_bytes=(1 << 29, "size of the file that measures the disk"))
