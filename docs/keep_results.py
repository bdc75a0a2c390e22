"""Keep the tables of finished studies in docs/results: `python docs/keep_results.py results/demo`, one folder or more.

What findings.md says is read from these files. Of the tables that hold a row for each level, sentence or step, only a
part is kept, since they are large: the rest is in the summary of the study that `make study` makes anew.
"""

import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"
WHOLE = (
    "models",
    "methods",
    "methods_spread",
    "one_jump_spread",
    "verdicts",
    "one_jump",
    "jumps",
    "lenses",
    "gates",
)
WHOLE += ("shortlist", "few_checks", "switches", "oracle", "ranks", "shared_jumps", "chosen", "norms")
PARTS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "claims": lambda table: table[table["rule"].notna()],
    "by_position": lambda table: table[table["level"].isna()].drop(columns="level"),
    "by_origin": lambda table: table[table["level"].isna()].drop(columns="level"),
    "dynamic_exit": lambda table: table[table["chosen"]],
}


def keep(study: Path) -> None:
    """Write a study's tables, and what made them, to docs/results/<study>."""
    folder = RESULTS / study.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*WHOLE, *PARTS):
        if not (file := study / "summary" / f"{name}.parquet").exists():
            continue  # not every study has text that a model wrote
        table = pd.read_parquet(file)
        table = PARTS.get(name, lambda whole: whole)(table).apply(_counts)
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    (folder / "made-by.txt").write_text(_made_by(study))


def _counts(column: pd.Series) -> pd.Series:
    """The column, as integers if it has no others: counts with gaps are floats, of which a CSV keeps six digits."""
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        return column.astype("Int64")
    return column


def _made_by(study: Path) -> str:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    devices = pd.read_parquet(study / "hardware.parquet")["device"].tolist()
    packages = sorted(
        {f"{package.name}=={package.version}" for package in distributions() if package.name != "onejump"}
    )
    heading = [f"The study {study.name}, at commit {commit}", f"Devices: {', '.join(devices)}"]
    return "\n".join([*heading, f"Python {platform.python_version()}", "", *packages, ""])


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        keep(Path(argument))
