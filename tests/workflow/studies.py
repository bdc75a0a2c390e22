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


@dataclass
class Study:
    """A working folder and the config of a study in it."""

    folder: Path
    config: dict

    def snakemake(self, *args: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run `snakemake` in the folder; its output is in `stdout`."""
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(self.config))
        command = ["snakemake", "-s", str(ROOT / "Snakefile"), "--configfile", str(file), "--cores", "2", *args]
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert not check or done.returncode == 0, done.stdout[-6000:]
        return done

    def results(self, *parts: str) -> Path:
        return self.folder.joinpath("results", self.config["study"], *parts)
