"""What computes, and how fast."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onejump.files.atomic import OnejumpError, read_json

MB, GB = 1e6, 1e9


@dataclass(frozen=True)
class Machine:
    """What computes, and how fast.

    Attributes:
        name: as the plan's option takes it.
        flops: precision -> FLOP/s of dense products at peak; `eigen` -> H^3 per second of a float64 eigendecomposition.
        memory: bytes/s between memory and arithmetic.
        disk: bytes/s of files written or read, their digests included.
        device_bytes: memory of the device; None where it shares the host's.
        base_bytes: of a process that has imported everything and computed something.
        start_seconds: until a process computes.
        efficiency: rule -> share of these rates that the last measured run reached.
        assumed: that share for the other rules.
    """

    name: str
    flops: Mapping[str, float]
    memory: float
    disk: float
    device_bytes: float | None
    base_bytes: float = 0.29 * GB
    start_seconds: float = 6.0
    efficiency: Mapping[str, float] = field(default_factory=dict)
    assumed: float = 1.0


# Share of a GPU's peak that a rule is taken to reach where no measured run says otherwise (`onejump plan --measured`).
ASSUMED_EFFICIENCY = 0.3


def _gpu(name: str, half: float, single: float, double: float, gigabytes: float, bandwidth: float) -> Machine:
    """A GPU by its data sheet: TFLOP/s dense, GB, GB/s. Eigendecompositions reach a twentieth of the float64 peak."""
    flops = {"bfloat16": half, "float16": half, "float32": single, "float64": double, "eigen": double / 20}
    flops = {kind: value * 1e12 for kind, value in flops.items()}
    return Machine(
        name,
        flops,
        bandwidth * GB,
        1 * GB,
        gigabytes * GB,
        base_bytes=2.5 * GB,
        start_seconds=15.0,
        assumed=ASSUMED_EFFICIENCY,
    )


# Peak figures of the makers' data sheets: dense, tensor cores for bfloat16 and float64 where there are any, none for
# float32, which PyTorch does not round to TF32 unless asked.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("v100-32gb", 125, 15.7, 7.8, 32, 900),
        _gpu("a100-40gb", 312, 19.5, 19.5, 40, 1555),
        _gpu("a100-80gb", 312, 19.5, 19.5, 80, 2039),
        _gpu("h100", 989, 67, 67, 80, 3350),
        _gpu("h200", 989, 67, 67, 141, 4800),
        _gpu("l40s", 362, 91.6, 1.4, 48, 864),
        _gpu("a10g", 125, 31.2, 0.49, 24, 600),
        _gpu("rtx-4090", 165, 82.6, 1.3, 24, 1008),
    )
}


# Two cores of a 2023 server, and what rules reach of their rates: both as `onejump rehearse` measured them with the
# paper's three models. The workflow's runtimes are planned for them where there is no GPU.
TWO_CORES = Machine(
    "two-cores",
    {"float32": 170e9, "float64": 70e9, "bfloat16": 400e9, "float16": 110e9, "eigen": 4.5e9},
    memory=8 * GB,
    disk=0.5 * GB,
    device_bytes=None,
    efficiency={
        "extract_unembedding": 0.45,
        "dump_activations": 0.75,
        "fit_jump": 0.75,
        "fit_joint_jump": 0.4,
        "score_jumps": 0.45,
        "evaluate_jumps": 0.5,
    },
    assumed=0.5,
)


def read_machine(path: str | Path) -> Machine:
    """The machine as the last rehearsal measured it.

    Raises:
        OnejumpError: there is no such file, or it is of another kind.
    """
    try:
        return Machine(**read_json(path))
    except TypeError as error:
        raise OnejumpError(f"{path}: not a measured machine ({error}); make it with onejump rehearse") from error
