"""Run all stages that compute on a tiny model's activations on the CPU and on a strange device.

Run as a script, in a process of its own, since PyTorch keeps a device that was made up; prints, as JSON, what went
wrong in each stage that failed there.
"""

import json
import sys
import traceback
from pathlib import Path

import few_steps  # noqa: F401
import strange_device
import torch
from device_stages import stages_of
from tiny_models import make_dump

from onejump.parameters import Compute


class OnStrangeDevice:
    """In place of the options --device and --threads."""

    def start(self) -> torch.device:
        """The strange device."""
        return strange_device.DEVICE


def main(folder: Path) -> dict[str, str]:
    """What went wrong in each stage that failed on the strange device.

    That device goes first: PyTorch counts devices when it first computes gradients.
    """
    dump = make_dump(folder, 60, 20)
    failed = {}
    with strange_device.strange_device():
        for name, stage in stages_of(dump, folder / "strange", OnStrangeDevice()).items():
            try:
                stage()
            except Exception as error:
                traceback.print_exc()
                failed[name] = repr(error)
    for stage in stages_of(dump, folder / "cpu", Compute("cpu")).values():
        stage()
    return failed


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
