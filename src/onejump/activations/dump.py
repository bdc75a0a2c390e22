"""Forward passes that keep h^0 .. h^K at one position of each sentence."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.files.progress import progress_bar
from onejump.models.anatomy import Anatomy

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


def gather_levels(
    anatomy: Anatomy,
    sentences: Sequence[Sequence[int]],
    token_budget: int,
    progress: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Tensor, int]:
    """h^0 .. h^K at the last token of each sentence.

    Padding is on the right, where a causal model cannot see it, so no attention mask is needed. Each hook keeps one
    row a sentence, and the output head never runs. Batches run from long to short, so that what does not fit in the
    device's memory shows early; then all starts again with half the tokens a batch, because the states depend on the
    batches: in float32 by rounding, in bfloat16 visibly.

    Args:
        anatomy: Of a model in evaluation mode.
        sentences: N lists of token ids, each cut after its position.
        token_budget: Most tokens in a padded batch.
        progress: Label of the progress bar, or None for no bar.
        checkpoint: Where an interrupted dump resumes, with the same result; or None.

    Returns:
        [K+1, N, H] on the CPU, in the model's dtype, and the token budget that gives exactly these states.

    Raises:
        OnejumpError: A single sentence does not fit on the device.
    """
    lengths = np.array([len(ids) for ids in sentences])
    levels = torch.empty(*_shape(anatomy, sentences), dtype=anatomy.model.dtype)
    n_done = 0
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        levels, n_done, token_budget = saved["levels"], saved["n_done"], saved["token_budget"]
    batches = length_sorted_batches(lengths, token_budget)[::-1]
    done = sum(int(lengths[rows].sum()) for rows in batches[:n_done])
    bar = progress_bar(None, progress, "token", total=int(lengths.sum()), done=done)
    with torch.inference_mode(), bar:
        while n_done < len(batches):
            rows = batches[n_done]
            try:
                levels[:, torch.as_tensor(rows)] = _last_rows(anatomy, [sentences[row] for row in rows])
            except torch.OutOfMemoryError as error:
                longest = int(lengths[rows].max())
                if len(rows) == 1:
                    raise OnejumpError(
                        f"one sentence of {longest} tokens does not fit on the device beside the model; "
                        "spread it over more GPUs (gpus), or use a smaller dtype"
                    ) from error
                failed, token_budget = token_budget, len(rows) * longest // 2
                logger.warning("out of memory with %d tokens a batch; starting again with %d", failed, token_budget)
                torch.cuda.empty_cache()
                batches, n_done = length_sorted_batches(lengths, token_budget)[::-1], 0
                bar.reset()
                continue
            bar.update(int(lengths[rows].sum()))
            n_done += 1
            if checkpoint is not None and checkpoint.due:
                checkpoint.save({"levels": levels, "n_done": n_done, "token_budget": token_budget})
    return levels, token_budget


def _shape(anatomy: Anatomy, sentences: Sequence) -> tuple[int, int, int]:
    return len(anatomy.blocks) + 1, len(sentences), anatomy.hidden_size


def _last_rows(anatomy: Anatomy, sentences: Sequence[Sequence[int]]) -> Tensor:
    """h^0 .. h^K at the last token of each sentence of one batch: [K+1, n, H] on the CPU."""
    lengths = [len(ids) for ids in sentences]
    padded = torch.zeros(len(sentences), max(lengths), dtype=torch.long)
    for i, ids in enumerate(sentences):
        padded[i, : len(ids)] = torch.as_tensor(ids)
    model = anatomy.model
    gathered = torch.empty(*_shape(anatomy, sentences), dtype=model.dtype, device=model.device)

    def take(level: int, h: Tensor) -> None:
        # A model spread over devices has its levels on several.
        batch = torch.arange(len(sentences), device=h.device)
        gathered[level] = h[batch, torch.as_tensor(lengths, device=h.device) - 1].to(gathered.device)

    anatomy.run(padded.to(model.device), take)
    return gathered.cpu()


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
