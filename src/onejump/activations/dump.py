"""Forward passes that keep h^0 .. h^K at one position of each sentence."""

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onejump.activations.offloading import CPU, OnDevice, find_place, new_tensor
from onejump.activations.resuming import resumable, resume
from onejump.files.atomic import OnejumpError, require_room
from onejump.files.checkpoints import Checkpoint
from onejump.files.progress import progress_bar
from onejump.models.anatomy import Anatomy
from onejump.models.blocks import Blocks
from onejump.models.devices import free_bytes
from onejump.models.passes import Pass

logger = logging.getLogger(__name__)

# Most tokens in a padded batch, by device: on the CPU, few enough for what a block computes to stay in the cache.
TOKEN_BUDGETS = {"cpu": 512, "cuda": 16384, "mps": 4096}


def length_sorted_batches(lengths: Sequence[int], token_budget: int) -> list[np.ndarray]:
    """Rows in batches of similar length, each of at most `token_budget` tokens with padding, or of one sentence."""
    lengths = np.asarray(lengths)
    batches, batch = [], []
    for row in np.argsort(lengths, kind="stable"):
        if batch and (len(batch) + 1) * lengths[row] > token_budget:
            batches.append(np.array(batch))
            batch = []
        batch.append(row)
    return [*batches, np.array(batch)] if batch else batches


class _Batch(NamedTuple):
    """Sentences that run together: their rows, their tokens [n, T] padded on the right, and their lengths."""

    rows: Tensor
    input_ids: Tensor
    lengths: Tensor

    def last(self, h: Tensor) -> Tensor:
        """Hidden states [n, T, H] at the last token of each sentence: [n, H]."""
        return h[torch.arange(len(h), device=h.device), self.lengths.to(h.device) - 1]


class _DoesNotFit(Exception):
    """The device has no room for a batch."""

    def __init__(self, batch: _Batch) -> None:
        super().__init__()
        self.n_sentences, self.longest = batch.input_ids.shape


def gather_levels(
    anatomy: Anatomy,
    sentences: Sequence[Sequence[int]],
    token_budget: int,
    progress: str | None = None,
    checkpoint: Checkpoint | None = None,
    blocks: Blocks | None = None,
    sizes: Sequence[int] | None = None,
) -> tuple[Tensor, int]:
    """h^0 .. h^K at the last token of each sentence.

    Padding is on the right, where a causal model cannot see it, so no attention mask is needed. Each pass keeps one
    row a sentence, and the output head never runs. Batches run from long to short, so that what does not fit in the
    device's memory shows early; then all starts again with half the tokens a batch, because the states depend on the
    batches: in float32 by rounding, in bfloat16 visibly.

    A whole model runs batch by batch. Of a model whose blocks are loaded one at a time, all batches stand before a
    block, it is loaded, they pass, and it is dropped: the states are the same, bit for bit. What does not fit in memory
    meanwhile is in files without a name beside the checkpoint; then none is saved, since it would be as large.

    Args:
        anatomy: Of a model in evaluation mode.
        sentences: N lists of token ids, each cut after its position.
        token_budget: Most tokens in a padded batch.
        progress: Label of the progress bar, or None for no bar.
        checkpoint: Where an interrupted dump resumes, with the same result; or None.
        blocks: The model's blocks, if they are loaded one at a time; else None.
        sizes: Numbers of sentences, one after the other, that are in no batch with others: those of each shard, so that
            its states are the same whatever is dumped beside it. By default all are together.

    Returns:
        [K+1, N, H] on the CPU, in memory or in a mapped file, in the model's dtype, and the token budget that gives
        exactly these states.

    Raises:
        OnejumpError: A single sentence does not fit on the device, the states fit nowhere, or a block cannot be loaded.
    """
    folder = Path(tempfile.gettempdir()) if checkpoint is None else checkpoint.path.parent
    shape, dtype = (len(anatomy.blocks) + 1, len(sentences), anatomy.hidden_size), anatomy.model.dtype
    output = math.prod(shape) * dtype.itemsize
    if output > free_bytes(CPU) / 2:
        require_room(folder / "levels", 2 * output)  # with the file that is made of it
        levels, output, checkpoint = new_tensor(shape, dtype, folder), 0, None
    else:
        levels = new_tensor(shape, dtype, None)
    start = {"n_done": 0, "token_budget": token_budget}
    saved = (checkpoint.load() if checkpoint is not None else None) or start
    while True:
        batches = _batches(sentences, saved["token_budget"], sizes or [len(sentences)])
        if blocks is None:
            tokens = [int(batch.lengths.sum()) for batch in batches]
            way, unit, total = _batch_by_batch(anatomy, batches, levels, saved), "token", sum(tokens)
            done = sum(tokens[: saved["n_done"]])
        else:
            # What enters the first block is kept beside what enters the next one.
            needed = 2 * sum(batch.input_ids.numel() for batch in batches) * anatomy.hidden_size * dtype.itemsize
            waiting = find_place(needed, anatomy.device, blocks.largest, output, folder)
            checkpoint = None if waiting.in_file else checkpoint
            way, unit, total = _block_by_block(anatomy, batches, levels, saved, blocks, waiting), "level", len(levels)
            done = saved["n_done"]
        try:
            with torch.inference_mode(), progress_bar(None, progress, unit, total, done) as bar:
                for amount, save in way:
                    bar.update(amount)
                    if checkpoint is not None and checkpoint.due and (state := save()) is not None:
                        checkpoint.save(state | {"token_budget": saved["token_budget"]})
            return levels, saved["token_budget"]
        except _DoesNotFit as failure:
            saved = start | {"token_budget": _halved(failure, saved["token_budget"], blocks)}
        torch.cuda.empty_cache()


