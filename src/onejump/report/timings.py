"""What the jobs of a study took."""

from pathlib import Path

import pandas as pd

from onejump.models.devices import DEVICE_LINE


def read_timings(folder: str | Path) -> pd.DataFrame:
    """What each stage cost, from Snakemake's benchmark files `<folder>/<rule>.tsv` and `<folder>/<rule>/<job>.tsv`.

    Returns:
        rule, jobs, seconds_total, seconds_max, max_rss_mb: one row a rule; empty where there are no files.
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
    """What the stages ran on, from the line that each writes first to its log below `folder`.

    Returns:
        device, jobs: one row a kind of device, the most used first; empty where no log has such a line.
    """
    devices = []
    for file in sorted(Path(folder).rglob("*.log")):
        first = file.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        if first.startswith(DEVICE_LINE):
            devices.append(first.removeprefix(DEVICE_LINE))
    return pd.Series(devices, name="device", dtype=str).value_counts().rename("jobs").reset_index()
