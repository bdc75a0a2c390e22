"""Render docs/benchmarks.md: numbers from the CSV files of docs/benchmarks/, text from the scripts' docstrings.

python benchmarks/page.py
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import measure

from onejump.files.atomic import read_json, write_text

PAGE = measure.ROOT / "docs" / "benchmarks.md"
# Script -> title of its section, and the tables that it makes.
SECTIONS = {
    "dump": ("Dump of activations", ["dump"]),
    "stream": ("Dump of a model that is not held whole", ["stream"]),
    "fits": ("Exact fits of all levels", ["fits"]),
    "exact": ("The exact fit at the width of Llama-2-7B", ["exact"]),
    "lenses": ("Full-rank lenses", ["lenses"]),
    "divergence": ("Fits by the divergence", ["divergence"]),
    "scores": ("D_m", ["scores"]),
    "evaluation": ("Evaluation", ["evaluation"]),
    "claims": ("Claims", ["claims"]),
    "growth": ("Growth", ["exponents", "growth"]),
    "startup": ("Start-up", ["startup"]),
    "overhead": ("Time outside the stages", ["overhead"]),
    "trajectory": ("A text read at every level", ["trajectory"]),
    "generate": ("Text with early exits", ["generate"]),
    "guard": ("The guard", ["guard"]),
}
INTRODUCTION = """\
# Benchmarks