def _batches(sentences: Sequence[Sequence[int]], token_budget: int, sizes: Sequence[int]) -> list[_Batch]:
    """The sentences in batches, from long to short."""
    lengths, batches = torch.tensor([len(ids) for ids in sentences]), []
    for first, end in pairwise(accumulate(sizes, initial=0)):
        for rows in length_sorted_batches(lengths[first:end].numpy(), token_budget):
            rows = torch.as_tensor(rows) + first
            padded = pad_sequence([torch.as_tensor(sentences[row]) for row in rows], batch_first=True)
            batches.append(_Batch(rows, padded, lengths[rows]))
    return sorted(batches, key=lambda batch: batch.input_ids.shape[1], reverse=True)


def _halved(failure: _DoesNotFit, token_budget: int, blocks: Blocks | None) -> int:
    """The token budget after one that gave a batch which did not fit."""
    if failure.n_sentences == 1:
        beside, advice = "the model", "spread it over more GPUs (gpus), set load: blocks,"
        if blocks is not None:
            beside = "a block and the other sentences' states"
            advice = "let more jobs share the sentences (--set-scatter dumps=N, at most as many as shards),"
        raise OnejumpError(
            f"one sentence of {failure.longest} tokens does not fit on the device beside {beside}; {advice} or use a "
            "smaller dtype"
        ) from failure
    halved = failure.n_sentences * failure.longest // 2
    logger.warning("out of memory with %d tokens a batch; starting again with %d", token_budget, halved)
    return halved


@contextmanager
def _on_device(batch: _Batch) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _DoesNotFit(batch) from error


