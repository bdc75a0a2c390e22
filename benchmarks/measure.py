"""What all benchmarks share: ways that take turns, the rows of a comparison, and the CSV files of the page.

The machine's speed drifts, so no way is timed alone: each round runs every way once, and what is reported is the median
over rounds of the ratios within a round, with their range.
"""

import argparse
import csv
import dataclasses
import io
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# One thread for NumPy, as Snakemake gives every rule; NumPy looks when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml

from onejump.files.atomic import OnejumpError, write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "benchmarks"
OURS, LIMIT = "ours", "limit"  # names of two ways that each comparison has


@dataclass(frozen=True)
class Row:
    """One line of a table: ours beside one baseline.

    Attributes:
        size: what was run.
        baseline: its name.
        seconds, baseline_seconds: median over rounds.
        ratio: how many times as long as ours the baseline takes; median over rounds.
        lowest, highest: of the ratio.
        limit: what the machine would need for our work alone.
        share: of the limit that ours reaches: its seconds over ours.
    """

    size: str
    baseline: str
    seconds: float
    baseline_seconds: float
    ratio: float
    lowest: float
    highest: float
    limit: str
    share: float


@dataclass(frozen=True)
class Turns:
    """What `take_turns` found.

    Attributes:
        seconds: way -> [rounds], of the way's whole work.
        results: way -> what its last turn returned.
    """

    seconds: dict[str, np.ndarray]
    results: dict[str, object]


def take_turns(
    ways: Mapping[str, Callable[[int], object]], rounds: int, parts: Mapping[str, float] | None = None
) -> Turns:
    """Run every way once a round, each told the number of the turn.

    Args:
        ways: name -> action.
        rounds: turns of each.
        parts: name -> into how many equal parts a way's work falls, where a turn runs only one of them.
    """
    seconds, results = {name: np.empty(rounds) for name in ways}, {}
    for turn in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            results[name] = way(turn)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name][turn] = (time.perf_counter() - began) * (parts or {}).get(name, 1)
    return Turns(seconds, results)


def rows_of(turns: Turns, size: object, limit: str) -> list[Row]:
    """A row for each way but OURS and LIMIT, which stand in every one; `limit` says what the latter is."""
    ours = turns.seconds[OURS]
    share = float(np.median(turns.seconds[LIMIT] / ours))
    rows = []
    for name, seconds in turns.seconds.items():
        if name not in (OURS, LIMIT):
            ratios = seconds / ours
            found = (np.median(ours), np.median(seconds), np.median(ratios), ratios.min(), ratios.max())
            rows.append(Row(str(size), name, *map(float, found), limit, share))
    return rows


def require_close(what: str, found: object, expected: object, tolerance: float) -> None:
    """A fast wrong answer is no answer.

    Raises:
        OnejumpError: the largest difference is more than `tolerance` of the largest expected value, or not finite.
    """
    found, expected = (np.asarray(value, dtype=np.float64) for value in (found, expected))
    difference = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)
    if not difference <= tolerance:
        raise OnejumpError(f"{what}: ours and the baseline differ by {difference:.1e}, expected at most {tolerance:g}")


def write(name: str, rows: Sequence) -> None:
    """Print rows, dataclasses of one kind, as a table, and write them as docs/benchmarks/<name>.csv."""
    table = [dataclasses.asdict(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0], lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    write_text(RESULTS / f"{name}.csv", text.getvalue())
    cells = [list(table[0]), *([shown(value) for value in row.values()] for row in table)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def read(name: str, folder: Path) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Raises:
        OnejumpError: there is no such file.
    """
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise OnejumpError(f"{path}: no such file; make it by `make bench`")
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shown(value: object) -> str:
    """A cell as it is printed: three digits of a fraction."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def parser(description: str, threads: int = 1) -> argparse.ArgumentParser:
    """Options that all benchmarks have; by default as many threads as the rules of the workflow take."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=threads, help=f"CPU threads ({threads})")
    return made


def embedded_study() -> tuple[Path, Path]:
    """Where `make demo` leaves the study's results and the embedded model."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    (model,) = config["models"].values()
    return ROOT / "results" / config["study"], ROOT / "resources" / "models" / model["source"]["gguf"]["sha256"]


def run(main: Callable[[], None]) -> None:
    """Run a script; what a user can fix is said in one line."""
    try:
        main()
    except OnejumpError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
