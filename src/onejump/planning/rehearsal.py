"""A study at a model's full dimensions with random weights: what fails or does not fit shows before paying for a GPU.

The weights are written to real files first. Each stage runs as a process of its own, on the files of those before it,
and what it takes is set beside the plan.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import torch

from onejump.activations.dump import TOKEN_BUDGETS, length_sorted_batches
from onejump.files.atomic import OnejumpError, read_json, write_json
from onejump.files.tables import read_table, write_table
from onejump.files.tensors import TensorFile, write_tensors
from onejump.models.architecture import architecture_file
from onejump.models.random_weights import save_random_model
from onejump.planning.machines import MB, TWO_CORES, Machine, read_machine
from onejump.planning.work import Sizes, Work, work_of
from onejump.study.layout import level_name

WORDS = [f"word{number}" for number in range(2000)]  # level 0 has no more different rows, so more than any rank
HEADING = (
    f"{'stage':<20}{'s, plan':>8} {'run':>7}{'MB, plan':>10} {'run':>7}{'disk MB, plan':>15} {'run':>8}{'cpu s':>9}"
)


def rehearse(sizes: Sizes, folder: Path, levels: int, threads: int, longest: int) -> Iterator[dict]:
    """Run every stage for a model of random weights, and keep what they took for later plans.

    Args:
        sizes: of the model and of the sentences to make up.
        folder: for all files; the model's are removed at the end. machine.json, with the passes of each stage as
            measured, is written beside it.
        levels: exit levels whose jumps are fitted; the other jumps are copies of these.
        threads: of each stage.
        longest: words of the longest sentence.

    Yields:
        Of each stage when it ends: its name, kind and cpu_seconds, the `passes` that would explain its time, and wall
        seconds, bytes of memory and bytes of files as planned and measured. Raises OnejumpError where a stage fails.
    """
    file, rows = folder.parent / "machine.json", []
    known = read_machine(file) if file.is_file() else TWO_CORES
    machine = replace(measure_machine(threads), passes=known.passes)
    model, words = folder / "model", WORDS[: sizes.architecture.vocabulary - 1]
    shutil.rmtree(model, ignore_errors=True)
    save_random_model(read_json(architecture_file(sizes.architecture.name)), sizes.dtype, words, model)
    try:
        write_table(folder / "sentences.parquet", _sentences(words, sizes.train, sizes.test, longest))
        for stage, sized, options in _stages(sizes, folder, levels, {"threads": threads}):
            rows.append(_run_stage(stage, work_of(stage, sized), machine, options))
            yield rows[-1]
    finally:
        shutil.rmtree(model)
    write_json(folder / "rehearsal.json", rows)
    measured = {
        kind: median(row["passes"] for row in rows if row["kind"] == kind) for kind in {r["kind"] for r in rows}
    }
    write_json(file, asdict(replace(machine, passes=known.passes | measured)))


def as_line(row: dict) -> str:
    """A stage of a rehearsal as a line below HEADING."""
    (a, b, c), (x, y, z), cpu = row["planned"], row["measured"], row["cpu_seconds"]
    return f"{row['stage']:<20}{a:8.1f} {x:7.1f}{b / MB:10.0f} {y / MB:7.0f}{c / MB:15.1f} {z / MB:8.1f}{cpu:9.1f}"


def _stages(s: Sizes, f: Path, n_levels: int, threads: dict) -> Iterator[tuple[str, Sizes, dict]]:
    """Each stage, its sizes, and its options on the command line, in order."""
    K, model = s.architecture.n_blocks, {"model": f / "model"}
    inputs = {"unembedding": f / "unembedding.safetensors", "positions_file": f / "positions.parquet"}
    positions = {"train_shards": s.shards["train"], "test_shards": s.shards["test"], "out": inputs["positions_file"]}
    yield "choose_positions", s, model | positions | {"sentences": f / "sentences.parquet"}
    s, model = replace(s, tokens=_padded_tokens(inputs["positions_file"])), model | {"dtype": s.dtype, "load": s.load}
    yield "extract_unembedding", s, model | {"blocks": K, "out": inputs["unembedding"]}
    read = {split: inputs | threads for split in s.shards}
    for split, number in s.shards.items():
        read[split]["shard"] = [f / "activations" / split / f"shard-{shard:02d}.safetensors" for shard in range(number)]
        at_once = number if s.by_blocks else 1
        for first in range(0, number, at_once):
            shards = list(range(first, first + at_once))
            dumped = {"split": split, "shard": shards, "out": [read[split]["shard"][shard] for shard in shards]}
            sized = replace(s, split=split, at_once=at_once)
            yield "dump_activations", sized, model | inputs | threads | dumped
    levels = sorted({round(i * (K - 1) / max(1, n_levels - 1)) for i in range(n_levels)})
    jumps = [f / "jumps" / f"{level_name(level)}.safetensors" for level in range(K)]
    for fit, level in ((fit, level) for fit in ("adam", "exact") for level in levels):
        yield "fit_jump", replace(s, fit=fit), read["train"] | {"fit": fit, "level": level, "out": jumps[level]}
    joint = f / "jumps" / "joint.safetensors"
    yield "fit_joint_jump", s, read["train"] | {"fit": "exact", "level": "joint", "out": joint}
    for level in set(range(K)) - set(levels):
        fitted = TensorFile(jumps[min(levels, key=lambda k, level=level: abs(k - level))])
        write_tensors(jumps[level], fitted.tensors(), fitted.metadata | {"level": level})
    cosines, selection, every = f / "cosines.safetensors", f / "selection.json", {"jump": jumps}
    yield "score_jumps", s, read["train"] | every | {"scores": f / "scores.parquet", "cosines": cosines}
    yield "select_jump", s, {"cosines": cosines, "sentences_file": f / "sentences.parquet", "out": selection}
    tables = {"evaluation": f / "evaluation.parquet", "transfer": f / "transfer.parquet"}
    chosen = {"joint": joint, "selection": selection, "transfer_sentences": s.transfer}
    yield "evaluate_jumps", s, read["test"] | every | chosen | tables


def _run_stage(stage: str, work: Work, machine: Machine, options: dict) -> dict:
    values = [(name, one) for name, value in options.items() for one in (value if isinstance(value, list) else [value])]
    words = [str(word) for name, value in values for word in (f"--{name.replace('_', '-')}", value)]
    command = stage.replace("_joint", "").replace("_", "-")
    clock, started = time.time(), time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "onejump.cli", command, *words])
    status, usage, peak = watch(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise OnejumpError(f"rehearsal: {command} failed (exit status {process.returncode}); see above")
    seconds = time.perf_counter() - started
    files = (value.stat() for _, value in values if isinstance(value, Path))
    written = sum(file.st_size for file in files if file.st_mtime >= clock)
    cpu = usage.ru_utime + usage.ru_stime  # less than the wall time where other processes take the cores
    rest = min(seconds, cpu) - work.seconds(replace(machine, passes={work.kind: 0.0}))
    passes = max(0.0, rest) * machine.rates["touched"] / work.amounts["touched"]
    return {
        "stage": stage,
        "kind": work.kind,
        "planned": (work.seconds(machine), work.host_bytes(machine), work.amounts.get("written", 0.0)),
        "measured": (seconds, peak, written),
        "cpu_seconds": cpu,
        "passes": passes if work.amounts["touched"] > 10 * MB else machine.passes_of(work.kind),  # less is noise
    }


def measure_machine(threads: int) -> Machine:
    """This machine's rates, each the best of a few short runs, and what starting takes."""
    torch.set_num_threads(threads)

    def best(action: Callable[[], object]) -> float:
        return min(timeit.repeat(action, number=1, repeat=3)[1:])  # the first one warms up

    def run(*words: object) -> float:
        return best(lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True))

    rates = dict(TWO_CORES.rates)
    for name in ("float32", "float64", "bfloat16", "float16"):
        a, b = (torch.randn(rows, 1024).to(getattr(torch, name)) for rows in (256, 1024))
        rates[name] = 2 * 256 * 1024**2 / best(lambda a=a, b=b: a @ b)
    square = torch.randn(1024, 1024, dtype=torch.float64)
    rates["eigen"] = 1024**3 / best(lambda: torch.linalg.eigh(square))  # of which it reads one half
    block = torch.randn(25_000_000)
    rates["touched"] = 2 * 4 * len(block) / best(lambda: block.add_(1))
    start = run("-c", "import onejump.jumps.fitting, onejump.exits.evaluation")
    model = run("-m", "onejump.models.architecture", architecture_file("smollm2-135m")) - start
    return replace(TWO_CORES, name="this machine", rates=rates, start_seconds=start, model_seconds=model)


