"""What computes, and how fast: GPUs by their data sheets, and two cores as `onejump rehearse` measured them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from onejump.files.atomic import OnejumpError, read_json

MB, GB = 1e6, 1e9


@dataclass(frozen=True)
class Machine:
    """What computes, and how fast.

    Attributes:
        name: as the plan's option takes it.
        rates: kind of a job's work -> how much of it a second; see `Work.amounts`.
        base_bytes, start_seconds: of a process that has imported PyTorch; model_bytes, model_seconds: what importing a
            model's code adds.
        device_bytes: of the device, None where it shares the host's; share: of the rates that stages reach.
        passes: stage or fit -> how often it reads or writes the arrays that it touches.
    """

    name: str
    rates: Mapping[str, float]
    base_bytes: float
    start_seconds: float
    model_bytes: float
    model_seconds: float
    device_bytes: float | None = None
    share: float = 1.0
    passes: Mapping[str, float] = field(default_factory=dict)

    def passes_of(self, kind: str) -> float:
        """The passes of a stage or fit; of one that was never measured, the median of the others."""
        return self.passes[kind] if kind in self.passes else median(self.passes.values() or [1.0])


def read_machine(path: str | Path) -> Machine:
    """A machine as a rehearsal measured it; raises OnejumpError where the file is missing or of another kind."""
    try:
        return Machine(**read_json(path))
    except TypeError as error:
        raise OnejumpError(f"{path}: not a measured machine ({error}); make it with onejump rehearse") from error


TWO_CORES = read_machine(Path(__file__).parent / "two-cores.json")
_SHEETS = read_json(Path(__file__).parent / "gpus.json")
MACHINES = {TWO_CORES.name: TWO_CORES} | {
    name: Machine(name, **_SHEETS["all"], **gpu, passes=TWO_CORES.passes) for name, gpu in _SHEETS["gpus"].items()
}
