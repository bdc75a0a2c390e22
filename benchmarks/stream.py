"""A dump that holds one block of the model at a time, beside a model in memory and two libraries that need not hold it.

- blocks: `load: blocks`, as the stage `dump-activations` runs it: all batches stand before a block, it is loaded, they
  pass;
- whole: the model in memory, `load: whole`;
- offloaded: Transformers' own way to run a model larger than memory, `device_map` with all blocks on the disk;
- airllm: the library AirLLM, if it is installed (`pip install airllm`), from files that it has split before.

The last two read the weights anew for each batch, so they run one batch in 20, and their time is scaled up. Each is a
process of its own, from loading the model to the states, on the same batches. All but `whole` may have 4 GB of memory,
the system's cache of files included, by a control group of Linux (as root), so that they cannot keep a larger model
there; where that is not allowed, `limit_gb` is empty. Nothing of the weights is in that cache at the start. The states
must be the same, bit for bit. *Ratio* is the way's time over that of `blocks`; *read* is what came from the disk.

    python benchmarks/stream.py
    python benchmarks/stream.py --model MODEL_FOLDER --number 2000 --threads 2

By default it uses the model and the sentences of the embedded study, so `make demo` has to run first.
"""

import multiprocessing
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import measure
import torch

from onejump.activations.dump import TOKEN_BUDGETS, gather_levels, length_sorted_batches
from onejump.activations.positions import choose_positions
from onejump.files.atomic import OnejumpError
from onejump.files.tables import read_table
from onejump.models.anatomy import Anatomy, find_anatomy
from onejump.models.blocks import load_model
from onejump.models.devices import describe_device
from onejump.models.sources import ModelSource

