"""How time and memory of each stage grow with the number of sentences N and the width H.

Each stage except the dump runs as a process of the command line, on files like a study's, with one core and two exit
levels; its wall time and peak resident memory are recorded. N grows at H = 576, H at N = 9000; the test split has N / 3
sentences. At the smallest size a stage mostly starts up and does work that does not depend on the size. The
exponent is fitted to what the other sizes take in addition, leaving out sizes where that is less than a twentieth of
the largest. Where the largest size takes less than 1 s or 30 MB more than the smallest, no exponent is fitted.

The theory: every stage passes over the sentences a fixed number of times. Exact fits compute moments, N H^2, and
decompose them, H^3; so do the other fits, for the optimum that they are measured against. Adam passes over its batches,
N H, and multiplies them at rank r = H / 100, N H r, as D_m does; exits take N V r, fusing their unembeddings r H V, the
full unembedding N H V. Memory holds shards, N H, and moments, H^2; evaluations also hold a slice of the logits, which
grows with N only until it is full.

    python benchmarks/growth.py
"""

import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np
import pyarrow as pa
from synthetic import Size, make_dump

from onejump.files.atomic import OnejumpError
from onejump.files.tables import write_table
from onejump.models.random_weights import save_random_model
from onejump.planning.rehearsal import WORDS, watch

LEVELS, VOCABULARY, TRANSFER = 2, 8192, 300
WIDTH, WIDTHS = 576, (64, 576, 1600, 4096)
SENTENCES, NUMBERS = 9000, (1000, 3000, 9000, 27000, 81000)
SLACK = 0.25  # allowed difference from the theory's exponent
LEAST = {"seconds": 1.0, "peak_mb": 30.0}
COUNTS = 0.05  # smaller shares of the largest size's growth are not fitted

Range = tuple[float, float]
# Exponents of time and of memory; a range where terms with different exponents add up.
IN_SENTENCES: dict[str, tuple[Range, Range]] = {
    "choose-positions": ((1, 1), (1, 1)),
    "fit-jump exact": ((1, 1), (1, 1)),
    "fit-jump adam": ((1, 1), (1, 1)),
    "fit-jump joint": ((1, 1), (1, 1)),
    "fit-jtc": ((1, 1), (1, 1)),
    "score-jumps": ((1, 1), (1, 1)),
    "select-jump": ((1, 1), (1, 1)),
    "evaluate-jumps": ((1, 1), (0, 1)),
    "evaluate-references": ((1, 1), (0, 1)),
    "assess-claims": ((1, 1), (1, 1)),
}
IN_WIDTH: dict[str, tuple[Range, Range]] = {
    "fit-jump exact": ((2, 3), (1, 2)),
    "fit-jump adam": ((1, 3), (1, 2)),
    "fit-jump joint": ((2, 3), (1, 2)),
    "fit-jtc": ((2, 3), (1, 2)),
    "score-jumps": ((1, 2), (1, 1)),
    "evaluate-jumps": ((1, 2), (1, 1)),
    "evaluate-references": ((1, 2), (1, 2)),
}


@dataclass(frozen=True)
class Taken:
    """What one stage took at one size: wall time in seconds, and peak resident memory in MB."""

    grows_in: str
    size: int
    stage: str
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Growth:
    """A fitted exponent and the theory's.

    Attributes:
        grows_in: N or H.
        stage: command and, for fits, which one.
        quantity: seconds or peak_mb.
        constant: what the smallest size takes.
        exponent: empty where none is fitted.
        theory: the exponent, or its range.
        agrees: whether the fitted exponent is within SLACK of the theory; empty where none is fitted.
    """

    grows_in: str
    stage: str
    quantity: str
    constant: float
    exponent: float | str
    theory: str
    agrees: str


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of log(value - first value) over log(size), over the sizes whose values have grown enough."""
    grown = np.asarray(values[1:]) - values[0]
    counts = grown >= COUNTS * grown[-1]
    return float(np.polyfit(np.log(sizes[1:])[counts], np.log(grown[counts]), 1)[0])


def growth(taken: Sequence[Taken], theory: dict[str, tuple[Range, Range]]) -> list[Growth]:
    """Exponents of each stage's time and memory, from what it took as N or H grew."""
    rows = []
    for stage, ranges in theory.items():
        points = [one for one in taken if one.stage == stage]
        for quantity, (low, high) in zip(LEAST, ranges, strict=True):
            values = [getattr(one, quantity) for one in points]
            told = f"{low}" if low == high else f"{low} to {high}"
            exponent, agrees = "", ""
            if values[-1] - values[0] >= LEAST[quantity]:
                exponent = fitted_exponent([one.size for one in points], values)
                agrees = "yes" if low - SLACK <= exponent <= high + SLACK else "no"
            rows.append(Growth(points[0].grows_in, stage, quantity, values[0], exponent, told, agrees))
    return rows


def repeated(option: str, files: Sequence[Path]) -> list:
    """An option of the command line, once for each file."""
    return [part for file in files for part in (option, file)]


