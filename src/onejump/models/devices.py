"""Devices that stages compute on, and dtypes that models run in."""

import ctypes
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from onejump.files.atomic import OnejumpError

DEVICE_LINE = "onejump: runs on "  # in the log of each job that computes
# Parameters of glibc's mallopt, from its malloc.h, and bytes below which it keeps what is freed.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT = -1, -3, 1 << 29
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device of PyTorch's name for it, or for `auto` the best one here: CUDA, else Apple MPS, else the CPU.

    Raises:
        OnejumpError: PyTorch does not know the device, or cannot use it here.
    """
    if name == "auto":
        usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        name = next(kind for kind, works in usable.items() if works)
    try:
        tensor = torch.zeros(1, device=name)
        float(tensor)  # fails on a device that holds no values, such as meta
        return tensor.device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OnejumpError(f"device {name!r} cannot be used here ({reason}); use auto, cpu, cuda or mps") from error


def float64_device(device: torch.device) -> torch.device:
    """The device for float64 arithmetic: `device` itself, or the CPU where it has no float64, as Apple MPS."""
    if device.type in ("cpu", "cuda"):
        return device
    try:
        torch.ones(1, dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device


def free_bytes(device: torch.device) -> float:
    """Memory that is free on the device; of the host, no more than its cgroups let a process take in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [float("inf")]
    with suppress(OSError, ValueError):  # not on Linux
        available = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        found.append(1024.0 * int(available.group(1)))
    with suppress(OSError):
        group = Path("/sys/fs/cgroup" + Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip())
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no limit is the word max
                found.append(float(int((folder / "memory.max").read_text())))
    return min(found)


def keep_freed_memory() -> None:
    """Let this process keep the memory of arrays that it frees for the next ones, where glibc has it.

    Else glibc hands arrays above 32 MB back to the system, which clears their pages anew for the next.
    """
    with suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, KEPT)


def by_device(values: Mapping[str, int], device: torch.device) -> int:
    """The value for the device's kind; that of `cuda` for an accelerator that is not listed."""
    return values[device.type if device.type in values else "cuda"]


def describe_device(device: torch.device, threads: int) -> str:
    """The maker's name of the device, and for a CPU the number of threads in use."""
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()} {'GPU' if device.type == 'mps' else device.type}"
    info = Path("/proc/cpuinfo")  # on Linux, the platform module does not know a CPU's name
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {threads} thread{'s' * (threads > 1)}"
