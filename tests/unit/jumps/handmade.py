"""Handmade rows, activations and unembeddings, and the fits of Eq. 2 that NumPy finds for them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from onejump.activations.positions import rows_digest
from onejump.activations.reading import Activations
from onejump.files.tables import write_table
from onejump.files.tensors import write_tensors
from onejump.jumps.jump import Jump, target_of
from onejump.models.unembedding import Unembedding

CPU = torch.device("cpu")
EPS = 1e-5  # of the BatchNorm


def normal(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Normally distributed numbers, float32."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_rows(n: int, hidden_size: int = 12, noise: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of uneven scale and mean, and targets that follow them, with a mean that matters: float64."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 1, hidden_size, dtype=torch.float64)
    mixing = torch.eye(hidden_size, dtype=torch.float64) + 0.3 * torch.randn(
        hidden_size, hidden_size, generator=generator, dtype=torch.float64
    )
    x = torch.randn(n, hidden_size, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(hidden_size, hidden_size, generator=generator, dtype=torch.float64)
    error = noise * torch.randn(n, hidden_size, generator=generator, dtype=torch.float64)
    y = x @ weight * torch.linspace(2, 0.2, hidden_size, dtype=torch.float64) + error
    shift = 3 * torch.randn(hidden_size, generator=generator, dtype=torch.float64)
    return x * spread + shift, y + shift.flip(0)


def standardise(x: torch.Tensor, by: torch.Tensor | None = None) -> torch.Tensor:
    """What a BatchNorm without weight and bias does to x, with the statistics of `by`."""
    by = x if by is None else by
    return (x - by.mean(0)) / (by.var(0, unbiased=False) + EPS).sqrt()


def mean_error(prediction: torch.Tensor, y: torch.Tensor) -> float:
    """Squared error, summed over H and averaged over rows."""
    return float((prediction.double() - y.double()).square().sum(1).mean())


def naive_optimum(x: torch.Tensor, y: torch.Tensor, rank: int) -> float:
    """mean|y|^2 minus the r largest eigenvalues of the fitted second moment, by a pseudo-inverse."""
    xn, y = standardise(x).numpy(), y.numpy()
    n, mean = len(y), y.mean(0)
    C, S = xn.T @ xn / n, xn.T @ (y - mean) / n
    eigenvalues = np.linalg.eigvalsh(S.T @ np.linalg.pinv(C, rcond=1e-10, hermitian=True) @ S + np.outer(mean, mean))
    return float((y**2).sum(1).mean() - eigenvalues[-rank:].sum())


def naive_ridge(x: torch.Tensor, y: torch.Tensor, rank: int, ridge: float, at: torch.Tensor) -> torch.Tensor:
    """Predictions at rows `at` of the reduced-rank ridge regression of y on x."""
    xn, target = standardise(x).numpy(), y.numpy()
    n, mean = len(target), target.mean(0)
    inverse = np.linalg.inv(xn.T @ xn / n + ridge * np.eye(xn.shape[1]))
    S = xn.T @ (target - mean) / n
    V = np.linalg.eigh(S.T @ inverse @ S + np.outer(mean, mean))[1][:, -rank:]
    return (standardise(at, x) @ torch.from_numpy(inverse @ S) + torch.from_numpy(mean)) @ torch.from_numpy(V @ V.T)


def make_activations(folder: Path, levels: torch.Tensor, sizes: list[int]) -> tuple[Activations, Unembedding]:
    """Training shards of the given sizes, handmade from levels [K+1, N, H], and the unembedding that they belong to."""
    n_levels, n, hidden_size = levels.shape
    unembedding = Unembedding(
        "rms", torch.linspace(0.5, 1.5, hidden_size), None, 1e-6, normal(40, hidden_size, seed=1), None
    )
    facts = {
        "model": "handmade",
        "revision": "1",
        "dtype": "float32",
        "n_blocks": n_levels - 1,
        "parameters": 0,
        "anatomy": {},
    }
    sha256 = unembedding.save(folder / "unembedding.safetensors", facts)
    shard = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    ids = np.arange(n, dtype=np.int32) * 3 + 1
    columns = {
        "sentence_id": ids,
        "split": ["train"] * n,
        "shard": shard,
        "position": np.ones(n, np.int32),
        "token_id": ids,
    }
    write_table(folder / "positions.parquet", pa.table(columns))
    paths = [folder / f"shard-{i:02d}.safetensors" for i in range(len(sizes))]
    for i, path in enumerate(paths):
        rows = torch.from_numpy(shard == i)
        tensors = {f"level.{level:02d}": levels[level, rows].float() for level in range(n_levels)}
        tensors["sentence_id"] = torch.from_numpy(ids)[rows]
        digest = rows_digest(*(columns[name][shard == i] for name in ("sentence_id", "position", "token_id")))
        facts = {"unembedding_sha256": sha256, "split": "train", "shard": i, "rows_sha256": digest}
        write_tensors(path, tensors, facts)
    unembedding = Unembedding.load(folder / "unembedding.safetensors")
    return Activations(paths, folder / "positions.parquet", unembedding, "train"), unembedding


def make_levels(n: int, n_blocks: int = 3, hidden_size: int = 12, seed: int = 0) -> torch.Tensor:
    """Levels 0..K [K+1, N, H] float32, each a noisy step from the one before."""
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(n, hidden_size, generator=generator) + torch.linspace(-1, 2, hidden_size)]
    for _ in range(n_blocks):
        step = torch.eye(hidden_size) + 0.3 * torch.randn(hidden_size, hidden_size, generator=generator)
        levels.append(1.3 * levels[-1] @ step + 0.3 * torch.randn(n, hidden_size, generator=generator))
    return torch.stack(levels)


def slices(study: tuple[Activations, Unembedding], level: int, target: str = "pre_norm") -> tuple[torch.Tensor, ...]:
    """Float64 rows of a level: fitting x and y, validation x and y."""
    activations, unembedding = study
    x = activations.level(level).double()
    y = target_of(activations.level(activations.n_blocks), unembedding, target).double()
    return x[:-20], y[:-20], x[-20:], y[-20:]  # a tenth of 203 rows


def make_unembedding(norm_kind: str, softcap: float | None = None) -> Unembedding:
    """An unembedding of width 10 for 23 tokens, none of whose tensors is trivial."""
    bias = None if norm_kind == "rms" else normal(10, seed=3, scale=0.2)
    weight = 1 + normal(10, seed=2, scale=0.3)
    return Unembedding(norm_kind, weight, bias, 1e-5, normal(23, 10, seed=1), None, scale=0.8, softcap=softcap)


def make_joint_rows(n: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of three levels [3, n, 10], and targets before the norm [n, 10] that follow them."""
    x = normal(3, n, 10, seed=5) + 0.5
    y = x.mean(0) @ normal(10, 10, seed=6) + 0.4 * normal(n, 10, seed=7) + 1.0
    return x, y


def make_jump(seed: int = 0, rank: int = 4, hidden_size: int = 24) -> Jump:
    """A jump in evaluation mode whose every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    jump = Jump(hidden_size, rank)
    with torch.no_grad():
        jump.A.normal_(generator=generator)
        jump.B.normal_(generator=generator)
        jump.bn.weight.normal_(generator=generator)
        jump.bn.bias.normal_(generator=generator)
        jump.bn.running_mean.normal_(generator=generator)
        jump.bn.running_var.uniform_(0.1, 3.0, generator=generator)
    return jump.eval()
