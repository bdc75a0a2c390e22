"""Time that a study on one machine spends outside its stages: its wall time minus the time in which the cores ran jobs.

Snakemake writes a benchmark file when a job ends: its modification time is the job's end, and the seconds in it are the
job's duration. The run lasts from the first start to the last end; each job has one core, as all rules request.
What remains is Snakemake's own work between jobs, and cores without a job.

    python benchmarks/overhead.py [--results results/STUDY]

The study must have run without interruption, on this machine: `make clean demo` makes one.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import measure
import pandas as pd

from onejump.files.atomic import OnejumpError


@dataclass(frozen=True)
class Overhead:
    """One run of a study.

    Attributes:
        study: its name.
        jobs: their number.
        cores: cores of the run.
        wall_seconds: from the start of the first job to the end of the last.
        stage_seconds: of all jobs together.
        beside_seconds: wall_seconds minus stage_seconds spread over the cores.
        share: beside_seconds over wall_seconds.
    """

    study: str
    jobs: int
    cores: int
    wall_seconds: float
    stage_seconds: float
    beside_seconds: float
    share: float


def overhead(results: Path, cores: int) -> Overhead:
    """The overhead, from the benchmark files of a finished study.

    Raises:
        OnejumpError: there are none.
    """
    folder = results / "benchmarks"
    files = list(folder.rglob("*.tsv"))
    if not files:
        raise OnejumpError(f"{folder}: no benchmark files; name the folder of a finished study")
    seconds = [float(pd.read_csv(file, sep="\t")["s"].iloc[-1]) for file in files]
    ends = [file.stat().st_mtime for file in files]
    wall = max(ends) - min(end - took for end, took in zip(ends, seconds, strict=True))
    beside = wall - sum(seconds) / cores
    return Overhead(results.name, len(files), cores, wall, sum(seconds), beside, beside / wall)


if __name__ == "__main__":
    measure.run(
        __doc__,
        lambda given: {"overhead": [overhead(given.results, given.cores)]},
        results=(measure.embedded_study()[0], "folder of the study"),
        cores=(os.cpu_count(), "cores of the run"),
    )
