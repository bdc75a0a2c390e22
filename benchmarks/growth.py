"""How time and memory of each stage grow with the number of sentences N and with the width H.

Each stage but the dump runs as a process of the command line, on files as a study has them, with one core and two exit
levels; its wall time and its largest resident memory are taken. N grows at H = 576, H at N = 9000; a third as many
sentences are for the test. What a stage takes at the smallest size is mostly its start and what does not depend on the
size; the exponent is that of what the other sizes take beyond it, where that is at least a twentieth of the largest's.
Where the largest takes less than 1 s or 30 MB more than the smallest, there is nothing to tell.

The theory: every stage passes a fixed number of times over the sentences. Exact fits form moments, N H^2, and decompose
them, H^3, and so do others for the optimum they are measured by. Adam passes over its batches, N H, and multiplies them
at rank r = H / 100, N H r, as D_m does; exits take N V r, the heads that they are fused to r H V, the full head N H V.
Memory holds shards, N H, and the moments, H^2; evaluations hold a slice of the logits beside them, which grows with N
only until it is full.

    python benchmarks/growth.py
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np
import pyarrow as pa
from synthetic import Size, make_dump

from onejump.files.atomic import OnejumpError
from onejump.files.tables import write_table
from onejump.planning.rehearsal import PREFIX, WORDS, repeated, watch

LEVELS, VOCABULARY, TRANSFER = 2, 8192, 300
WIDTH, WIDTHS = 576, (64, 576, 1600, 4096)
SENTENCES, NUMBERS = 9000, (1000, 3000, 9000, 27000, 81000)
SLACK = 0.25  # of an exponent from the theory's
LEAST = {"seconds": 1.0, "peak_mb": 30.0}
COUNTS = 0.05  # share of the largest size's growth from which on a size says something about the exponent

Range = tuple[float, float]
# Exponents of time and of memory; a range where terms of several exponents add up.
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
    """What one stage took at one size: seconds of wall time, and peak_mb of resident memory."""

    grows_in: str
    size: int
    stage: str
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Growth:
    """A fitted exponent beside the theory's.

    Attributes:
        grows_in: N or H; stage; quantity: seconds or peak_mb.
        constant: what the smallest size takes; exponent: empty where there is nothing to tell.
        theory: range of the exponent; agrees: whether it lies there, give or take SLACK.
    """

    grows_in: str
    stage: str
    quantity: str
    constant: float
    exponent: float | str
    theory: str
    agrees: str


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of log(value - first value) over log(size), of the sizes whose values have grown by enough."""
    grown = np.asarray(values[1:]) - values[0]
    counts = grown >= COUNTS * grown[-1]
    return float(np.polyfit(np.log(sizes[1:])[counts], np.log(grown[counts]), 1)[0])


def growth(taken: Sequence[Taken], theory: dict[str, tuple[Range, Range]]) -> list[Growth]:
    """Exponents of each stage's time and memory, from what it took at several sizes of one kind."""
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


def run_stage(stage: str, *arguments: object) -> tuple[float, float]:
    """Wall seconds and peak megabytes of one stage.

    Raises:
        OnejumpError: it failed; with the last line that it said.
    """
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "onejump.cli", stage, *map(str, arguments)], stderr=said)
        status, _, peak = watch(process.pid)
        seconds = time.perf_counter() - began
        process.returncode = status  # which `watch` has waited for
        if status:
            said.seek(0)
            raise OnejumpError(f"{stage} failed: {said.read().strip().rpartition(chr(10))[2]}")
    return seconds, peak / 1e6


def sentences(folder: Path, size: Size) -> Path:
    """sentences.parquet of random words."""
    rng, n = np.random.default_rng(0), size.train + size.test
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 50))) for _ in range(n)]
    columns = {"sentence_id": pa.array(range(n), pa.int32()), "split": ["train"] * size.train + ["test"] * size.test}
    write_table(folder / "sentences.parquet", pa.table(columns | {"text": texts}))
    return folder / "sentences.parquet"


def run_stages(folder: Path, size: Size, threads: int) -> dict[str, tuple[float, float]]:
    """Seconds and peak megabytes of every stage but the dump, which needs a model."""
    dump, took = make_dump(folder, size), {}
    common = ["--unembedding", dump.unembedding, "--positions-file", dump.positions, "--threads", threads]
    train, test = ([*common, *repeated("--shard", dump.shards[split])] for split in ("train", "test"))
    files = [folder / f"level-{level}.safetensors" for level in range(size.n_blocks)]
    jumps = repeated("--jump", files)
    joint, jtc, selection = folder / "joint.safetensors", folder / "jtc.safetensors", folder / "selection.json"
    cosines, evaluation, references = folder / "cosines.safetensors", folder / "e.parquet", folder / "r.parquet"
    unused = ["--out", folder / "unused"]

    took["choose-positions"] = run_stage(
        "choose-positions", "--model", f"{PREFIX}smollm2-135m", "--sentences", sentences(folder, size), *unused
    )
    for level, file in enumerate(files):
        exact = ["--level", level, "--fit", "exact", "--out", file]
        took["fit-jump exact"] = run_stage("fit-jump", *train, *exact)
    took["fit-jump adam"] = run_stage("fit-jump", *train, "--level", 0, "--fit", "adam", *unused)
    took["fit-jump joint"] = run_stage("fit-jump", *train, "--level", "joint", "--fit", "exact", "--out", joint)
    took["fit-jtc"] = run_stage("fit-jtc", *train, "--out", jtc)
    took["score-jumps"] = run_stage(
        "score-jumps", *train, *jumps, "--scores", folder / "scores.parquet", "--cosines", cosines
    )
    took["select-jump"] = run_stage("select-jump", "--cosines", cosines, "--out", selection)
    chosen = [*jumps, "--selection", selection]
    exits = ["--joint", joint, "--transfer-sentences", TRANSFER, "--transfer", folder / "transfer.parquet"]
    took["evaluate-jumps"] = run_stage("evaluate-jumps", *test, *chosen, *exits, "--evaluation", evaluation)
    took["evaluate-references"] = run_stage("evaluate-references", *test, "--jtc", jtc, "--out", references)
    evaluations = ["--evaluation", evaluation, "--references", references]
    took["assess-claims"] = run_stage("assess-claims", *chosen, *evaluations, *unused)
    return took


def measured(grows_in: str, sizes: dict[int, Size], stages: Sequence[str], threads: int) -> list[Taken]:
    """What the stages take at each size."""
    taken = []
    for number, size in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            took = run_stages(Path(folder), size, threads)
        taken += [Taken(grows_in, number, stage, *took[stage]) for stage in stages]
    return taken


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS, help="of training sentences")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="H")
    parser.add_argument("--width", type=int, default=WIDTH, help="H where N grows")
    parser.add_argument("--sentences", type=int, default=SENTENCES, help="N where H grows; more than the largest H")
    given = parser.parse_args()

    def size(sentences: int, width: int) -> Size:
        return Size("growth", LEVELS, width, VOCABULARY, sentences, sentences // 3)

    by_number = {number: size(number, given.width) for number in given.numbers}
    by_width = {width: size(given.sentences, width) for width in given.widths}
    in_sentences = measured("N", by_number, list(IN_SENTENCES), given.threads)
    in_width = measured("H", by_width, list(IN_WIDTH), given.threads)
    measure.write("growth", in_sentences + in_width)
    measure.write("exponents", growth(in_sentences, IN_SENTENCES) + growth(in_width, IN_WIDTH))


if __name__ == "__main__":
    measure.run(main)
