"""Every way of exiting at every exit level, on the test sentences."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from onejump.activations.reading import Activations
from onejump.exits.columns import METRICS
from onejump.exits.metrics import FullPrediction, argmax, exit_metrics
from onejump.files.progress import progress_bar
from onejump.jumps.jump import FoldedJump
from onejump.models.devices import by_device
from onejump.models.fused import FusedUnembedding, fuse
from onejump.models.unembedding import Unembedding

# By kind of device, the rows whose full-width logits are held at once, and the elements that metrics are computed on at
# once. On a CPU the first must be large, so that a product with the output embedding is not bound by memory, and the
# second small, so that they stay in the cache.
ROWS = {"cpu": 256, "cuda": 1024, "mps": 512}
CACHED_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 27, "mps": 1 << 25}

Method = tuple[str, int | None]  # name, and number of the jump, None for the joint one


@dataclass(frozen=True)
class JumpExits:
    """The jumps of one variant, on the device: one at all levels for OJFA (Eq. 3), each level's own for N-NJTC.

    Used at a level other than its own, a jump keeps its A, its B and its BatchNorm's running statistics.
    """

    jumps: Sequence[FoldedJump]  # 0..K-1
    ojfa: int  # number of the selected one
    joint: FoldedJump

    @property
    def all_jumps(self) -> tuple[FoldedJump, ...]:
        """Jumps 0..K-1, then the joint jump."""
        return *self.jumps, self.joint

    def at(self, level: int) -> dict[Method, int]:
        """For each method that is evaluated on all sentences, which of `all_jumps` it uses at a level."""
        return {("n_njtc", level): level, ("ojfa", self.ojfa): self.ojfa, ("joint", None): len(self.jumps)}

    def arbitrary(self) -> dict[Method, int]:
        """The same for every single jump, whatever the level."""
        return {("arbitrary", m): m for m in range(len(self.jumps))}


def evaluate_jumps(
    activations: Activations,
    unembedding: Unembedding,
    exits: JumpExits,
    target: str,
    transfer_sentences: int,
    device: torch.device,
) -> tuple[pa.Table, pa.Table]:
    """Evaluate every way of exiting by a variant's jumps, at every exit level.

    The unembedding and the jumps are on the device. On the first `transfer_sentences` rows, every jump is evaluated at
    every level.

    Returns:
        The evaluation: level int32, method, jump int32 (null for joint), sentence_id int32, and METRICS (the first two
        boolean, the others float32). The transfer grid: jump, level, precision, surprisal (means over the sentences).
    """
    transfer_sentences = min(transfer_sentences, len(activations))  # `not_first` keeps fewer rows than there are
    results = _evaluate(activations, unembedding, exits, transfer_sentences, target, device)
    return _table(results, activations.sentence_ids), _grid(results)


def metrics_by_method(
    activations: Activations, unembedding: Unembedding, exits: JumpExits, target: str, device: torch.device
) -> dict[str, Tensor]:
    """METRICS of `n_njtc`, `ojfa` and `joint`, each [K, 6, N]: as `evaluate_jumps`, without the transfer grid."""
    results = _evaluate(activations, unembedding, exits, 0, target, device)
    by_level = [{name: values for (name, _), values in methods.items()} for methods in results]
    return {name: torch.stack([methods[name] for methods in by_level]) for name in by_level[0]}


def grid_precision(
    activations: Activations, unembedding: Unembedding, jumps: Sequence[FoldedJump], target: str, device: torch.device
) -> Tensor:
    """Precision of every jump at every exit level on all rows, [jump, level] float64, without any probabilities."""
    fused = fuse(unembedding, [jump.B for jump in jumps], target)
    hits = torch.zeros(len(jumps), activations.n_blocks, dtype=torch.float64)
    for _, full, inputs in _chunks(activations, unembedding, device, "grid of jumps"):
        for level, x in enumerate(inputs):
            for m, jump in enumerate(jumps):
                for part, logits in _exits(fused[m], fused[m].normalise(jump(x)), full):
                    token, _ = argmax(logits)
                    hits[m, level] += (token[:, 0] == full.token[part]).sum().cpu()
    return hits / len(activations)


def _evaluate(
    activations: Activations, unembedding: Unembedding, exits: JumpExits, n_grid: int, target: str, device: torch.device
) -> list[dict[Method, Tensor]]:
    """METRICS of each level's methods, each [6, n]; of every single jump on the first `n_grid` rows, if any."""
    jumps, grid = exits.all_jumps, exits.arbitrary() if n_grid else {}
    fused = fuse(unembedding, [jump.B for jump in jumps], target)
    M = torch.cat([one.M for one in fused])
    results = [
        {method: torch.empty(len(METRICS), len(activations)) for method in exits.at(level)}
        | {method: torch.empty(len(METRICS), n_grid) for method in grid}
        for level in range(activations.n_blocks)
    ]
    for rows, full, inputs in _chunks(activations, unembedding, device, "evaluate jumps"):
        mean_logits = _mean_logits(fused, M, full.probabilities, unembedding)
        for level, x in enumerate(inputs):
            for method, m in (exits.at(level) | grid).items():
                found = results[level][method][:, rows]
                if n := found.shape[1]:
                    z = fused[m].normalise(jumps[m](x[:n]))
                    found[:] = _metrics(_exits(fused[m], z, full), full, mean_logits(m, z))
    return results


