"""Activations and unembeddings made by hand, and the definitions of what is predicted from them, in float64."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from onejump.activations.positions import rows_digest
from onejump.activations.reading import Activations
from onejump.files.tables import write_table
from onejump.files.tensors import write_tensors
from onejump.models.unembedding import Unembedding

K, H, N = 3, 32, 37


def normal(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_head(vocabulary: int, norm_kind: str = "rms", softcap: float | None = None) -> Unembedding:
    """A head with (layer) or without (rms) biases and a scale."""
    weight = normal(vocabulary, H, seed=1, scale=0.5)
    norm = 1 + normal(H, seed=2, scale=0.3)
    if norm_kind == "rms":
        return Unembedding("rms", norm, None, 1e-5, weight, None, softcap=softcap)
    bias = normal(vocabulary, seed=3)
    return Unembedding("layer", norm, normal(H, seed=4, scale=0.3), 1e-5, weight, bias, scale=0.7, softcap=softcap)


def make_activations(
    folder: Path, unembedding: Unembedding, sizes: tuple[int, ...] = (20, 17), keep: str = "all", split: str = "test",
    seed: int = 10,
):  # fmt: skip
    """Shards made by hand, every fifth sentence at position 0, and the head as read back from its file."""
    folder.mkdir(exist_ok=True)
    n = sum(sizes)
    facts = {"model": "handmade", "revision": "1", "dtype": "float32", "n_blocks": K, "parameters": 0, "anatomy": {}}
    sha256 = unembedding.save(folder / "unembedding.safetensors", facts)
    shard = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    ids = np.arange(n, dtype=np.int32)[::-1] * 3 + 1
    position = (np.arange(n) % 5).astype(np.int32)
    token = torch.randint(12, (n,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32).numpy()
    columns = {"sentence_id": ids, "split": [split] * n, "shard": shard, "position": position, "token_id": token}
    write_table(folder / "positions.parquet", pa.table(columns))
    levels = [normal(n, H, seed=seed) + 0.3]
    for k in range(K):
        levels.append(levels[-1] + normal(n, H, seed=seed + 1 + k, scale=0.7))
    paths = [folder / f"shard-{i:02d}.safetensors" for i in range(len(sizes))]
    for i, path in enumerate(paths):
        rows = torch.from_numpy(shard == i)
        tensors = {f"level.{level:02d}": h[rows] for level, h in enumerate(levels)}
        tensors["sentence_id"] = torch.from_numpy(ids.copy())[rows]
        digest = rows_digest(*(columns[name][shard == i] for name in ("sentence_id", "position", "token_id")))
        facts = {"unembedding_sha256": sha256, "split": split, "shard": i, "rows_sha256": digest}
        write_tensors(path, tensors, facts)
    unembedding = Unembedding.load(folder / "unembedding.safetensors")
    return Activations(paths, folder / "positions.parquet", unembedding, split, keep), unembedding


def naive_norm(unembedding: Unembedding, h: np.ndarray) -> np.ndarray:
    if unembedding.norm_kind == "layer":
        h = h - h.mean()
    h = h / np.sqrt((h**2).mean() + unembedding.eps) * unembedding.norm_weight.double().numpy()
    return h if unembedding.norm_bias is None else h + unembedding.norm_bias.double().numpy()


def naive_project(unembedding: Unembedding, normed: np.ndarray) -> np.ndarray:
    logits = unembedding.weight.double().numpy() @ normed
    logits = logits if unembedding.bias is None else logits + unembedding.bias.double().numpy()
    logits = logits * unembedding.scale
    return logits if unembedding.softcap is None else unembedding.softcap * np.tanh(logits / unembedding.softcap)


def naive_metrics(exit_logits: np.ndarray, full_logits: np.ndarray) -> dict[str, float]:
    """The definitions beside METRICS, for one sentence."""
    p_exit, p_full = (np.exp(logits) / np.exp(logits).sum() for logits in (exit_logits, full_logits))
    return {
        "correct": p_exit.argmax() == p_full.argmax(),
        "correct_at_5": p_exit.argmax() in np.argsort(-p_full)[:5],
        "surprisal": -np.log(p_exit[p_full.argmax()]),
        "exit_surprisal": -np.log(p_full[p_exit.argmax()]),
        "kl": (p_full * np.log(p_full / p_exit)).sum(),
        "confidence": p_exit.max(),
    }
