"""Tokens, positions, the dump of hidden states into shards, and their checked reading."""

import copy
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from onejump.artifacts import OnejumpError, TensorFile, numbers, read_table, write_table, write_tensors
from onejump.checkpoints import Checkpoint
from onejump.models import Anatomy, Head, ModelSource, find_anatomy
from onejump.progress import progress_bar

logger = logging.getLogger(__name__)

# Most tokens in a padded batch, by kind of device: on the CPU few enough that what a block computes stays in the cache.
TOKEN_BUDGETS = {"cpu": 512, "cuda": 16384, "mps": 4096}


def level_name(level: int) -> str:
    """Name of a level's tensor: `level.07`."""
    return f"level.{level:02d}"


# --------------------------------------------------------------------------------------------------------- positions


def choose_positions(
    sentences: pa.Table, tokenizer, max_tokens: int | None, shards: dict[str, int], seed: int
) -> pa.Table:
    """Tokenise each sentence and choose one position in it, uniformly (as Din et al. do).

    Args:
        sentences: sentence_id, split, text.
        tokenizer: of Transformers; it adds a BOS token where that is its default.
        max_tokens: longest input of the model, or None; a longer sentence is cut.
        shards: split -> number of shards; sentences are dealt to shards in order, in near-equal numbers.
        seed: of the choice.

    Returns:
        sentence_id int32, split, shard int32, n_tokens int32, position int32 (0-based), token_id int32 (the token at
        the position), starts_with_bos (whether the first token is the tokenizer's BOS), input_ids list<int32> (cut
        after the position: a causal model cannot see further).

    Raises:
        OnejumpError: a sentence has no tokens, or a split has fewer sentences than shards.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    tokens = [ids[:max_tokens] for ids in tokenizer(sentences["text"].to_pylist())["input_ids"]]
    n_tokens = np.array([len(ids) for ids in tokens], dtype=np.int32)
    ids, split = sentences["sentence_id"].to_numpy(), np.array(sentences["split"].to_pylist())
    if (n_tokens == 0).any():
        row = int(np.argmax(n_tokens == 0))
        raise OnejumpError(
            f"sentence {ids[row]} ({sentences['text'][row].as_py()!r}) has no tokens; remove it from the corpus or "
            "use the model's own tokenizer"
        )
    position = (np.random.default_rng(seed).random(len(ids)) * n_tokens).astype(np.int32)
    shard = np.zeros(len(ids), dtype=np.int32)
    for name, count in shards.items():
        rows = np.flatnonzero(split == name)
        if len(rows) < count:
            raise OnejumpError(f"split {name} has {len(rows)} sentences for {count} shards; ask for fewer shards")
        shard[rows] = np.arange(len(rows)) * count // len(rows)
    return pa.table(
        {
            "sentence_id": pa.array(ids, pa.int32()),
            "split": pa.array(split.tolist()),
            "shard": pa.array(shard),
            "n_tokens": pa.array(n_tokens),
            "position": pa.array(position),
            "token_id": pa.array([t[p] for t, p in zip(tokens, position, strict=True)], pa.int32()),
            "starts_with_bos": pa.array([t[0] == bos for t in tokens], pa.bool_()),
            "input_ids": pa.array([t[: p + 1] for t, p in zip(tokens, position, strict=True)], pa.list_(pa.int32())),
        }
    )


def save_positions(
    source: ModelSource, sentences: str | Path, path: str | Path, shards: dict[str, int], seed: int
) -> None:
    """Stage `choose-positions`: sentences.parquet -> positions.parquet. Errors as in `choose_positions`."""
    table = read_table(sentences, ["sentence_id", "split", "text"])
    tokenizer = source.load_tokenizer()
    write_table(path, choose_positions(table, tokenizer, source.load_max_positions(), shards, seed))


# -------------------------------------------------------------------------------------------------------------- dump


def length_sorted_batches(lengths: Sequence[int], token_budget: int) -> list[np.ndarray]:
    """Rows in batches of similar length: each padded batch holds at most `token_budget` tokens, or one sentence."""
    lengths = np.asarray(lengths)
    batches, batch = [], []
    for row in np.argsort(lengths, kind="stable"):
        if batch and (len(batch) + 1) * lengths[row] > token_budget:
            batches.append(np.array(batch))
            batch = []
        batch.append(row)
    return [*batches, np.array(batch)] if batch else batches


def gather_levels(
    model,
    sentences: Sequence[Sequence[int]],
    token_budget: int,
    progress: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> Tensor:
    """h^0 .. h^K at the last token of each sentence.

    Padding stands on the right, where a causal model cannot see it, so no attention mask is needed. Each hook keeps
    one row a sentence, and the output head is never run. Where a batch does not fit the device's memory, it and all
    further ones are made of half as many tokens.

    Args:
        model: of Transformers, in evaluation mode.
        sentences: N lists of token ids, each cut after its position.
        token_budget: most tokens in a padded batch.
        progress: title of the progress bar, or None for no bar.
        checkpoint: where the dump goes on from if it was broken off, with the same result; or None.

    Returns:
        [K+1, N, H] on the CPU, in the model's dtype.

    Raises:
        OnejumpError: the architecture is not supported, or not even one sentence fits the device.
    """
    anatomy = find_anatomy(model)
    lengths = np.array([len(ids) for ids in sentences])
    hidden_size = anatomy.output_head.weight.shape[1]
    levels = torch.empty(len(anatomy.blocks) + 1, len(sentences), hidden_size, dtype=model.dtype)
    order, n_done = np.argsort(lengths, kind="stable"), 0  # rows are done from short to long, whatever the batches
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        levels, n_done, token_budget = saved["levels"], saved["n_done"], saved["token_budget"]
    bar = progress_bar(None, progress, "token", total=int(lengths.sum()))

    def batches_left() -> list[np.ndarray]:
        left = order[n_done:]
        return [left[batch] for batch in length_sorted_batches(lengths[left], token_budget)]

    pending = batches_left()
    with torch.inference_mode(), bar:
        while pending:
            rows = pending[0]
            try:
                levels[:, torch.as_tensor(rows)] = _last_rows(model, anatomy, [sentences[row] for row in rows])
            except torch.OutOfMemoryError as error:
                if len(rows) == 1:
                    raise OnejumpError(
                        f"one sentence of {lengths[rows[0]]} tokens does not fit the device beside the model; "
                        "spread it over more GPUs (gpus), or use a smaller dtype"
                    ) from error
                failed, token_budget = token_budget, len(rows) * int(lengths[rows].max()) // 2
                logger.warning("out of memory at %d tokens a batch; going on with %d", failed, token_budget)
                torch.cuda.empty_cache()
                pending = batches_left()
                continue
            bar.update(int(lengths[rows].sum()))
            n_done += len(rows)
            del pending[0]
            if checkpoint is not None and checkpoint.due:
                checkpoint.save({"levels": levels, "n_done": n_done, "token_budget": token_budget})
    return levels


def _last_rows(model, anatomy: Anatomy, sentences: Sequence[Sequence[int]]) -> Tensor:
    """h^0 .. h^K at the last token of each sentence of one batch: [K+1, n, H] on the CPU."""
    lengths = [len(ids) for ids in sentences]
    padded = torch.zeros(len(sentences), max(lengths), dtype=torch.long)
    for i, ids in enumerate(sentences):
        padded[i, : len(ids)] = torch.as_tensor(ids)
    n_levels, hidden_size = len(anatomy.blocks) + 1, anatomy.output_head.weight.shape[1]
    gathered = torch.empty(n_levels, len(sentences), hidden_size, dtype=model.dtype, device=model.device)

    def take(level: int, h: Tensor) -> None:
        # A model spread over devices has its levels on several.
        batch = torch.arange(len(sentences), device=h.device)
        gathered[level] = h[batch, torch.as_tensor(lengths, device=h.device) - 1].to(gathered.device)

    with anatomy.capture(take):
        anatomy.backbone(input_ids=padded.to(model.device), use_cache=False)
    return gathered.cpu()


def rows_digest(sentence_ids: np.ndarray, positions: np.ndarray) -> str:
    """SHA-256 of a shard's sentence ids and positions: two corpora or seeds may have the same sentence ids."""
    rows = zip(sentence_ids.tolist(), positions.tolist(), strict=True)
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()