BLOCKS, WHOLE, OFFLOADED, AIRLLM = "blocks", "whole", "offloaded", "airllm"
LIMIT_GB = 4
# Where control groups of memory are, in both versions of Linux's, and the file that holds a group's limit.
GROUPS = (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"))
STEP = 20  # of so many batches, those that read the weights for each run one


@dataclass(frozen=True)
class Row:
    """One way to dump.

    Attributes:
        way: its name.
        size: what was run.
        processor: on which, and with how many threads.
        seconds: of loading the model and of the passes.
        ratio: these seconds over those of `blocks`.
        peak_gb: the process's largest memory.
        read_gb: from the disk.
        limit_gb: memory that it may have, or empty.
    """

    way: str
    size: str
    processor: str
    seconds: float
    ratio: float
    peak_gb: float
    read_gb: float
    limit_gb: float | str


def offloaded_model(source: ModelSource, blocks: str) -> torch.nn.Module:
    """The model with all members of the list `blocks` on the disk, where a pass reads them."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(source.load_config())
    backbone = blocks.rpartition(".")[0]
    inside = [f"{backbone}.{name}" for name, _ in outline.get_submodule(backbone).named_children()]
    parts = [name for name, _ in outline.named_children() if name != backbone]
    places = {name: "cpu" for name in [*parts, *inside] if name != blocks}
    places |= {f"{blocks}.{k}": "disk" for k in range(len(outline.get_submodule(blocks)))}
    return AutoModelForCausalLM.from_pretrained(source.location, device_map=places, dtype=torch.float32).eval()


def airllm_model(folder: str, split: str) -> torch.nn.Module:
    """The model as AirLLM runs it, whose files for each block are in `split`, where they are written if missing."""
    from airllm import AutoModel

    options = {"device": "cpu", "dtype": torch.float32, "layer_shards_saving_path": split}
    return AutoModel.from_pretrained(folder, **options).model.eval()


class Unloaded(Anatomy):
    """A model whose embedding is not loaded either between passes."""

    @property
    def device(self) -> torch.device:
        """Where token ids go, which its weights do not say."""
        return self.model.device


@contextmanager
def memory_group(gb: float) -> Iterator[Path | None]:
    """A control group whose processes have so much memory; None where none can be made."""
    group = next(filter(None, (_made_group(Path(root), limit, gb) for root, limit in GROUPS)), None)
    try:
        yield group
    finally:
        if group is not None:
            group.rmdir()


def _made_group(root: Path, limit: str, gb: float) -> Path | None:
    group = root / f"onejump-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        with open(group / limit, "r+") as file:  # which is there if the group is one
            file.write(str(int(gb * 1e9)))
    except OSError:
        group.rmdir()
        return None
    return group


def forget(files: Sequence[Path]) -> None:
    """Let the system's cache forget files."""
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def number_of(file: str, name: str) -> int:
    """A number of this process, from a file of /proc/self."""
    return int(Path("/proc/self", file).read_text().partition(f"{name}:")[2].split()[0])


def dump(way: str, group: Path | None, folder: str, split: str, paths: dict, sentences: list, threads: int) -> tuple:
    """States [K+1, n, H] of one way, in this process, and its seconds, peak memory in GB and GB read from the disk."""
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    torch.set_num_threads(threads)
    source, began, read = ModelSource(folder), time.perf_counter(), number_of("io", "read_bytes")
    if way == OFFLOADED:
        model, blocks = offloaded_model(source, paths["blocks"]), None
    elif way == AIRLLM:
        model, blocks = airllm_model(folder, split), None
    else:
        model, blocks = load_model(source, way, "float32", path=paths["blocks"], unused=paths["head"])
    loaded, read_once = time.perf_counter(), number_of("io", "read_bytes") - read
    with torch.inference_mode() if blocks is None else nullcontext():
        anatomy = (Unloaded if way == AIRLLM else Anatomy)(model, **paths)
        states, _ = gather_levels(anatomy, sentences, TOKEN_BUDGETS["cpu"], way, None, blocks)
    scale = 1 if way in (BLOCKS, WHOLE) else STEP
    seconds = loaded - began + (time.perf_counter() - loaded) * scale
    read = read_once + (number_of("io", "read_bytes") - read - read_once) * scale
    return states, seconds, 1024 * number_of("status", "VmHWM") / 1e9, read / 1e9


def outline(folder: str) -> tuple[dict, int]:
    """The paths of a model's parts, and the number of its weights."""
    model = ModelSource(folder).load_model()
    return find_anatomy(model).paths, sum(one.numel() for one in model.parameters())


def tables(given: Namespace) -> dict[str, list[Row]]:
    """The table, for the model and the sentences that the options name.

    Raises:
        OnejumpError: the states differ.
    """
    source = ModelSource(given.model)
    table = read_table(given.sentences, ["sentence_id", "split", "text"]).slice(0, given.number)
    tokens = choose_positions(table, source.load_tokenizer(), None, {}, seed=0)
    sentences = tokens["input_ids"].to_pylist()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:  # which maps the files, so that they could not be forgotten
        paths, parameters = process.submit(outline, given.model).result()
    # Batches that are divided again give the same batches.
    some = [
        row for rows in length_sorted_batches(list(map(len, sentences)), TOKEN_BUDGETS["cpu"])[::STEP] for row in rows
    ]
    rows, reference = [], None
    for way in (BLOCKS, WHOLE, OFFLOADED, *[AIRLLM] * (find_spec("airllm") is not None)):
        own = sentences if way in (BLOCKS, WHOLE) else [sentences[row] for row in some]
        with (
            tempfile.TemporaryDirectory() as split,
            memory_group(LIMIT_GB) if way != WHOLE else nullcontext() as group,
        ):
            if way == AIRLLM:
                airllm_model(given.model, split)
            forget([*source.find_weights(), *Path(split).rglob("*.safetensors")])
            with ProcessPoolExecutor(1, context) as process:
                run = process.submit(dump, way, group, given.model, split, paths, own, given.threads)
                states, *measured = run.result()
        reference = states if reference is None else reference
        if not torch.equal(states, reference if own is sentences else reference[:, some]):
            raise OnejumpError(f"{way}: its states are not those of {BLOCKS}, bit for bit")
        size = f"{len(sentences)} sentences, {parameters / 1e9:.2f}e9 weights, float32"
        seconds, *memory = measured
        ratio = seconds / rows[0].seconds if rows else 1.0
        processor = describe_device(torch.device("cpu"), given.threads)
        rows.append(Row(way, size, processor, seconds, ratio, *memory, "" if group is None else LIMIT_GB))
    return {"stream": rows}


if __name__ == "__main__":
    measure.run(__doc__, tables, **measure.model_and_sentences(), number=(500, "sentences to run"))