def _batch_by_batch(anatomy: Anatomy, batches: list[_Batch], levels: Tensor, saved: dict) -> Iterator:
    """Fill the levels; yields the tokens of each batch when it is done, and what saves that much."""
    if saved["n_done"]:
        levels.copy_(saved["levels"])
    for n_done, batch in enumerate(batches[saved["n_done"] :], saved["n_done"] + 1):
        with _on_device(batch):
            # One transfer a batch; a model spread over devices has its levels on several.
            size = len(levels), len(batch.rows), anatomy.hidden_size
            gathered = torch.empty(size, dtype=levels.dtype, device=anatomy.device)
            with anatomy.passes() as begin:
                for level, h in enumerate(begin(batch.input_ids.to(anatomy.device))):
                    gathered[level] = batch.last(h).to(gathered.device)
            levels[:, batch.rows] = gathered.cpu()
        yield int(batch.lengths.sum()), lambda n_done=n_done: {"levels": levels, "n_done": n_done}


def _block_by_block(
    anatomy: Anatomy, batches: list[_Batch], levels: Tensor, saved: dict, blocks: Blocks, waiting: OnDevice
) -> Iterator:
    """Fill the levels; yields 1 for each when it is done, and what saves all up to there."""
    with anatomy.passes() as begin:

        def starting(batch: _Batch) -> Pass:
            return begin(batch.input_ids.to(anatomy.device))

        under_way = [starting(batch) for batch in batches]
        if n_done := saved["n_done"]:
            levels[:n_done] = saved["levels"]
            for one, given in zip(under_way, saved["given"], strict=True):
                with waiting.running(one):
                    resume(one, n_done - 1, given, anatomy.device)

        def save() -> dict | None:
            if level + 1 == len(levels):
                return None
            with waiting.running(under_way[-1]):
                if not resumable(under_way, starting(batches[-1])):
                    return None
            given = [waiting.given(one) for one in under_way]
            return {"levels": levels[: level + 1], "n_done": level + 1, "given": given}

        for level in range(n_done, len(levels)):
            with blocks.loaded(level - 1) if level else nullcontext():
                for batch, one in zip(batches, under_way, strict=True):
                    with _on_device(batch), waiting.running(one):
                        levels[level, batch.rows] = batch.last(next(one)).cpu()
            yield 1, save


def shard_rows(positions: pa.Table, split: str, shard: int) -> pa.Table:
    """Rows of positions.parquet that belong to one shard.

    Raises:
        OnejumpError: There is no such shard.
    """
    rows = positions.filter((pc.field("split") == split) & (pc.field("shard") == shard))
    if len(rows) == 0:
        raise OnejumpError(f"has no shard {shard} of split {split!r}; ask for one that it lists")
    return rows


def check_identity(found: tuple[str, str, str], facts: Mapping) -> None:
    """Refuse a model (name, revision, dtype) other than the one that an unembedding with these facts was taken from.

    Raises:
        OnejumpError: The two differ.
    """
    expected = (facts["model"], facts["revision"], facts["dtype"])
    if found != expected:
        raise OnejumpError(f"was taken from {' '.join(expected)}, but this is {' '.join(found)}; extract it again")


def check_tokens(model, sentences: Sequence[Sequence[int]]) -> None:
    """Refuse token ids beyond a model's vocabulary.

    Raises:
        OnejumpError: There is one.
    """
    largest, vocabulary = max(map(max, sentences)), model.get_input_embeddings().num_embeddings
    if largest >= vocabulary:
        raise OnejumpError(
            f"has token {largest}, but the model knows 0..{vocabulary - 1}; choose the positions again with the "
            "model's own tokenizer"
        )


def check_finite(levels: Tensor, sentence_ids: np.ndarray, dtype: str) -> None:
    """Refuse hidden states [K+1, N, H] that are not finite, naming the first level and sentence.

    Raises:
        OnejumpError: A hidden state is NaN or infinite.
    """
    broken = ~levels.isfinite().all(-1)
    if broken.any():
        level, row = broken.nonzero()[0].tolist()
        raise OnejumpError(
            f"sentence {sentence_ids[row]}: NaN or infinite hidden state at level {level} in {dtype}; use "
            f"{'another model' if dtype == 'float32' else 'float32 or bfloat16'}"
        )
