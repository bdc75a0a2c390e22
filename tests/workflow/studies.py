"""A folder to run the workflow in, with tiny models and texts; and Snakemake as a user calls it."""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
NOUNS = [
    "river",
    "castle",
    "engine",
    "painter",
    "mountain",
    "treaty",
    "planet",
    "library",
    "harbour",
    "winter",
    "museum",
]
VERBS = ["crosses", "resembles", "shaped", "followed", "replaced", "described", "surrounds", "supports"]
PLACES = ["in the north", "near the old town", "after the war", "during that century", "along the coast"]


def write_texts(folder: Path) -> None:
    """Three local files, some thirty sentences each."""
    rng = random.Random(0)

    def sentence() -> str:
        a, b = rng.sample(NOUNS, 2)
        return f"The {a} {rng.choice(VERBS)} the {b} {rng.choice(PLACES)} of {rng.randrange(1100, 2000)}."

    folder.mkdir()
    for name in ("one.txt", "two.txt"):
        (folder / name).write_text("\n".join(sentence() for _ in range(40)))
    rows = [{"title": f"Row {i}", "text": " ".join(sentence() for _ in range(8))} for i in range(6)]
    (folder / "three.jsonl").write_text("\n".join(map(json.dumps, rows)))


def environment(**variables: str) -> dict[str, str]:
    """Environment variables of a run: this Python's commands come first, and nothing is fetched from the hub."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"} | variables


@dataclass
class Study:
    """A working folder, the config of a study in it, and the repository whose workflow runs it."""

    folder: Path
    config: dict
    root: Path = ROOT

    def snakemake(self, *args: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        """Run `snakemake` in the folder, with more environment variables; its output is in `stdout`."""
        process = self.start(*args, **variables)
        output, _ = process.communicate()
        assert not check or process.returncode == 0, output[-6000:]
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def start(self, *args: str, **variables: str) -> subprocess.Popen:
        """Start `snakemake` in the folder."""
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(self.config))
        return subprocess.Popen(
            ["snakemake", "-s", str(self.root / "Snakefile"), "--configfile", str(file), "--cores", "2", *args],
            cwd=self.folder,
            env=environment(**variables),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def results(self, *parts: str) -> Path:
        return self.folder.joinpath("results", self.config["study"], *parts)
