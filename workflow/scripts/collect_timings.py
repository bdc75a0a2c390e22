"""What the jobs of a study took and what they ran on, from Snakemake's benchmark files and the jobs' logs."""

import sys
from pathlib import Path

import pandas as pd

from onejump.files.tables import write_frame
from onejump.models.devices import DEVICE_LINE


def read_timings(folder: str | Path) -> pd.DataFrame:
    """What each stage cost, from the benchmark files `<folder>/<rule>.tsv` and `<folder>/<rule>/<job>.tsv`.

    Returns:
        rule, jobs, seconds_total, seconds_max, max_rss_mb: one row per rule; no rows if there are no files.
    """
    folder, rows = Path(folder), []
    for file in sorted(folder.rglob("*.tsv")):
        rule = file.relative_to(folder).parts[0].removesuffix(".tsv")
        job = pd.read_csv(file, sep="\t", na_values="-").iloc[-1]
        rows.append({"rule": rule, "seconds": job["s"], "max_rss_mb": job["max_rss"]})
    jobs = pd.DataFrame(rows, columns=["rule", "seconds", "max_rss_mb"])
    return (
        jobs.groupby("rule", sort=False)
        .agg(
            jobs=("seconds", "size"),
            seconds_total=("seconds", "sum"),
            seconds_max=("seconds", "max"),
            max_rss_mb=("max_rss_mb", "max"),
        )
        .reset_index()
    )


def read_hardware(folder: str | Path) -> pd.DataFrame:
    """What the stages ran on, from the first line that each of them writes to its log below `folder`.

    Returns:
        device, jobs: one row per kind of device, the most used first; no rows if no log has such a line.
    """
    devices = []
    for file in sorted(Path(folder).rglob("*.log")):
        first = file.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        if first.startswith(DEVICE_LINE):
            devices.append(first.removeprefix(DEVICE_LINE))
    return pd.Series(devices, name="device", dtype=str).value_counts().rename("jobs").reset_index()


def collect_timings(benchmarks: str | Path, logs: str | Path, timings: str | Path, hardware: str | Path) -> None:
    """Write both tables."""
    write_frame(timings, read_timings(benchmarks))
    write_frame(hardware, read_hardware(logs))


if "snakemake" in globals():  # as the script of a rule
    job = globals()["snakemake"]
    sys.stderr = open(job.log[0], "w", encoding="utf-8")  # noqa: SIM115
    collect_timings(job.params.benchmarks, job.params.logs, job.output.timings, job.output.hardware)