Made by `make bench`, with one script in `benchmarks/` for each claim of speed. A script times our code, the baselines
and a limit in turns, and checks that ours and the baseline give the same result. *Ratio* is the baseline's time over
ours: the median over rounds, with the lowest and the highest. The limit is the time that the machine needs, in the same
rounds, for the unavoidable work alone; *share* is the limit's time over ours. Tables that name no processor were
measured on the machine below.
"""


@dataclass(frozen=True)
class Target:
    """A target for one column of a table; the worst of several rows counts.

    Attributes:
        what: description.
        side: `>=` or `<=`.
        bound: of the value.
        table: name of the table.
        column: name of the column.
        rows: column -> how its cell starts, in the rows that count; all rows if empty.
        inverse: whether the value is 1 over the column's.
    """

    what: str
    side: str
    bound: float
    table: str
    column: str
    rows: dict[str, str] = field(default_factory=dict)
    inverse: bool = False

    def measured(self, folder: Path) -> float:
        """The worst value."""
        rows = [
            row
            for row in measure.read(self.table, folder)
            if all(row[name].startswith(value) for name, value in self.rows.items())
        ]
        values = [float(row[self.column]) ** (-1 if self.inverse else 1) for row in rows]
        return min(values) if self.side == ">=" else max(values)

    def reached(self, value: float) -> bool:
        """Whether a value meets the target."""
        return value >= self.bound if self.side == ">=" else value <= self.bound


def _of(baseline: str) -> dict[str, str]:
    return {"baseline": baseline}


WIDE_FIT = {"grows_in": "H", "size": "4096", "stage": "fit-jump exact"}
TARGETS = (
    Target("dump, times as fast as unsorted batches", ">=", 6, "dump", "ratio", _of("unsorted")),
    Target("dump, times the bare model's time", "<=", 1.05, "dump", "ratio", _of("bare model"), inverse=True),
    Target("dump in float32, share of the rate of matrix products", ">=", 0.7, "dump", "share"),
    Target(
        "dump by blocks, times the whole model's time", "<=", 1.15, "stream", "ratio", {"way": "whole"}, inverse=True
    ),
    Target("dump by blocks, times as fast as offloading to disk", ">=", 20, "stream", "ratio", {"way": "offloaded"}),
    Target("dump by blocks, peak in gigabytes", "<=", 3, "stream", "peak_gb", {"way": "blocks"}),
    *(
        Target(
            f"exact fits, {ridges}, {what}", side, bound, "fits", "ratio", {"size": ridges, "baseline": name}, inverse
        )
        for ridges in ("no ridge", "ten ridges")
        for what, side, bound, name, inverse in (
            ("times as fast as least squares and SVD", ">=", 5, "least squares", False),
            ("times as fast as Adam to a gap of 5 %", ">=", 10, "Adam", False),
            ("times the time of their moments", "<=", 2, "moments", True),
        )
    ),
    Target("exact fit at H = 4096, N = 9000, seconds", "<=", 60, "growth", "seconds", WIDE_FIT),
    Target("exact fit at H = 4096, N = 9000, megabytes", "<=", 3000, "growth", "peak_mb", WIDE_FIT),
    *(
        Target(
            f"one gated jump by KL at {model}, seconds of its steps",
            "<=",
            bound,
            "divergence",
            "seconds",
            {"size": f"{model}, a gate"},
        )
        for model, bound in (("smollm2-135m", 60), ("gemma-3-270m", 360), ("qwen2.5-coder-1.5b", 600))
    ),
    Target("D_m, times as fast as full-width predictions", ">=", 10, "scores", "ratio"),
    Target("D_m, times the time of one product with its FLOPs", "<=", 1.5, "scores", "share", inverse=True),
    Target(
        "evaluation at SmolLM2, times as fast as the full head", ">=", 4, "evaluation", "ratio", {"size": "smollm2"}
    ),
    Target(
        "evaluation at Llama-2-7B, times as fast as the full head",
        ">=",
        12,
        "evaluation",
        "ratio",
        {"size": "llama-2-7b"},
    ),
    Target(
        "all levels of a text, times the plain forward", "<=", 1.5, "trajectory", "ratio", _of("plain"), inverse=True
    ),
    Target("all levels of a text, times as fast as the full head", ">=", 4, "trajectory", "ratio", _of("norm")),
    Target("`make demo`, share of its time outside the stages", "<=", 0.2, "overhead", "share"),
    Target("`make demo`, seconds", "<=", 360, "overhead", "wall_seconds"),
    Target("`onejump --help`, seconds", "<=", 0.5, "startup", "seconds", {"command": "onejump --help"}),
    Target(
        "start of a stage without PyTorch, seconds",
        "<=",
        0.5,
        "startup",
        "seconds",
        {"command": "imports of fetch-wheel"},
    ),
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def overall(folder: Path) -> str:
    """Targets and measurements, and how many of the fitted exponents agree with the theory."""
    rows = []
    for target in TARGETS:
        value = target.measured(folder)
        reached = "yes" if target.reached(value) else "**no**"
        rows.append([target.what, f"{target.side} {target.bound:g}", measure.shown(value), reached])
    told = [row["agrees"] for row in measure.read("exponents", folder) if row["agrees"]]
    agree = told.count("yes")
    reached = "yes" if agree == len(told) else "**no**"
    rows.append(["exponents of growth that agree with the theory", f"{len(told)} of {len(told)}", str(agree), reached])
    return table(["what", "target", "measured", "reached"], rows)


def machine(folder: Path) -> str:
    """The machine and its limits."""
    facts = read_json(folder / "machine.json")
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    text = (
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_bytes'] / 1e9:.0f} GB, {facts['system']}; "
        f"{versions}; BLAS of NumPy: {facts['numpy_blas']}, of PyTorch: {facts['torch_blas']}.\n\n"
    )
    rows = []
    for cores, flops in facts["flops"].items():
        for dtype in ("float32", "float64", "bfloat16"):
            rows.append([f"products in {dtype}, cores: {cores}", f"{flops[dtype] / 1e9:.0f} GFLOP/s"])
        rows.append([f"memory, cores: {cores}", f"{facts['memory_bytes_per_second'][cores] / 1e9:.1f} GB/s"])
    for name in ("write", "read"):
        rows.append([f"disk, {name}", f"{facts[f'disk_{name}_bytes_per_second'] / 1e9:.2f} GB/s"])
    return text + table(["limit", "measured"], rows)


def cell(text: str) -> str:
    """A cell of a CSV file as the page shows it: decimals with three digits."""
    return measure.shown(float(text)) if re.fullmatch(r"-?\d+(\.\d*)?(e[-+]?\d+)?", text) and "." in text else text


def section(name: str, folder: Path) -> str:
    """A script's title, docstring without its commands, and tables."""
    title, tables = SECTIONS[name]
    said = ast.get_docstring(ast.parse((measure.ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")))
    words = "\n\n".join(part for part in said.split("\n\n") if not part.startswith("    "))
    parts = [f"## {title}\n", f"{words}\n"]
    for file in tables:
        rows = measure.read(file, folder)
        parts.append(table(list(rows[0]), [[cell(text) for text in row.values()] for row in rows]))
    return "\n".join(parts)


def page(folder: Path) -> str:
    """docs/benchmarks.md, from the tables in a folder.

    Raises:
        OnejumpError: a table is missing.
    """
    parts = [INTRODUCTION, overall(folder), f"## Machine\n\n{machine(folder)}"]
    return "\n".join([*parts, *(section(name, folder) for name in SECTIONS)])


if __name__ == "__main__":
    write_text(PAGE, page(measure.RESULTS))
