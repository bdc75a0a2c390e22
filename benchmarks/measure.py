"""What all benchmarks share: timing in turns, the rows of a comparison, the CSV files, and the command line.

The machine's speed drifts, so nothing is timed alone: each round times every way once, and the result is the median
over rounds of the ratios within a round, with their range.
"""

import argparse
import csv
import dataclasses
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# One thread for NumPy, as in the rules; NumPy reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml

from onejump.files.atomic import OnejumpError, read_json, write_text
from onejump.models.devices import describe_device
from onejump.study_stages import publish

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "benchmarks"
OURS, LIMIT = "ours", "limit"  # two ways that every comparison has


@dataclass(frozen=True)
class Row:
    """One line of a table: ours and one baseline.

    Attributes:
        size: what was run.
        processor: on which, and for a CPU with how many threads.
        baseline: its name.
        seconds: of ours, median over rounds.
        baseline_seconds: of the baseline, median over rounds.
        ratio: baseline's time over ours, median over rounds.
        lowest: smallest ratio.
        highest: largest ratio.
        limit: the work whose time is the limit.
        share: the limit's time over ours.
    """

    size: str
    processor: str
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
    """What `take_turns` measured.

    Attributes:
        seconds: way -> [rounds], scaled up to the way's full work.
        results: way -> what its last turn returned.
    """

    seconds: dict[str, np.ndarray]
    results: dict[str, object]


def take_turns(
    ways: Mapping[str, Callable[[int], object]], rounds: int, parts: Mapping[str, float] | None = None
) -> Turns:
    """Time every way once a round.

    Args:
        ways: name -> action; it is passed the number of the round.
        rounds: turns of each way.
        parts: name -> number of equal parts of a way's work, where a turn does only one of them.
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


def rows_of(turns: Turns, size: object, limit: str, device: torch.device | None = None) -> list[Row]:
    """A row for each baseline; `limit` describes the work of LIMIT, and the device is the CPU by default."""
    processor = describe_device(device or torch.device("cpu"), torch.get_num_threads())
    ours = turns.seconds[OURS]
    share = float(np.median(turns.seconds[LIMIT] / ours))
    rows = []
    for name, seconds in turns.seconds.items():
        if name not in (OURS, LIMIT):
            ratios = seconds / ours
            found = (np.median(ours), np.median(seconds), np.median(ratios), ratios.min(), ratios.max())
            rows.append(Row(str(size), processor, name, *map(float, found), limit, share))
    return rows


def require_close(what: str, found: object, expected: object, tolerance: float) -> None:
    """Refuse a fast wrong answer.

    Raises:
        OnejumpError: the largest difference exceeds `tolerance` times the largest expected value, or is not finite.
    """
    found, expected = (np.asarray(value, dtype=np.float64) for value in (found, expected))
    difference = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)
    if not difference <= tolerance:
        raise OnejumpError(f"{what}: ours and the baseline differ by {difference:.1e}, expected at most {tolerance:g}")


def write(name: str, rows: Sequence) -> None:
    """Print rows, dataclasses of one type, as a table, and write them to docs/benchmarks/<name>.csv."""
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
        raise OnejumpError(f"{path}: no such file; run `make bench`")
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shown(value: object) -> str:
    """A cell as it is printed: floats with three digits."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def embedded_study() -> tuple[Path, Path]:
    """Where `make demo` leaves the study's results and the embedded model."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    (model,) = config["models"].values()
    return ROOT / "results" / config["study"], ROOT / "resources" / "models" / model["source"]["gguf"]["sha256"]


def model_and_sentences() -> dict[str, tuple[object, str]]:
    """Options of `run` for a script that passes sentences through a model: by default the embedded study's."""
    results, folder = embedded_study()
    return {
        "model": (str(folder), "folder in Transformers' format, or hub id"),
        "sentences": (results / "corpus/seed-0/sentences.parquet", "sentences.parquet of sample-sentences"),
    }


def published(results: Path, variant: str, base: str, folder: Path) -> Path:
    """The joint jump of a variant in a study of one model, published anew: the folder's path."""
    (model,) = read_json(results / "config.json")["models"]
    publish(results, results / "config.json", model, variant, base, folder / variant)
    return folder / variant


def run(
    script: str,
    tables: Callable[[argparse.Namespace], Mapping[str, Sequence]],
    threads: int = 1,
    **options: tuple[object, str],
) -> None:
    """Run a script: read its options, write and print its tables, and report an OnejumpError in one line.

    Args:
        script: its docstring.
        tables: table name -> rows, from the options; `folder` among them is a temporary folder.
        threads: default number of CPU threads; 1, as in the workflow's rules.
        options: name -> default and help.
    """
    parser = argparse.ArgumentParser(description=script, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, text) in ({"threads": (threads, "CPU threads")} | options).items():
        first, several = (default[0], "+") if isinstance(default, tuple) else (default, None)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(first), nargs=several, default=default, help=f"{text} ({default})")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, rows in tables(argparse.Namespace(folder=Path(folder), **vars(given))).items():
                write(name, rows)
    except OnejumpError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