def _sentences(words: Sequence[str], train: int, test: int, longest: int) -> pa.Table:
    generator, split = np.random.default_rng(0), ["train"] * train + ["test"] * test
    texts = [" ".join(generator.choice(words, generator.integers(1, longest + 1))) for _ in split]
    return pa.table(
        {"sentence_id": pa.array(range(len(split)), pa.int32()), "split": split, "document": split, "text": texts}
    )


def _padded_tokens(positions: Path) -> float:
    """Tokens of a sentence that a dump runs, on average: up to its position, and padding."""
    table, padded = read_table(positions, ["split", "shard", "input_ids"]).to_pandas(), 0
    for _, rows in table.groupby(["split", "shard"]):
        lengths = rows["input_ids"].map(len).to_numpy()
        padded += sum(
            len(batch) * lengths[batch].max() for batch in length_sorted_batches(lengths, TOKEN_BUDGETS["cpu"])
        )
    return padded / len(table)


def watch(pid: int) -> tuple[int, resource.struct_rusage, float]:
    """Wait for a process: its status, what it used, and its largest resident memory in bytes."""
    peak, ended = 0.0, 0  # on Linux the usage's own figure starts from the memory of the process that forked
    while not ended:
        with suppress(OSError, IndexError):  # it ends between two looks, or there is no /proc
            text = Path(f"/proc/{pid}/status").read_text()
            peak = 1024.0 * int(text.partition("VmHWM:")[2].split()[0])
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        time.sleep(0.02)
    return status, usage, peak or float(usage.ru_maxrss)
