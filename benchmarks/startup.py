"""How long the command line and each stage take to start, and what they import.

- `onejump --help`: the whole process;
- imports of each stage: a new Python process that imports the command line, then runs the import statements of the
  stage's function and of the methods that it calls on its parameters. Imports inside other functions are not counted.

    python benchmarks/startup.py
"""

import ast
import inspect
import subprocess
import sys
import textwrap
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass

import measure
import numpy as np

from onejump.cli import STAGES

HEAVY = ("torch", "transformers", "pandas", "pyarrow", "matplotlib", "datasets")


@dataclass(frozen=True)
class Start:
    """The start of a command.

    Attributes:
        command: what ran.
        seconds: of the whole process, median over rounds.
        modules: number of modules imported.
        heavy: those of HEAVY among them.
        torch: whether PyTorch is one of them.
    """

    command: str
    seconds: float
    modules: int
    heavy: str
    torch: str


def imports_of(function: Callable) -> list[str]:
    """Import statements in a function, and in the methods that it calls on its parameters."""
    nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    kinds = [p.annotation for p in inspect.signature(function).parameters.values() if is_dataclass(p.annotation)]
    methods = [method for kind in kinds for name, method in vars(kind).items() if name in attributes]
    found = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return [line for method in filter(inspect.isfunction, methods) for line in imports_of(method)] + found


def process_of(function: Callable) -> list[str]:
    """Arguments of a Python that only imports what a stage does, and starts and ends as the command line does."""
    begin = ["import gc, os, onejump.cli", "gc.set_threshold(100_000, 50, 50)"]
    return ["-c", "\n".join([*begin, *imports_of(function), "os._exit(0)"])]


def start(command: str, arguments: list[str], rounds: int) -> Start:
    """Time Python with these arguments, then run it once more to list its imports."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    told = subprocess.run([sys.executable, "-X", "importtime", *arguments], check=True, capture_output=True, text=True)
    modules = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines() if line.startswith("import time:")}
    heavy = [name for name in HEAVY if name in modules]
    return Start(command, float(np.median(seconds)), len(modules), " ".join(heavy), "yes" if "torch" in heavy else "no")


def tables(given: Namespace) -> dict[str, list[Start]]:
    """The table: the command line, then the stages."""
    commands = {"onejump --help": ["-m", "onejump.cli", "--help"]}
    commands |= {f"imports of {stage.__name__.replace('_', '-')}": process_of(stage) for stage in STAGES}
    return {"startup": [start(command, arguments, given.rounds) for command, arguments in commands.items()]}


if __name__ == "__main__":
    measure.run(__doc__, tables, rounds=(3, "processes of each command"))
