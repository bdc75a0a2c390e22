"""Try every causal language model of the installed Transformers and write docs/architectures.md.

    python docs/describe_architectures.py

Each is made tiny, with random weights, and checked as `tiny_architectures.check` says, in a process of its own.
Of those supported, the states are also taken one block at a time.
"""

import multiprocessing
import os
import sys
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))
from models_by_blocks import saved
from tiny_architectures import ARCHITECTURES, CRASHED, SUPPORTED, VERDICTS, WRONG, attempt, tiny_architecture

from onejump.files.atomic import OnejumpError, write_text

PAGE = Path(__file__).parent / "architectures.md"
TIME_LIMIT = 120  # seconds for one architecture
HEADER = """\
# Architectures

Every causal language model that Transformers {version} lists, tried by `make architectures`:
{counts}.

Each is made tiny, with random weights, norms and biases included. *Supported* means that the levels dumped from padded
batches are those of each sentence alone, that the unembedding gives the model's own logits from them, and that it also
does so from any other state, both whole and fused to a low rank. *Does not run* means that Transformers itself cannot
make or run the model on text alone. Models that can be encoders are made decoders here (`is_decoder`); as encoders they
are refused, since they are not causal. *By blocks* are those whose states are the same bit for bit when only one block
at a time is in memory (`load: blocks`), {by_blocks} of them.

The list is not a condition: `extract-unembedding` proves on each model itself what it assumes, and refuses in one line
what it cannot prove, so that a model missing here may well be supported.

| model type | class | verdict | unembedding, or why not | by blocks |
| --- | --- | --- | --- | --- |
"""


Answer = tuple[str, str, str]  # verdict, what there is to say about it, and whether the model can be held by blocks


def sweep() -> dict[str, Answer]:
    """Every architecture's attempt, as many at a time as there are cores, each in a process that it may take down."""
    context = multiprocessing.get_context("fork")  # what has been imported is shared
    waiting, running, results = list(ARCHITECTURES), {}, {}
    while waiting or running:
        while waiting and len(running) < len(os.sched_getaffinity(0)):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(waiting[0], sender))
            process.start()
            sender.close()
            running[receiver] = (waiting.pop(0), process)
        for receiver in wait(list(running), TIME_LIMIT) or list(running):
            model_type, process = running.pop(receiver)
            results[model_type] = _answer(receiver)
            process.kill()
            process.join()
            print(f"{model_type}: {': '.join(results[model_type])}", flush=True)
    return results


def _work(model_type: str, sender: Connection) -> None:
    torch.set_num_threads(1)
    verdict, text = attempt(model_type)
    by_blocks = _by_blocks(model_type) if verdict == SUPPORTED else ""
    sender.send((WRONG if by_blocks == "wrong" else verdict, text, by_blocks))


def _by_blocks(model_type: str) -> str:
    """Whether a model's states are those of the whole model when one block at a time is loaded."""
    try:
        with TemporaryDirectory() as folder:
            one = saved(tiny_architecture(model_type), folder)
            return "yes" if torch.equal(one.streamed(one.blocks()), one.whole()) else "wrong"
    except OnejumpError as error:
        return f"no: {str(error).partition(': ')[2]}"


def _answer(receiver: Connection) -> Answer:
    try:
        return receiver.recv() if receiver.poll() else (CRASHED, f"no answer within {TIME_LIMIT} seconds", "")
    except EOFError:
        return CRASHED, "the process died", ""


def page(results: dict[str, Answer]) -> str:
    """docs/architectures.md."""
    numbers = Counter(verdict for verdict, *_ in results.values())
    streamed = sum(by_blocks == "yes" for *_, by_blocks in results.values())
    counts = ", ".join(f"{numbers[verdict]} {verdict}" for verdict in VERDICTS)
    rows = []
    for model_type, (verdict, text, by_blocks) in sorted(results.items()):
        cells = (ARCHITECTURES[model_type], verdict, text, by_blocks)
        rows.append(f"| `{model_type}` | {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return HEADER.format(version=transformers.__version__, counts=counts, by_blocks=streamed) + "".join(rows)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    found = sweep()
    write_text(PAGE, page(found))
    sys.exit(any(verdict in (WRONG, CRASHED) for verdict, *_ in found.values()))
