"""Devices that stages compute on, and dtypes that models run in."""

import platform
import re
from pathlib import Path

import torch

from onejump.files.atomic import OnejumpError

DEVICE_LINE = "onejump: runs on "  # in the log of each job that computes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Find the device to compute on.

    Args:
        name: PyTorch's name of a device, or `auto` for the best one here: CUDA, else Apple MPS, else the CPU.

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
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OnejumpError(f"device {name!r} cannot be used here ({reason}); use auto, cpu, cuda or mps") from error


def describe_device(device: torch.device, threads: int) -> str:
    """The maker's name of the device, and for a CPU the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.machine()} GPU"
    info = Path("/proc/cpuinfo")  # on Linux, the platform module does not know a CPU's name
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {threads} thread{'s' * (threads > 1)}"
