"""The comparisons at small sizes, as a guard against slow code: `make test` measures these ratios again.

It fails where a ratio has fallen below half of the one recorded in docs/benchmarks/guard.csv. Both sides of a ratio
take turns in one process, so a slow or busy machine affects them alike.

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
SMALLEST_SHARE = 0.5  # of the recorded ratio


@dataclass(frozen=True)
class Ratio:
    """A baseline's time over ours, in one script at one of its sizes."""

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
    """The ratios of one script at its small size, measured now."""
    with tempfile.TemporaryDirectory() as folder:
        return [Ratio(script, row.size, row.baseline, row.ratio) for row in GUARDED[script](Path(folder))]


def recorded(script: str) -> list[Ratio]:
    """The ratios of one script in docs/benchmarks/guard.csv."""
    rows = [row for row in measure.read("guard", measure.RESULTS) if row["script"] == script]
    return [Ratio(script, row["size"], row["baseline"], float(row["ratio"])) for row in rows]


def fallen(found: Sequence[Ratio], before: Sequence[Ratio]) -> list[str]:
    """A line for each ratio that has fallen too far; both lists must have the same sizes and baselines."""
    return [
        f"{now.script}, {now.size}: {now.baseline} takes {now.ratio:.2f} times as long, was {then.ratio:.2f}"
        for now, then in zip(found, before, strict=True)
        if now.ratio < SMALLEST_SHARE * then.ratio
    ]


if __name__ == "__main__":
    measure.run(__doc__, lambda given: {"guard": [ratio for script in GUARDED for ratio in ratios(script)]})
