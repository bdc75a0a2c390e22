"""Checkpoints: the state of a long job, saved beside its output so that the same job can resume.

A job may be requeued, or run out of time and be submitted again. Snakemake then removes the job's declared output,
but not its checkpoint.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from onejump.files.atomic import OnejumpError, remove_temporaries
from onejump.files.tensors import TensorFile, write_tensors

INTERVAL = "ONEJUMP_CHECKPOINT_SECONDS"
DEFAULT_INTERVAL = "300"


def _code_digest() -> str:
    """SHA-256 of this package's sources: other code may compute something else."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


class Checkpoint:
    """The checkpoint of one output: saved now and then, and loaded only by a job that would compute the same bytes.

    Attributes:
        path: `.<name of the output>.checkpoint`, in the output's folder.

    Raises:
        OnejumpError: ONEJUMP_CHECKPOINT_SECONDS is not a number of seconds.
    """

    def __init__(self, output: str | Path, facts: dict, device: torch.device) -> None:
        """State what the computation depends on (`facts`, as JSON values), and remove what a killed job left."""
        self.path = Path(output).with_name(f".{Path(output).name}.checkpoint")
        for path in (output, self.path):
            remove_temporaries(path)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        machine = {"torch": torch.__version__, "device": name, "threads": torch.get_num_threads()}
        self._facts = json.dumps(facts | machine | {"code": _code_digest()}, sort_keys=True)
        interval = os.environ.get(INTERVAL, DEFAULT_INTERVAL)
        try:
            self._interval = float(interval)
        except ValueError as error:
            raise OnejumpError(f"{INTERVAL} is {interval!r}, expected a number of seconds; fix or unset it") from error
        self._saved = time.monotonic()

    def load(self) -> dict | None:
        """The state last saved, or None if there is none, it is damaged, or it belongs to another computation."""
        try:
            file = TensorFile(self.path)
            if file.metadata.get("facts") != self._facts:
                return None
            state = _assemble(file.value("state"), file.tensors())
        except OnejumpError:
            return None
        print(f"onejump: resuming from {self.path}", file=sys.stderr)
        return state

    @property
    def due(self) -> bool:
        """Whether the last save was long enough ago."""
        return time.monotonic() - self._saved >= self._interval

    def save(self, state: dict) -> None:
        """Save a state made of dicts, lists, tensors and JSON values."""
        tensors: dict[str, Tensor] = {}
        outline = _take_apart(state, tensors)
        write_tensors(self.path, tensors, {"facts": self._facts, "state": outline})
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Remove the file; for when the output is complete."""
        self.path.unlink(missing_ok=True)
        remove_temporaries(self.path)


class CheckpointPart:
    """The checkpoint of one of several steps: its state is saved beside what the steps before have found."""

    def __init__(self, whole: Checkpoint, found: dict, state: dict | None) -> None:
        """A part of `whole`: what the steps before have found, and the state that this step resumes at, if any."""
        self._whole, self._found, self._state = whole, found, state

    def load(self) -> dict | None:
        """The state that the step resumes at."""
        return self._state

    @property
    def due(self) -> bool:
        """As `Checkpoint.due`."""
        return self._whole.due

    def save(self, state: dict) -> None:
        """Save the step's state, and what was found before."""
        self._whole.save({"found": self._found, "step": state})


def _take_apart(value, tensors: dict[str, Tensor]):
    """Move the tensors of a nested value into `tensors`, and return the rest as JSON; dict keys may be numbers."""
    if isinstance(value, Tensor):
        name, value = f"tensor.{len(tensors)}", value.cpu()
        memory = value.untyped_storage().data_ptr()
        shared = any(memory == tensor.untyped_storage().data_ptr() for tensor in tensors.values())
        tensors[name] = value.clone() if shared else value  # safetensors refuses tensors that share memory
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _take_apart(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_take_apart(item, tensors) for item in value]
    return value


def _assemble(outline, tensors: dict[str, Tensor]):
    """The inverse of `_take_apart`; tuples have become lists."""
    if isinstance(outline, list):
        return [_assemble(item, tensors) for item in outline]
    if isinstance(outline, dict):
        if "tensor" in outline:
            return tensors[outline["tensor"]]
        return {key: _assemble(item, tensors) for key, item in outline["dict"]}
    return outline
