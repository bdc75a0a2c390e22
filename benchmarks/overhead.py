"""What a study on one machine takes beside its stages: its wall time on all cores, less the time that jobs worked.

From the benchmark file that Snakemake writes when a job ends: the job ran until then, for the seconds in it. The run is
from the first job's begin to the last job's end; each job has one core, as all rules ask for. The rest is Snakemake's
own work between jobs, and cores that had no job to do.

    python benchmarks/overhead.py [results/STUDY]

For a study that ran in one go, on the machine where it ran: `make clean demo` makes one.
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
        study: its name; jobs: how many.
        cores: that could work.
        wall_seconds: from the first job's begin to the last job's end.
        stage_seconds: of all jobs together.
        beside_seconds: wall_seconds less what the jobs take on all cores.
        share: of the wall time.
    """

    study: str
    jobs: int
    cores: int
    wall_seconds: float
    stage_seconds: float
    beside_seconds: float
    share: float


def overhead(results: Path, cores: int) -> Overhead:
    """From the benchmark files of a finished study.

    Raises:
        OnejumpError: there are none.
    """
    folder = results / "benchmarks"
    files = list(folder.rglob("*.tsv"))
    if not files:
        raise OnejumpError(f"{folder}: has no benchmark files; give the folder of a study that has run")
    seconds = [float(pd.read_csv(file, sep="\t")["s"].iloc[-1]) for file in files]
    ends = [file.stat().st_mtime for file in files]
    wall = max(ends) - min(end - took for end, took in zip(ends, seconds, strict=True))
    beside = wall - sum(seconds) / cores
    return Overhead(results.name, len(files), cores, wall, sum(seconds), beside, beside / wall)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=measure.embedded_study()[0])
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="that the run had (all)")
    given = parser.parse_args()
    measure.write("overhead", [overhead(given.results, given.cores)])


if __name__ == "__main__":
    measure.run(main)
