"""Activations of a model that does not exist, in the files that `dump-activations` would write.

All levels share a low-rank signal whose basis changes gradually from the first level to the last, and each level adds
noise; a few dimensions are massive, as in real models.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from onejump.activations.positions import rows_digest
from onejump.activations.reading import Activations, tensor_name
from onejump.files.tables import write_table
from onejump.files.tensors import write_tensors
from onejump.jumps.jump import FoldedJump
from onejump.jumps.settings import default_rank
from onejump.models.unembedding import Unembedding

SIGNAL_RANK = 64
MASSIVE = 3  # number of massive dimensions, the first ones
MODELS = {  # K, H, V
    "smollm2-135m": (30, 576, 49152),
    "gemma-3-270m": (18, 640, 262144),
    "qwen2.5-coder-1.5b": (28, 1536, 151936),
    "llama-2-7b": (32, 4096, 32000),
}
SHARDS = {"train": 2, "test": 1}


@dataclass(frozen=True)
class Size:
    """Dimensions of a study.

    Attributes:
        name: of the model that it resembles.
        n_blocks: K.
        hidden_size: H.
        vocabulary: V.
        train: sentences in the train split.
        test: sentences in the test split.
    """

    name: str
    n_blocks: int
    hidden_size: int
    vocabulary: int
    train: int
    test: int

    @classmethod
    def of(cls, name: str, train: int, test: int, n_blocks: int | None = None) -> "Size":
        """One of MODELS, with all its blocks or so many of them."""
        K, H, V = MODELS[name]
        return cls(name, n_blocks or K, H, V, train, test)

    @property
    def rank(self) -> int:
        """The rank r that the paper gives to jumps of this width."""
        return default_rank(self.hidden_size)

    def __str__(self) -> str:
        """The size as the tables show it."""
        return f"{self.name}: K={self.n_blocks} H={self.hidden_size} r={self.rank} N={self.train}"


@dataclass(frozen=True)
class Dump:
    """Files that a study has after its dump.

    Attributes:
        unembedding: unembedding.safetensors.
        positions: positions.parquet.
        shards: split -> its shards, in order.
    """

    unembedding: Path
    positions: Path
    shards: dict[str, list[Path]]

    def open(self, split: str) -> tuple[Unembedding, Activations]:
        """The unembedding, and one split's activations."""
        unembedding = Unembedding.load(self.unembedding)
        return unembedding, Activations(self.shards[split], self.positions, unembedding, split)


def levels_of(n: int, size: Size, generator: torch.Generator) -> torch.Tensor:
    """h^0 .. h^K of n sentences: [K+1, n, H] float32."""
    K, H = size.n_blocks, size.hidden_size
    first, last = torch.randn(2, SIGNAL_RANK, H, generator=torch.Generator().manual_seed(1)) / SIGNAL_RANK**0.5
    signal = torch.randn(n, SIGNAL_RANK, generator=generator) * torch.linspace(2, 0.1, SIGNAL_RANK)
    levels = torch.empty(K + 1, n, H)
    for level in range(K + 1):
        share = level / K
        torch.randn(n, H, generator=generator, out=levels[level])
        levels[level].mul_(0.2).addmm_(signal, (1 - share) * first + share * last)
    levels[:, :, :MASSIVE] *= 100
    return levels


def make_dump(folder: Path, size: Size) -> Dump:
    """Write the unembedding, positions and shards of a study into a folder."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size.vocabulary, size.hidden_size, generator=generator) * (2 / size.hidden_size**0.5)
    facts = {"model": "synthetic", "revision": "none", "dtype": "float32"}
    dump = Dump(
        folder / "unembedding.safetensors",
        folder / "positions.parquet",
        {split: [folder / f"{split}-{i}.safetensors" for i in range(number)] for split, number in SHARDS.items()},
    )
    unembedding = Unembedding("rms", torch.ones(size.hidden_size), None, 1e-5, weight, None)
    facts["unembedding_sha256"] = unembedding.save(
        dump.unembedding, facts | {"n_blocks": size.n_blocks, "parameters": weight.numel(), "anatomy": {}}
    )
    tables, first = [], 0
    for split, paths in dump.shards.items():
        for shard, rows in enumerate(np.array_split(np.arange(getattr(size, split)), len(paths))):
            ids, positions = (rows + first).astype(np.int32), np.full(len(rows), 9, np.int32)
            levels = levels_of(len(rows), size, generator)
            tensors = {tensor_name(level): h for level, h in enumerate(levels)} | {"sentence_id": torch.from_numpy(ids)}
            digest = {"split": split, "shard": shard, "rows_sha256": rows_digest(ids, positions, ids)}
            write_tensors(paths[shard], tensors, facts | digest)
            columns = {"sentence_id": ids, "split": [split] * len(ids), "position": positions, "token_id": ids}
            tables.append(pa.table(columns | {"shard": np.full(len(ids), shard, np.int32)}))
        first += getattr(size, split)
    write_table(dump.positions, pa.concat_tables(tables))
    return dump


def random_jumps(size: Size, number: int) -> list[FoldedJump]:
    """Jumps with random weights; they take as long as any."""
    generator = torch.Generator().manual_seed(2)
    H, r = size.hidden_size, size.rank

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[0] ** 0.5

    return [FoldedJump(normal(H, r), normal(r), normal(r, H)) for _ in range(number)]
