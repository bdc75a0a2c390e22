"""The sentences of a split a chunk at a time, with the full model's predictions, and the metrics of exits for them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from onejump.activations.reading import Activations
from onejump.exits.columns import METRICS
from onejump.exits.metrics import Prediction, exit_metrics
from onejump.files.progress import progress_bar
from onejump.models.devices import by_device
from onejump.models.unembedding import Unembedding

# By kind of device, the rows whose full-width logits are held at once, and the elements that metrics are computed on at
# once. On a CPU the first must be large, so that a product with the output embedding is not bound by memory, and the
# second small, so that they stay in the cache.
ROWS = {"cpu": 256, "cuda": 1024, "mps": 512}
CACHED_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 27, "mps": 1 << 25}

Method = tuple[str, int | None]  # name, and number of the jump, None for the joint one


def chunks(
    activations: Activations, unembedding: Unembedding, device: torch.device, progress: str
) -> Iterator[tuple[slice, Prediction, Iterator[Tensor]]]:
    """Rows, the full model's prediction for them, and their hidden states at levels 0..K-1, read one at a time."""
    final = activations.level(activations.n_blocks)
    with torch.inference_mode():
        for rows in progress_bar(slices(len(final), by_device(ROWS, device)), progress, "chunk"):
            full = Prediction.of(unembedding.logits(final[rows].to(device)))
            chunk = activations.rows(rows.start, rows.stop)
            yield rows, full, (chunk.level(k).to(device) for k in range(activations.n_blocks))


def slices(n: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover 0..n."""
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def cached_rows(full: Prediction) -> int:
    """How many sentences' logits fit into the cache."""
    return max(1, by_device(CACHED_ELEMENTS, full.probabilities.device) // full.probabilities.shape[1])


def metrics_in_parts(parts: Iterable[tuple[slice, Tensor]], full: Prediction, expected: Tensor | None = None) -> Tensor:
    """`exit_metrics` of a chunk's sentences, given as consecutive parts with their logits: [6, n] on the CPU."""
    found = [exit_metrics(logits, full[part], None if expected is None else expected[part]) for part, logits in parts]
    return torch.cat(found, 1).cpu()


def metrics_of(logits: Tensor, full: Prediction) -> Tensor:
    """`exit_metrics` of a chunk's sentences from their logits [n, V], which are overwritten: [6, n] on the CPU."""
    return metrics_in_parts(((part, logits[part]) for part in slices(len(logits), cached_rows(full))), full)


def evaluation_table(results: Sequence[Mapping[Method, Tensor]], sentence_ids: Tensor) -> pa.Table:
    """One table of all levels and methods, from METRICS [6, n] of each.

    Returns:
        level int32, method, jump int32 (null for joint and where there is none), sentence_id int32, and METRICS (the
        first two boolean, the others float32).
    """
    parts = [(level, key, values) for level, methods in enumerate(results) for key, values in methods.items()]
    sizes = np.array([values.shape[1] for _, _, values in parts])

    def repeated(values: list, kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(pa.array(np.repeat(np.arange(len(parts)), sizes)))

    columns = {
        "level": repeated([level for level, _, _ in parts], pa.int32()),
        "method": repeated([method for _, (method, _), _ in parts], pa.string()).dictionary_encode(),
        "jump": repeated([jump for _, (_, jump), _ in parts], pa.int32()),
        "sentence_id": torch.cat([sentence_ids[:size] for size in sizes]).numpy(),
    }
    for name, values in zip(METRICS, torch.cat([values for _, _, values in parts], 1).numpy(), strict=True):
        columns[name] = values.astype(bool) if name.startswith("correct") else values
    return pa.table(columns)