def dump_shard(
    source: ModelSource,
    positions: str | Path,
    head: str | Path,
    split: str,
    shard: int,
    path: str | Path,
    dtype: str,
    device: torch.device,
    token_budget: int,
) -> None:
    """Stage `dump-activations`: one shard of one split.

    Raises:
        OnejumpError: the shard does not exist, the model is not the one the head was taken from, or a hidden state is
            NaN or infinite (the sentence and level are named).
    """
    table = read_table(positions, ["sentence_id", "split", "shard", "position", "input_ids"])
    table = table.filter((pc.field("split") == split) & (pc.field("shard") == shard))
    if len(table) == 0:
        raise OnejumpError(f"{positions}: has no shard {shard} of split {split!r}; ask for one that it lists")
    facts = Head.load(head).metadata
    model = source.load_model(dtype, device)
    expected = (facts["model"], facts["revision"], facts["dtype"])
    found = (*source.identity(model), dtype)
    if found != expected:
        raise OnejumpError(
            f"{head}: was taken from {' '.join(expected)}, but this is {' '.join(found)}; rerun extract-head"
        )
    sentence_ids = table["sentence_id"].to_numpy()
    sentences = table["input_ids"].to_pylist()
    largest, vocabulary = max(map(max, sentences)), model.get_input_embeddings().num_embeddings
    if largest >= vocabulary:
        raise OnejumpError(
            f"{positions}: has token {largest}, but the model knows 0..{vocabulary - 1}; rerun choose-positions "
            "with the model's own tokenizer"
        )
    metadata = {"model": found[0], "revision": found[1], "dtype": dtype, "head_sha256": facts["sha256"]}
    metadata |= {"split": split, "shard": shard, "rows_sha256": rows_digest(sentence_ids, table["position"].to_numpy())}
    tokens_sha256 = hashlib.sha256(json.dumps(sentences).encode()).hexdigest()
    inputs = metadata | {"tokens_sha256": tokens_sha256, "token_budget": token_budget}
    checkpoint = Checkpoint(path, inputs, device)
    levels = gather_levels(model, sentences, token_budget, f"{split} shard {shard}", checkpoint)
    broken = ~levels.isfinite().all(-1)
    if broken.any():
        level, row = broken.nonzero()[0].tolist()
        raise OnejumpError(
            f"sentence {sentence_ids[row]}: NaN or infinite hidden state at level {level} in {dtype}; use "
            f"{'another model' if dtype == 'float32' else 'float32 or bfloat16'}"
        )
    tensors = {level_name(level): levels[level] for level in range(len(levels))}
    tensors["sentence_id"] = torch.from_numpy(sentence_ids.copy())
    write_tensors(path, tensors, metadata)
    checkpoint.remove()


