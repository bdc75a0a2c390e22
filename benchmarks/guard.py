"""Small sizes of the comparisons, whose ratios a test holds against those recorded here: docs/benchmarks/guard.csv.

A change that makes a stage slower than half its recorded ratio to the baseline fails `make test`. Ratios are of ways
that took turns in one process, so a slow or busy machine moves both alike.

    python benchmarks/guard.py
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import claims
import dump
import evaluation
import exact
import fits
import measure
import numpy as np
import scores
import torch
from synthetic import Size, make_dump
from transformers import AutoModelForCausalLM, LlamaConfig

ROUNDS = 5
MAY_FALL_TO = 0.5  # of the recorded ratio


@dataclass(frozen=True)
class Ratio:
    """How many times as long as ours a baseline of a script takes, at one of its sizes."""

    script: str
    size: str
    baseline: str
    ratio: float


def _dump(folder: Path) -> list[measure.Row]:
    rng = np.random.default_rng(0)
    sizes = {"vocab_size": 4096, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=4)).eval()
    sentences = [rng.integers(0, sizes["vocab_size"], length).tolist() for length in rng.integers(2, 60, 400)]
    positions = [int(rng.integers(len(sentence))) for sentence in sentences]
    return dump.compare(model, sentences, positions, 512, ROUNDS)


def _fits(folder: Path) -> list[measure.Row]:
    size = Size("small", 2, 256, 64, 1500, 2)
    return fits.compare(make_dump(folder, size), size, ROUNDS)


def _scores(folder: Path) -> list[measure.Row]:
    size = Size("small", 16, 384, 64, 400, 2)
    return scores.compare(make_dump(folder, size), size, ROUNDS)


def _evaluation(folder: Path) -> list[measure.Row]:
    size = Size("small", 2, 384, 8192, 2, 64)
    return evaluation.compare(make_dump(folder, size), size, 6, ROUNDS)


GUARDED: dict[str, Callable[[Path], list[measure.Row]]] = {
    "dump": _dump,
    "fits": _fits,
    "exact": lambda folder: exact.compare(Size("small", 1, 512, 0, 1500, 0), ROUNDS),
    "scores": _scores,
    "evaluation": _evaluation,
    "claims": lambda folder: claims.compare(6, 400, 40, ROUNDS),
}


def ratios(script: str) -> list[Ratio]:
    """The ratios of one script at its small size, now."""
    with tempfile.TemporaryDirectory() as folder:
        return [Ratio(script, row.size, row.baseline, row.ratio) for row in GUARDED[script](Path(folder))]


def recorded(script: str) -> list[Ratio]:
    """The ratios of one script that docs/benchmarks/guard.csv has."""
    rows = [row for row in measure.read("guard", measure.RESULTS) if row["script"] == script]
    return [Ratio(script, row["size"], row["baseline"], float(row["ratio"])) for row in rows]


def fallen(found: Sequence[Ratio], before: Sequence[Ratio]) -> list[str]:
    """A line for each ratio that has fallen too far; both lists have the same sizes and baselines."""
    return [
        f"{now.script}, {now.size}: {now.baseline} takes {now.ratio:.2f} times as long, recorded was {then.ratio:.2f}"
        for now, then in zip(found, before, strict=True)
        if now.ratio < MAY_FALL_TO * then.ratio
    ]


def main() -> None:
    torch.set_num_threads(measure.parser(__doc__).parse_args().threads)
    measure.write("guard", [ratio for script in GUARDED for ratio in ratios(script)])


if __name__ == "__main__":
    measure.run(main)