def _grid(results: Sequence[Mapping[Method, Tensor]]) -> pa.Table:
    """Means over rows for every single jump: jump, level, precision, surprisal."""
    cells = [(m, level) for (name, m) in results[0] if name == "arbitrary" for level in range(len(results))]
    columns = {name: pa.array([cell[i] for cell in cells], pa.int32()) for i, name in enumerate(("jump", "level"))}
    for column, metric in (("precision", "correct"), ("surprisal", "surprisal")):
        rows = (results[level]["arbitrary", m][METRICS.index(metric)] for m, level in cells)
        columns[column] = [float(row.double().mean()) for row in rows]
    return pa.table(columns)


def evaluate_references(
    activations: Activations,
    unembedding: Unembedding,
    jtc: Callable[[int], tuple[Tensor, Tensor]],
    target: str,
    device: torch.device,
) -> pa.Table:
    """Evaluate identity and the full-rank jump (JTC), which variants share, at every exit level.

    The unembedding is on the device; `jtc` gives the weight [H, H] and bias [H] of a level's full-rank jump.

    Returns:
        As the evaluation of `evaluate_jumps`; jump is null throughout.
    """
    after_jump = unembedding.project if target == "post_norm" else unembedding.logits
    results = [
        {(method, None): torch.empty(len(METRICS), len(activations)) for method in ("identity", "jtc")}
        for _ in range(activations.n_blocks)
    ]
    for rows, full, inputs in _chunks(activations, unembedding, device, "evaluate references"):
        for level, x in enumerate(inputs):
            weight, bias = (tensor.to(device) for tensor in jtc(level))
            by_jtc = after_jump(torch.addmm(bias, x, weight))
            for method, logits in (("identity", unembedding.logits(x)), ("jtc", by_jtc)):
                parts = ((part, logits[part]) for part in _slices(len(x), _cached_rows(full)))
                results[level][method, None][:, rows] = _metrics(parts, full)
    return _table(results, activations.sentence_ids)


def _mean_logits(
    fused: Sequence[FusedUnembedding], M: Tensor, probabilities: Tensor, unembedding: Unembedding
) -> Callable[[int, Tensor], Tensor | None]:
    """A function of a jump's number and normalised z [n, r] to its logits' means under the full model's distribution p.

    `E_p[z M] = z (M p)`, and M p of all jumps is one product. A soft cap is not linear: then the mean is None.
    """
    if unembedding.softcap is not None:
        return lambda m, z: None
    projected = (probabilities @ M.T).split([len(one.M) for one in fused], 1)
    constant = fused[0].constant  # the same for all jumps
    offset = probabilities.new_zeros(len(probabilities)) if constant is None else probabilities @ constant
    return lambda m, z: unembedding.scale * ((z * projected[m][: len(z)]).sum(1) + offset[: len(z)])


def _chunks(
    activations: Activations, unembedding: Unembedding, device: torch.device, progress: str
) -> Iterator[tuple[slice, FullPrediction, Iterator[Tensor]]]:
    """Rows, the full model's prediction for them, and their hidden states at levels 0..K-1, read one at a time."""
    final = activations.level(activations.n_blocks)
    with torch.inference_mode():
        for rows in progress_bar(_slices(len(final), by_device(ROWS, device)), progress, "chunk"):
            full = FullPrediction.of(unembedding.logits(final[rows].to(device)))
            chunk = activations.rows(rows.start, rows.stop)
            yield rows, full, (chunk.level(k).to(device) for k in range(activations.n_blocks))


def _metrics(parts: Iterable[tuple[slice, Tensor]], full: FullPrediction, expected: Tensor | None = None) -> Tensor:
    """`exit_metrics` of a chunk's sentences, given as consecutive parts with their logits: [6, n] on the CPU."""
    found = [exit_metrics(logits, full[part], None if expected is None else expected[part]) for part, logits in parts]
    return torch.cat(found, 1).cpu()


def _exits(unembedding: FusedUnembedding, z: Tensor, full: FullPrediction) -> Iterator[tuple[slice, Tensor]]:
    """Logits from a jump's normalised z [n, r], for as many sentences at a time as fit into the cache.

    A product reads all of M, which has r rows: for fewer than r sentences, that would dominate.
    """
    rows = _cached_rows(full)
    for block in _slices(len(z), max(rows, z.shape[1])):
        logits = unembedding.project(z[block])
        for part in _slices(len(logits), rows):
            yield slice(block.start + part.start, block.start + part.stop), logits[part]


def _cached_rows(full: FullPrediction) -> int:
    """How many sentences' logits fit into the cache."""
    return max(1, by_device(CACHED_ELEMENTS, full.probabilities.device) // full.probabilities.shape[1])


def _slices(n: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover 0..n."""
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def _table(results: Sequence[Mapping[Method, Tensor]], sentence_ids: Tensor) -> pa.Table:
    """One table of all levels and methods, from METRICS [6, n] of each."""
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