# -------------------------------------------------------------------------------------------------------------- read


class Activations:
    """The hidden states of one split, read from its shards one level of one shard at a time.

    Attributes:
        n_blocks: K; levels are 0..K.
        hidden_size: H.
        sentence_ids: [N] int32, the rows kept.

    Raises:
        OnejumpError: a shard is damaged, belongs to another model, split or sentence set, or is missing.
    """

    def __init__(
        self, shards: Sequence[str | Path], positions: str | Path, head: Head, split: str, keep: str = "all"
    ) -> None:
        """Open the shards and check what they were made from.

        Args:
            shards: all shard files of the split, in order.
            positions: positions.parquet.
            head: the head of the model that the shards must come from.
            split: `train` or `test`.
            keep: `all`, or `not_first` to leave out rows at position 0.
        """
        self.n_blocks, self.hidden_size = head.metadata["n_blocks"], head.hidden_size
        table = read_table(positions, ["sentence_id", "split", "shard", "position"])
        # By NumPy, since a condition of Arrow's imports pandas, a tenth of a short job.
        of_split = np.array(table["split"].to_pylist()) == split
        number, sentence_ids, position = (
            numbers(table, name)[of_split] for name in ("shard", "sentence_id", "position")
        )
        n_shards = len(np.unique(number))
        if n_shards == 0 or len(shards) != n_shards:
            raise OnejumpError(
                f"{positions}: split {split!r} has {n_shards} shards, but {len(shards)} files were given"
            )
        self._files: list[TensorFile] = []
        self._kept: list[Tensor] = []
        for index, path in enumerate(shards):
            file = TensorFile(path)
            self._check(file, head, split, index)
            part, ids = number == index, file.tensor("sentence_id")
            digest = rows_digest(sentence_ids[part], position[part])
            if file.metadata["rows_sha256"] != digest or ids.tolist() != sentence_ids[part].tolist():
                raise OnejumpError(
                    f"{path}: its {len(ids)} sentences are not the {part.sum()} of {positions}; dump it again"
                )
            self._files.append(file)
            self._kept.append(torch.from_numpy(position[part] >= (1 if keep == "not_first" else 0)))
        kept = [file.tensor("sentence_id")[rows] for file, rows in zip(self._files, self._kept, strict=True)]
        self.sentence_ids: Tensor = torch.cat(kept)
        if len(self.sentence_ids) == 0:
            raise OnejumpError(f"{positions}: no row of split {split!r} is left with positions: {keep}")

    def _check(self, file: TensorFile, head: Head, split: str, index: int) -> None:
        facts = file.metadata
        if not {"split", "shard", "rows_sha256"} <= facts.keys():
            raise OnejumpError(f"{file.path}: is not a shard of activations; give the files of dump-activations")
        if facts.get("head_sha256") != head.metadata["sha256"]:
            raise OnejumpError(
                f"{file.path}: comes from {facts.get('model')} with head {facts.get('head_sha256')}, not from "
                f"{head.metadata['model']} with head {head.metadata['sha256']}; use one model's files throughout"
            )
        if (facts["split"], file.value("shard")) != (split, index):
            raise OnejumpError(
                f"{file.path}: is shard {facts['shard']} of {facts['split']}, not shard {index} of {split}; give all "
                "shards of one split in order"
            )
        if level_name(self.n_blocks) not in file.names or level_name(self.n_blocks + 1) in file.names:
            found = sum(name.startswith("level.") for name in file.names)
            raise OnejumpError(f"{file.path}: has {found} levels, expected {self.n_blocks + 1}; rerun dump-activations")

    def __len__(self) -> int:
        return len(self.sentence_ids)

    @property
    def sha256(self) -> str:
        """SHA-256 of what is read: the shards' contents, and which of their rows."""
        content = [[file.sha256 for file in self._files], self.sentence_ids.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def rows(self, first: int, last: int) -> "Activations":
        """The same files with only the rows first..last-1 of those kept."""
        part = copy.copy(self)
        part.sentence_ids, part._kept, seen = self.sentence_ids[first:last], [], 0
        for kept in self._kept:
            number = seen + kept.cumsum(0)  # 1-based
            part._kept.append(kept & (number > first) & (number <= last))
            seen += int(kept.sum())
        return part

    def shards(self, *levels: int) -> Iterator[tuple[Tensor, ...]]:
        """For each shard the given levels, each [n, H] float32 on the CPU.

        Raises:
            OnejumpError: a level is out of range, or a tensor is damaged, not finite, or of the wrong shape.
        """
        for level in levels:
            if not 0 <= level <= self.n_blocks:
                raise OnejumpError(f"level {level} is out of range; this model has levels 0..{self.n_blocks}")
        for file, kept in zip(self._files, self._kept, strict=True):
            yield tuple(self._read(file, level, kept) for level in levels)

    def _read(self, file: TensorFile, level: int, kept: Tensor) -> Tensor:
        name, expected = level_name(level), (len(kept), self.hidden_size)
        if (found := file.shape(name)) != expected:
            raise OnejumpError(f"{file.path}: level {level} is {found}, expected {expected}; rerun dump-activations")
        numbers_kept = kept.nonzero()[:, 0]
        rows = slice(int(numbers_kept[0]), int(numbers_kept[-1]) + 1) if len(numbers_kept) else slice(0)
        tensor = file.tensor(name, rows)
        if len(tensor) > len(numbers_kept):
            tensor = tensor[kept[rows]]
        tensor = tensor.float()
        # A sum passes NaN and infinity on, which spares looking at each number: only large ones make it infinite too.
        if not math.isfinite(tensor.sum()) and not tensor.isfinite().all():
            raise OnejumpError(
                f"{file.path}: NaN or infinite values at level {level}; rerun dump-activations in float32"
            )
        return tensor

    def level(self, level: int) -> Tensor:
        """One level of all rows: [N, H] float32 on the CPU. Errors as in `shards`."""
        return torch.cat([rows for (rows,) in self.shards(level)])
