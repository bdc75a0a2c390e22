"""Activations read from their shards, and checked against what they were made from."""

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onejump.activations.positions import rows_digest
from onejump.files.atomic import OnejumpError
from onejump.files.tables import numbers, read_table
from onejump.files.tensors import TensorFile
from onejump.models.unembedding import Unembedding


def tensor_name(level: int) -> str:
    """Name of a level's tensor: `level.07`."""
    return f"level.{level:02d}"


class Activations:
    """The hidden states of one split, read from its shards one level of one shard at a time.

    Attributes:
        n_blocks: K; levels are 0..K.
        hidden_size: H.
        sentence_ids: [N] int32, sentences of the rows kept.
        positions: [N] int32, of the chosen tokens in them.
        token_ids: [N] int32, these tokens.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        positions: Path,
        unembedding: Unembedding,
        split: str,
        keep: str = "all",
        origin: str = "both",
    ) -> None:
        """Open all shards of a split, in order, and check them against positions.parquet and the model's unembedding.

        `keep` is `all`, or `not_first` to leave out rows at position 0. `origin` is `corpus` or `generated` to read one
        kind of text alone, where there are two.

        Raises:
            OnejumpError: A shard is missing or damaged, or belongs to another model, split or set of sentences.
        """
        self.n_blocks, self.hidden_size = unembedding.metadata["n_blocks"], unembedding.hidden_size
        columns = ["sentence_id", "split", "shard", "position", "token_id"]
        table = read_table(positions, columns + ["origin"] * (origin != "both"))
        # With NumPy, since filtering with Arrow imports pandas, which takes a tenth of a short job.
        of_split = np.array(table["split"].to_pylist()) == split
        names = ("shard", "sentence_id", "position", "token_id")
        number, sentence_ids, position, token_id = (numbers(table, name)[of_split] for name in names)
        wanted = position >= (1 if keep == "not_first" else 0)
        if origin != "both":
            wanted &= np.array(table["origin"].to_pylist())[of_split] == origin
        found, given = len(np.unique(number)), len(shards)
        if found == 0 or given != found:
            raise OnejumpError(f"{positions}: split {split!r} has {found} shards, but {given} files were given")
        self._files: list[TensorFile] = []
        self._kept: list[Tensor] = []
        facts = []
        for index, path in enumerate(shards):
            file = TensorFile(path)
            self._check(file, unembedding, split, index)
            part, ids = number == index, file.tensor("sentence_id")
            digest = rows_digest(sentence_ids[part], position[part], token_id[part])
            if file.metadata["rows_sha256"] != digest or ids.tolist() != sentence_ids[part].tolist():
                stated = f"{path}: its {len(ids)} sentences are not the {part.sum()} of {positions}"
                raise OnejumpError(f"{stated}; dump it again")
            self._files.append(file)
            self._kept.append(torch.from_numpy(wanted[part]))
            facts.append([column[part] for column in (sentence_ids, position, token_id)])
        kept = torch.cat(self._kept)
        columns = (torch.from_numpy(np.concatenate(parts))[kept] for parts in zip(*facts, strict=True))
        self.sentence_ids, self.positions, self.token_ids = columns
        if len(self.sentence_ids) == 0:
            text = "" if origin == "both" else f" and train_on: {origin}"
            raise OnejumpError(f"{positions}: no row of split {split!r} is left with positions: {keep}{text}")

    def _check(self, file: TensorFile, unembedding: Unembedding, split: str, index: int) -> None:
        facts = file.metadata
        if not {"split", "shard", "rows_sha256"} <= facts.keys():
            raise OnejumpError(f"{file.path}: is no shard of activations; give the files that dump-activations wrote")
        if facts.get("unembedding_sha256") != unembedding.metadata["sha256"]:
            raise OnejumpError(
                f"{file.path}: comes from {facts.get('model')} with unembedding {facts.get('unembedding_sha256')}, not "
                f"from {unembedding.metadata['model']} with unembedding {unembedding.metadata['sha256']}; use one "
                "model's files throughout"
            )
        if (facts["split"], file.value("shard")) != (split, index):
            raise OnejumpError(
                f"{file.path}: is shard {facts['shard']} of {facts['split']}, not shard {index} of {split}; give all "
                "shards of one split in order"
            )
        if tensor_name(self.n_blocks) not in file.names or tensor_name(self.n_blocks + 1) in file.names:
            found = sum(name.startswith("level.") for name in file.names)
            raise OnejumpError(f"{file.path}: has {found} levels, expected {self.n_blocks + 1}; rerun dump-activations")

    def __len__(self) -> int:
        """Number N of rows kept."""
        return len(self.sentence_ids)

    @property
    def sha256(self) -> str:
        """SHA-256 of what is read: the shards' contents, and which rows are kept."""
        content = [[file.sha256 for file in self._files], self.sentence_ids.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def rows(self, first: int, last: int) -> "Activations":
        """The same files, with only rows first..last-1 of those kept."""
        part = copy.copy(self)
        for name in ("sentence_ids", "positions", "token_ids"):
            setattr(part, name, getattr(self, name)[first:last])
        part._kept, seen = [], 0
        for kept in self._kept:
            number = seen + kept.cumsum(0)  # 1-based
            part._kept.append(kept & (number > first) & (number <= last))
            seen += int(kept.sum())
        return part

    def shards(self, *levels: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the given levels of each shard, each [n, H] float32 on the CPU.

        Raises:
            OnejumpError: A level is out of range, or a tensor is damaged, not finite, or of the wrong shape.
        """
        for level in levels:
            if not 0 <= level <= self.n_blocks:
                raise OnejumpError(f"level {level} is out of range; this model has levels 0..{self.n_blocks}")
        for file, kept in zip(self._files, self._kept, strict=True):
            yield tuple(self._read(file, level, kept) for level in levels)

    def _read(self, file: TensorFile, level: int, kept: Tensor) -> Tensor:
        name, expected = tensor_name(level), (len(kept), self.hidden_size)
        if (found := file.shape(name)) != expected:
            raise OnejumpError(f"{file.path}: level {level} is {found}, expected {expected}; rerun dump-activations")
        numbers_kept = kept.nonzero()[:, 0]
        rows = slice(int(numbers_kept[0]), int(numbers_kept[-1]) + 1) if len(numbers_kept) else slice(0)
        tensor = file.tensor(name, rows)
        tensor = (tensor[kept[rows]] if len(tensor) > len(numbers_kept) else tensor).float()
        # A sum of NaN or infinity is not finite; nor is one of large values, so only then is each value checked.
        if not math.isfinite(tensor.sum()) and not tensor.isfinite().all():
            raise OnejumpError(
                f"{file.path}: NaN or infinite values at level {level}; rerun dump-activations in float32"
            )
        return tensor

    def level(self, level: int) -> Tensor:
        """One level of all rows: [N, H] float32 on the CPU; raises as `shards` does."""
        return torch.cat([rows for (rows,) in self.shards(level)])
