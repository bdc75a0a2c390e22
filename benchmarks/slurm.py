"""Seconds of its allocation that a Slurm job spends outside its stage, on average over the jobs of one study.

    scontrol -o show jobs | python benchmarks/slurm.py results/STUDY

Run it right after the study, on a cluster that runs nothing else: Slurm forgets finished jobs after a few minutes.
"""

import re
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))
from collect_timings import read_timings


def main(results: str) -> None:
    """Compare the time that Slurm counts with that in the stages' benchmark files."""
    allocated, jobs = 0.0, 0
    for line in sys.stdin:
        facts = dict(re.findall(r"(\w+)=(\S*)", line))
        if facts.get("JobState") == "COMPLETED":
            begin, end = (datetime.fromisoformat(facts[name]) for name in ("StartTime", "EndTime"))
            allocated, jobs = allocated + (end - begin).total_seconds(), jobs + 1
    stages = read_timings(Path(results) / "benchmarks")
    if jobs == 0 or jobs != stages["jobs"].sum():
        sys.exit(
            f"{results}: Slurm knows {jobs} finished jobs, the study has {stages['jobs'].sum()}; run the study again"
        )
    seconds = stages["seconds_total"].sum()
    beside = (allocated - seconds) / jobs
    print(
        f"{jobs} jobs, {allocated:.0f} s allocated, {seconds:.1f} s in stages: {beside:.1f} s per job outside its stage"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
