"""Every way of exiting by a variant's jumps at every exit level, on the test sentences."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from onejump.activations.reading import Activations
from onejump.exits.chunks import Method, cached_rows, chunks, evaluation_table, metrics_in_parts, slices
from onejump.exits.columns import METRICS
from onejump.exits.metrics import Prediction, argmax
from onejump.jumps.jump import FoldedJump
from onejump.jumps.moments import validation_slice
from onejump.models.fused import FusedUnembedding, fuse
from onejump.models.unembedding import Unembedding


@dataclass(frozen=True)
class JumpExits:
    """The jumps of one variant, on the device: one at all levels for OJFA (Eq. 3), each level's own for N-NJTC.

    `middle` is the jump of level K/2 at all levels, the one to take without any data. Used at a level other than its
    own, a jump keeps its A, its B and its BatchNorm's running statistics. A variant may have the joint jump alone.
    """

    jumps: Sequence[FoldedJump]  # 0..K-1, or none
    ojfa: int | None  # number of the selected one
    joint: FoldedJump

    @property
    def all_jumps(self) -> tuple[FoldedJump, ...]:
        """Jumps 0..K-1, then the joint jump."""
        return *self.jumps, self.joint

    def at(self, level: int) -> dict[Method, int]:
        """For each method that is evaluated on all sentences, which of `all_jumps` it uses at a level."""
        n, middle = len(self.jumps), len(self.jumps) // 2
        single = {("n_njtc", level): level, ("middle", middle): middle, ("ojfa", self.ojfa): self.ojfa} if n else {}
        return single | {("joint", None): n}

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

    The unembedding and the jumps are on the device. On the first `transfer_sentences` rows, every single jump is
    evaluated at every level.

    Returns:
        The evaluation, as `evaluation_table` makes it, and the transfer grid: jump, level, precision, surprisal (means
        over the sentences).
    """
    transfer_sentences = min(transfer_sentences, len(activations))  # `not_first` keeps fewer rows than there are
    results = _evaluate(activations, unembedding, exits, transfer_sentences, target, device)
    return evaluation_table(results, activations.sentence_ids), _grid(results)


def metrics_by_method(
    activations: Activations, unembedding: Unembedding, exits: JumpExits, target: str, device: torch.device
) -> dict[str, Tensor]:
    """METRICS of the methods of `JumpExits.at`, each [K, 6, N]: as `evaluate_jumps`, without the transfer grid."""
    results = _evaluate(activations, unembedding, exits, 0, target, device)
    by_level = [{name: values for (name, _), values in methods.items()} for methods in results]
    return {name: torch.stack([methods[name] for methods in by_level]) for name in by_level[0]}


def evaluate_held_out(
    train: Activations, unembedding: Unembedding, exits: JumpExits, target: str, device: torch.device
) -> pa.Table:
    """Evaluate a variant's jumps at every exit level on the validation slice, which no fit has seen.

    The unembedding and the jumps are on the device; the rest is as in `evaluate_jumps`, without the transfer grid.
    """
    held_out = validation_slice(train)
    results = _evaluate(held_out, unembedding, exits, 0, target, device)
    return evaluation_table(results, held_out.sentence_ids)


def grid_precision(
    activations: Activations, unembedding: Unembedding, jumps: Sequence[FoldedJump], target: str, device: torch.device
) -> Tensor:
    """Precision of every jump at every exit level on all rows, [jump, level] float64, without any probabilities."""
    fused = fuse(unembedding, [jump.B for jump in jumps], target)
    hits = torch.zeros(len(jumps), activations.n_blocks, dtype=torch.float64)
    for _, full, inputs in chunks(activations, unembedding, device, "grid of jumps"):
        for level, x in enumerate(inputs):
            own = _own_logits(unembedding, jumps, x)
            for m, jump in enumerate(jumps):
                for part, logits in _exits(fused[m], fused[m].normalise(jump(x, level)), full, own, jump.gate(level)):
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
    for rows, full, inputs in chunks(activations, unembedding, device, "evaluate jumps"):
        mean_logits = _mean_logits(fused, M, full.probabilities, unembedding)
        for level, x in enumerate(inputs):
            own = _own_logits(unembedding, jumps, x)
            own_mean = None if own is None else unembedding.scale * torch.linalg.vecdot(full.probabilities, own)
            for method, m in (exits.at(level) | grid).items():
                found = results[level][method][:, rows]
                if n := found.shape[1]:
                    z, gate = fused[m].normalise(jumps[m](x[:n], level)), jumps[m].gate(level)
                    mean = mean_logits(m, z)
                    if mean is not None and own_mean is not None:
                        mean = mean + gate * own_mean[:n]
                    found[:] = metrics_in_parts(_exits(fused[m], z, full, own, gate), full, mean)
    return results


def _own_logits(unembedding: Unembedding, jumps: Sequence[FoldedJump], x: Tensor) -> Tensor | None:
    """What an open gate lets through of hidden states [n, H], in logits [n, V]; None if no jump has gates."""
    return unembedding.linear(unembedding.normalise(x)) if any(jump.gates for jump in jumps) else None


def _grid(results: Sequence[Mapping[Method, Tensor]]) -> pa.Table:
    """Means over rows for every single jump: jump, level, precision, surprisal."""
    cells = [(m, level) for (name, m) in results[0] if name == "arbitrary" for level in range(len(results))]
    columns = {name: pa.array([cell[i] for cell in cells], pa.int32()) for i, name in enumerate(("jump", "level"))}
    for column, metric in (("precision", "correct"), ("surprisal", "surprisal")):
        rows = (results[level]["arbitrary", m][METRICS.index(metric)] for m, level in cells)
        columns[column] = [float(row.double().mean()) for row in rows]
    return pa.table(columns)


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


def _exits(
    unembedding: FusedUnembedding, z: Tensor, full: Prediction, own: Tensor | None, gate: float
) -> Iterator[tuple[slice, Tensor]]:
    """Logits from a jump's normalised z [n, r], for as many sentences at a time as fit into the cache.

    With `own`, from `_own_logits`, so much of it as the gate lets through is added. A product reads all of M, which has
    r rows: for fewer than r sentences, that would dominate.
    """
    rows = cached_rows(full)
    for block in slices(len(z), max(rows, z.shape[1])):
        logits = unembedding.project(z[block], None if own is None else gate * own[block])
        for part in slices(len(logits), rows):
            yield slice(block.start + part.start, block.start + part.stop), logits[part]