def run_stage(stage: str, *arguments: object) -> tuple[float, float]:
    """Wall seconds and peak megabytes of one stage.

    Raises:
        OnejumpError: the stage failed; the message has the last line of its output.
    """
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "onejump.cli", stage, *map(str, arguments)], stderr=said)
        status, _, peak = watch(process.pid)
        seconds = time.perf_counter() - began
        process.returncode = status  # `watch` has already waited for it
        if status:
            said.seek(0)
            raise OnejumpError(f"{stage} failed: {said.read().strip().rpartition(chr(10))[2]}")
    return seconds, peak / 1e6


def sentences(folder: Path, size: Size) -> Path:
    """Write sentences.parquet with random words."""
    rng, n = np.random.default_rng(0), size.train + size.test
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 50))) for _ in range(n)]
    columns = {"sentence_id": pa.array(range(n), pa.int32()), "split": ["train"] * size.train + ["test"] * size.test}
    documents = [f"document {i}" for i in rng.integers(n // 10 + 1, size=n)]
    write_table(folder / "sentences.parquet", pa.table(columns | {"document": documents, "text": texts}))
    return folder / "sentences.parquet"


def run_stages(folder: Path, size: Size, threads: int) -> dict[str, tuple[float, float]]:
    """Seconds and peak megabytes of every stage except the dump, which needs a model."""
    dump, took = make_dump(folder, size), {}
    common = ["--unembedding", dump.unembedding, "--positions-file", dump.positions, "--threads", threads]
    train, test = ([*common, *repeated("--shard", dump.shards[split])] for split in ("train", "test"))
    files = [folder / f"level-{level}.safetensors" for level in range(size.n_blocks)]
    jumps = repeated("--jump", files)
    joint, selection = folder / "joint.safetensors", folder / "selection.json"
    cosines, evaluation, references = folder / "cosines.safetensors", folder / "e.parquet", folder / "r.parquet"
    unused, text = ["--out", folder / "unused"], ["--sentences-file", sentences(folder, size)]

    small = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    save_random_model(small | {"vocab_size": len(WORDS) + 1}, "float32", WORDS, folder / "model")
    text_of = ["--model", folder / "model", "--sentences", text[1]]
    took["choose-positions"] = run_stage("choose-positions", *text_of, *unused)
    for level, file in enumerate(files):
        exact = ["--level", level, "--fit", "exact", "--out", file]
        took["fit-jump exact"] = run_stage("fit-jump", *train, *exact)
    took["fit-jump adam"] = run_stage("fit-jump", *train, "--level", 0, "--fit", "adam", *unused)
    took["fit-jump joint"] = run_stage("fit-jump", *train, "--level", "joint", "--fit", "exact", "--out", joint)
    took["fit-jtc"] = run_stage("fit-jtc", *train, *unused)
    took["score-jumps"] = run_stage(
        "score-jumps", *train, *jumps, "--scores", folder / "scores.parquet", "--cosines", cosines
    )
    took["select-jump"] = run_stage("select-jump", "--cosines", cosines, *text, "--out", selection)
    chosen = [*jumps, "--selection", selection]
    exits = ["--joint", joint, "--transfer-sentences", TRANSFER, "--transfer", folder / "transfer.parquet"]
    took["evaluate-jumps"] = run_stage("evaluate-jumps", *test, *chosen, *exits, "--evaluation", evaluation)
    both = [*train, *repeated("--test-shard", dump.shards["test"])]
    others = ["--norms", folder / "norms.parquet", "--held-out", folder / "h.parquet"]
    took["evaluate-references"] = run_stage("evaluate-references", *both, *others, "--out", references)
    known = ["--evaluation", evaluation, "--references", references, "--positions-file", dump.positions, *text]
    took["assess-claims"] = run_stage("assess-claims", *chosen, *known, *unused)
    return took


def measured(grows_in: str, sizes: dict[int, Size], stages: Sequence[str], threads: int) -> list[Taken]:
    """What the stages take at each size."""
    taken = []
    for number, size in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            took = run_stages(Path(folder), size, threads)
        taken += [Taken(grows_in, number, stage, *took[stage]) for stage in stages]
    return taken


def tables(given: Namespace) -> dict[str, list]:
    """What the stages took, and the exponents fitted to it."""

    def size(sentences: int, width: int) -> Size:
        return Size("growth", LEVELS, width, VOCABULARY, sentences, sentences // 3)

    by_number = {number: size(number, given.width) for number in given.numbers}
    by_width = {width: size(given.sentences, width) for width in given.widths}
    in_sentences = measured("N", by_number, list(IN_SENTENCES), given.threads)
    in_width = measured("H", by_width, list(IN_WIDTH), given.threads)
    exponents = growth(in_sentences, IN_SENTENCES) + growth(in_width, IN_WIDTH)
    return {"growth": in_sentences + in_width, "exponents": exponents}


if __name__ == "__main__":
    measure.run(
        __doc__,
        tables,
        numbers=(NUMBERS, "training sentences, N"),
        widths=(WIDTHS, "H"),
        width=(WIDTH, "H while N grows"),
        sentences=(SENTENCES, "N while H grows; more than the largest H"),
    )
