"""How long a command takes before it does anything, and what each stage imports.

- `onejump --help`, and `onejump write-config`, a stage without PyTorch: whole processes;
- the imports of each stage: a new Python that runs the import statements of the stage and of its helpers in the command
  line. What the stage imports later, inside other functions, is not counted.

    python benchmarks/startup.py
"""

import ast
import inspect
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np

from onejump import cli

HEAVY = ("torch", "transformers", "pandas", "pyarrow", "matplotlib", "datasets")


@dataclass(frozen=True)
class Start:
    """The start of a command.

    Attributes:
        command: what ran; seconds: of the whole process, median over rounds.
        modules: how many it imports; heavy: those of HEAVY among them.
        torch: whether PyTorch is one of them.
    """

    command: str
    seconds: float
    modules: int
    heavy: str
    torch: str


def imports_of(function: Callable) -> list[str]:
    """Import statements in a function of the command line, and in the helpers there that it names."""
    nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))))
    helpers = {node.id for node in nodes if isinstance(node, ast.Name) and node.id.startswith("_")} & vars(cli).keys()
    found = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return [line for name in sorted(helpers) for line in imports_of(getattr(cli, name))] + found


def process_of(function: Callable) -> list[str]:
    """Python's arguments for the imports of a stage alone; it begins and ends as `onejump.cli.main` does."""
    begin = ["import gc, os, onejump.cli", "gc.set_threshold(100_000, 50, 50)"]
    return ["-c", "\n".join([*begin, *imports_of(function), "os._exit(0)"])]


def start(command: str, arguments: list[str], rounds: int) -> Start:
    """Time Python with the arguments, then ask it once what it imports."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    told = subprocess.run([sys.executable, "-X", "importtime", *arguments], check=True, capture_output=True, text=True)
    modules = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines() if line.startswith("import time:")}
    heavy = [name for name in HEAVY if name in modules]
    return Start(command, float(np.median(seconds)), len(modules), " ".join(heavy), "yes" if "torch" in heavy else "no")


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write = ["write-config", "--config", "{}", "--out", str(Path(folder) / "config.json")]
        rows = [
            start(f"onejump {arguments[0]}", ["-m", "onejump.cli", *arguments], given.rounds)
            for arguments in (["--help"], write)
        ]
    stages = cli.cli.commands.items()
    rows += [start(f"imports of {name}", process_of(stage.callback), given.rounds) for name, stage in stages]
    measure.write("startup", rows)


if __name__ == "__main__":
    measure.run(main)
