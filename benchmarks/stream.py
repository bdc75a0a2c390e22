"""A dump that holds one block of the model at a time, beside a model in memory and two libraries that need not hold it.

- blocks: `load: blocks`, as the stage `dump-activations` runs it: all batches stand before a block, it is loaded, they
  pass;
- whole: the model in memory, `load: whole`;
- offloaded: Transformers' own way to run a model larger than memory, `device_map` with all blocks on the disk;
- airllm: the library AirLLM, if it is installed (`pip install airllm`), from files that it has split before.

The last two read the weights anew for each batch, so they run one batch in STEP, and their time is scaled up. Each is a
process of its own, from loading the model to the states, on the same batches, so that its peak memory is its own; the
weights have been read once before, so that all find them in the system's cache. The states must be the same, bit for
bit. *Ratio* is the way's time over that of `blocks`.

    python benchmarks/stream.py
    python benchmarks/stream.py --model MODEL_FOLDER --number 2000 --threads 2

By default it uses the model and the sentences of the embedded study, so `make demo` has to run first.
"""

import multiprocessing
import tempfile
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import measure
import torch

from onejump.activations.dump import TOKEN_BUDGETS, gather_levels, length_sorted_batches
from onejump.activations.positions import choose_positions
from onejump.files.atomic import OnejumpError
from onejump.files.digests import sha256_of_file
from onejump.files.tables import read_table
from onejump.models.anatomy import Anatomy, find_anatomy
from onejump.models.blocks import load_model
from onejump.models.devices import describe_device
from onejump.models.sources import ModelSource

BLOCKS, WHOLE, OFFLOADED, AIRLLM = "blocks", "whole", "offloaded", "airllm"
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
    """

    way: str
    size: str
    processor: str
    seconds: float
    ratio: float
    peak_gb: float


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


def peak_gb() -> float:
    """Largest resident memory of this process; of `getrusage`, it would be its parent's when that was larger."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0]) / 1e9


def dump(way: str, folder: str, split: str, paths: dict, sentences: list, threads: int) -> tuple:
    """States [K+1, n, H], seconds and peak memory in GB of one way, in this process."""
    torch.set_num_threads(threads)
    source, began = ModelSource(folder), time.perf_counter()
    if way == OFFLOADED:
        model, blocks = offloaded_model(source, paths["blocks"]), None
    elif way == AIRLLM:
        model, blocks = airllm_model(folder, split), None
    else:
        model, blocks = load_model(source, way, "float32", path=paths["blocks"], unused=paths["head"])
    loaded = time.perf_counter()
    with torch.inference_mode() if blocks is None else nullcontext():
        states, _ = gather_levels(Anatomy(model, **paths), sentences, TOKEN_BUDGETS["cpu"], way, None, blocks)
    seconds = loaded - began + (time.perf_counter() - loaded) * (1 if way in (BLOCKS, WHOLE) else STEP)
    return states, seconds, peak_gb()


def tables(given: Namespace) -> dict[str, list[Row]]:
    """The table, for the model and the sentences that the options name.

    Raises:
        OnejumpError: the states differ.
    """
    source = ModelSource(given.model)
    table = read_table(given.sentences, ["sentence_id", "split", "text"]).slice(0, given.number)
    tokens = choose_positions(table, source.load_tokenizer(), None, {}, seed=0)
    sentences = tokens["input_ids"].to_pylist()
    outline = source.load_model()
    anatomy, parameters = find_anatomy(outline), sum(one.numel() for one in outline.parameters())
    paths = anatomy.paths
    del outline, anatomy
    for file in source.find_weights():
        sha256_of_file(file)
    # Batches that are divided again give the same batches.
    some = [
        row for rows in length_sorted_batches(list(map(len, sentences)), TOKEN_BUDGETS["cpu"])[::STEP] for row in rows
    ]
    rows, context, reference = [], multiprocessing.get_context("spawn"), None
    for way in (BLOCKS, WHOLE, OFFLOADED, *[AIRLLM] * (find_spec("airllm") is not None)):
        own = sentences if way in (BLOCKS, WHOLE) else [sentences[row] for row in some]
        with tempfile.TemporaryDirectory() as split:
            if way == AIRLLM:
                airllm_model(given.model, split)
            with ProcessPoolExecutor(1, context) as process:
                run = process.submit(dump, way, given.model, split, paths, own, given.threads)
                states, seconds, peak = run.result()
        reference = states if reference is None else reference
        if not torch.equal(states, reference if own is sentences else reference[:, some]):
            raise OnejumpError(f"{way}: its states are not those of {BLOCKS}, bit for bit")
        size = f"{len(sentences)} sentences, {parameters / 1e9:.2f}e9 weights, float32"
        ratio = seconds / rows[0].seconds if rows else 1.0
        rows.append(Row(way, size, describe_device(torch.device("cpu"), given.threads), seconds, ratio, peak))
    return {"stream": rows}


if __name__ == "__main__":
    measure.run(__doc__, tables, **measure.model_and_sentences(), number=(500, "sentences to run"))
