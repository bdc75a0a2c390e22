"""What each method predicts at an exit level, sentence by sentence, against the full model.

Metrics (all of the token after the chosen position; logarithms are natural):

- correct: the exit's most probable token is the full model's (its mean is the precision);
- correct_at_5: the exit's most probable token is among the full model's five (Din et al. 2023);
- surprisal: -log p_exit(most probable token of the full model) (OJFA's text);
- exit_surprisal: -log p_full(most probable token of the exit) (Din et al.'s code);
- kl: KL(full || exit);
- confidence: the exit's largest probability.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from onejump.activations import Activations
from onejump.contract import METRICS
from onejump.exit_head import FusedHead, fuse
from onejump.jumps import FoldedJump
from onejump.models import Head
from onejump.progress import progress_bar

Key = tuple[str, int | None]
# Rows whose full-width logits are held at once, and elements that metrics are computed on at once. On the CPU the
# first must be many, so that a product with the output embedding is not bound by memory, and the second few, so that
# they stay in the cache.
ROWS = {"cpu": 256, "cuda": 1024, "mps": 512}
CACHED_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 27, "mps": 1 << 25}


@dataclass(frozen=True)
class FullPrediction:
    """The full model's distribution for some sentences.

    Attributes:
        probabilities: [n, V]; log_probabilities: [n, V]; entropy: [n], nats.
        token: [n], the most probable; fifth: [n], log probability of the fifth most probable.
    """

    probabilities: Tensor
    log_probabilities: Tensor
    entropy: Tensor
    token: Tensor
    fifth: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> "FullPrediction":
        """From the full model's logits [n, V]."""
        token, top = _argmax(logits)
        log_probabilities = logits - top
        probabilities = log_probabilities.exp()
        # Summed pairwise: log_softmax sums in a row, and over 50,000 terms in float32 that costs KL 1e-4 nats.
        normaliser = probabilities.sum(1, keepdim=True)
        probabilities /= normaliser
        log_probabilities -= normaliser.log()
        fifth = log_probabilities.topk(min(5, logits.shape[1]), -1).values[:, -1]
        entropy = -torch.linalg.vecdot(probabilities, log_probabilities)
        return cls(probabilities, log_probabilities, entropy, token[:, 0], fifth)

    def __getitem__(self, rows: slice) -> "FullPrediction":
        """The same for some of the sentences."""
        return FullPrediction(**{name: value[rows] for name, value in vars(self).items()})


def exit_metrics(logits: Tensor, full: FullPrediction, expected: Tensor | None = None) -> Tensor:
    """All METRICS of an exit, [6, n] float32.

    Args:
        logits: [n, V]; overwritten.
        full: of the same sentences.
        expected: [n], the mean of the logits under the full model's distribution, where it is known already.
    """
    if expected is None:
        expected = torch.linalg.vecdot(full.probabilities, logits)
    token, top = _argmax(logits)
    token, top = token[:, 0], top[:, 0]
    target = logits.gather(1, full.token[:, None])[:, 0]
    log_normaliser = logits.sub_(top[:, None]).exp_().sum(1).log()
    exit_log_probability = full.log_probabilities.gather(1, token[:, None])[:, 0]
    return torch.stack(
        [
            (token == full.token).float(),
            (exit_log_probability >= full.fifth).float(),
            log_normaliser - (target - top),
            -exit_log_probability,
            log_normaliser - (expected - top) - full.entropy,
            (-log_normaliser).exp(),
        ]
    )


def _argmax(logits: Tensor, width: int = 64) -> tuple[Tensor, Tensor]:
    """Index and value of each row's maximum, each [n, 1]; by blocks, since the CPU's plain argmax is slow."""
    n, size = logits.shape
    whole = size // width * width
    if whole == 0:
        value, index = logits.max(1, keepdim=True)
        return index, value
    blocks = logits[:, :whole].unflatten(1, (-1, width))
    block = blocks.amax(2).argmax(1)
    value, inner = blocks[torch.arange(n, device=logits.device), block].max(1, keepdim=True)
    index = block[:, None] * width + inner
    if whole < size:
        rest, inner = logits[:, whole:].max(1, keepdim=True)
        index, value = torch.where(rest > value, inner + whole, index), torch.maximum(rest, value)
    return index, value


@dataclass(frozen=True)
class JumpExits:
    """The jumps of one variant, on the device.

    Attributes:
        jumps: jumps 0..K-1.
        ojfa: the selected one.
        joint: the joint jump.
    """

    jumps: Sequence[FoldedJump]
    ojfa: int
    joint: FoldedJump


def evaluate_jumps(
    activations: Activations,
    head: Head,
    exits: JumpExits,
    target: str,
    transfer_sentences: int,
    device: torch.device,
) -> tuple[pa.Table, pa.Table]:
    """Stage `evaluate-jumps`: every way of exiting by a variant's jumps, at every exit level.

    Args:
        activations: of the test split.
        head: of the model, on `device`.
        exits: what to exit with.
        target: `pre_norm` or `post_norm`.
        transfer_sentences: on how many of the rows, the first ones, every jump is evaluated at every level.
        device: where to compute.

    Returns:
        The evaluation: level int32, method, jump int32 (null for joint), sentence_id int32, and METRICS (the first two
        boolean, the others float32). The transfer grid: jump, level, precision, surprisal (means over the sentences).
    """
    transfer_sentences = min(transfer_sentences, len(activations))  # `not_first` keeps fewer rows than there are
    n = len(activations)

    def methods(level: int) -> dict[Key, tuple[int, int]]:
        return _methods(exits, level, n) | _arbitrary(len(exits.jumps), transfer_sentences)

    results = _evaluate(activations, head, (*exits.jumps, exits.joint), methods, target, device)
    return _table(results, activations.sentence_ids), _grid(results)


def metrics_by_method(
    activations: Activations, head: Head, exits: JumpExits, target: str, device: torch.device
) -> dict[str, Tensor]:
    """METRICS of `n_njtc`, `ojfa` and `joint` on all rows, each [K, 6, N]: the evaluation of `evaluate_jumps` alone."""
    n = len(activations)
    results = _evaluate(
        activations, head, (*exits.jumps, exits.joint), lambda level: _methods(exits, level, n), target, device
    )
    by_level = [{name: values for (name, _), values in methods.items()} for methods in results]
    return {name: torch.stack([methods[name] for methods in by_level]) for name in by_level[0]}


def grid_precision(
    activations: Activations, head: Head, jumps: Sequence[FoldedJump], target: str, device: torch.device
) -> Tensor:
    """Precision of every jump at every exit level on all rows, [jump, level] float64: no probabilities are formed."""
    fused = fuse(head, [jump.B for jump in jumps], target)
    hits = torch.zeros(len(jumps), activations.n_blocks, dtype=torch.float64)
    for _, full, inputs in _chunks(activations, head, device, "grid of jumps"):
        for level, x in enumerate(inputs):
            for m, jump in enumerate(jumps):
                for part, logits in _exits(fused[m], fused[m].normalise(jump(x)), full):
                    token, _ = _argmax(logits)
                    hits[m, level] += (token[:, 0] == full.token[part]).sum().cpu()
    return hits / len(activations)


def _methods(exits: JumpExits, level: int, n: int) -> dict[Key, tuple[int, int]]:
    every = {("n_njtc", level): level, ("ojfa", exits.ojfa): exits.ojfa, ("joint", None): len(exits.jumps)}
    return {key: (m, n) for key, m in every.items()}


def _arbitrary(n_jumps: int, n: int) -> dict[Key, tuple[int, int]]:
    return {("arbitrary", m): (m, n) for m in range(n_jumps)}


def _evaluate(
    activations: Activations,
    head: Head,
    jumps: Sequence[FoldedJump],
    methods: Callable[[int], Mapping[Key, tuple[int, int]]],
    target: str,
    device: torch.device,
) -> list[dict[Key, Tensor]]:
    """METRICS of a level's methods, each [6, n], for levels 0..K-1.

    `methods` tells for a level which of the jumps each method uses, and on how many of the rows, the first ones.
    """
    fused = fuse(head, [jump.B for jump in jumps], target)
    M = torch.cat([one.M for one in fused])
    levels = range(activations.n_blocks)
    results = [{key: torch.empty(len(METRICS), size) for key, (_, size) in methods(k).items()} for k in levels]
    for rows, full, inputs in _chunks(activations, head, device, "evaluate jumps"):
        mean_logits = _mean_logits(fused, M, full.probabilities, head)
        for level, x in enumerate(inputs):
            for key, (m, size) in methods(level).items():
                n = min(rows.stop, size) - rows.start
                if n > 0:
                    z = fused[m].normalise(jumps[m](x[:n]))
                    results[level][key][:, rows.start : rows.start + n] = _metrics(
                        _exits(fused[m], z, full), full, mean_logits(m, z)
                    )
    return results


def _grid(results: Sequence[Mapping[Key, Tensor]]) -> pa.Table:
    """Means over rows of the arbitrary jumps: jump, level, precision, surprisal."""
    cells = [(m, level) for (name, m) in results[0] if name == "arbitrary" for level in range(len(results))]
    columns = {
        "jump": pa.array([m for m, _ in cells], pa.int32()),
        "level": pa.array([k for _, k in cells], pa.int32()),
    }
    for column, metric in (("precision", "correct"), ("surprisal", "surprisal")):
        rows = (results[level]["arbitrary", m][METRICS.index(metric)] for m, level in cells)
        columns[column] = [float(row.double().mean()) for row in rows]
    return pa.table(columns)


def evaluate_references(
    activations: Activations,
    head: Head,
    jtc: Callable[[int], tuple[Tensor, Tensor]],
    target: str,
    device: torch.device,
) -> pa.Table:
    """Stage `evaluate-references`: identity and the full-rank jump (JTC), which variants share, at every exit level.

    Args:
        activations: of the test split.
        head: of the model, on `device`.
        jtc: weight [H, H] and bias [H] of a level's full-rank jump.
        target: `pre_norm` or `post_norm`.
        device: where to compute.

    Returns:
        As the evaluation of `evaluate_jumps`; jump is null throughout.
    """
    after_jump = head.project if target == "post_norm" else head.logits
    results = [
        {(method, None): torch.empty(len(METRICS), len(activations)) for method in ("identity", "jtc")}
        for _ in range(activations.n_blocks)
    ]
    for rows, full, inputs in _chunks(activations, head, device, "evaluate references"):
        for level, x in enumerate(inputs):
            weight, bias = (tensor.to(device) for tensor in jtc(level))
            for method, logits in (
                ("identity", head.logits(x)),
                ("jtc", after_jump(torch.addmm(bias, x, weight))),
            ):
                parts = ((part, logits[part]) for part in _slices(len(x), _cached_rows(full)))
                results[level][method, None][:, rows] = _metrics(parts, full)
    return _table(results, activations.sentence_ids)


def _mean_logits(
    fused: Sequence[FusedHead], M: Tensor, probabilities: Tensor, head: Head
) -> Callable[[int, Tensor], Tensor | None]:
    """The mean of an exit's logits under the full model's distribution p, from its normalised z: rank r, as they are.

    `E_p[z M] = z (M p)`, and M p of all jumps is one product. A soft cap bends the logits: then it is not known.
    """
    if head.softcap is not None:
        return lambda m, z: None
    projected = (probabilities @ M.T).split([len(one.M) for one in fused], 1)
    constant = fused[0].constant  # the same for all jumps
    offset = probabilities.new_zeros(len(probabilities)) if constant is None else probabilities @ constant
    return lambda m, z: head.scale * ((z * projected[m][: len(z)]).sum(1) + offset[: len(z)])


def _chunks(
    activations: Activations, head: Head, device: torch.device, progress: str
) -> Iterator[tuple[slice, FullPrediction, Iterator[Tensor]]]:
    """Rows, the full model's prediction for them, and their hidden states at levels 0..K-1, read as they are needed."""
    final = activations.level(activations.n_blocks)
    with torch.inference_mode():
        for rows in progress_bar(_slices(len(final), ROWS[device.type]), progress, "chunk"):
            full = FullPrediction.of(head.logits(final[rows].to(device)))
            chunk = activations.rows(rows.start, rows.stop)
            yield rows, full, (chunk.level(k).to(device) for k in range(activations.n_blocks))


def _metrics(parts: Iterable[tuple[slice, Tensor]], full: FullPrediction, expected: Tensor | None = None) -> Tensor:
    """`exit_metrics` of consecutive sentences of a chunk, given part by part with their logits: [6, n] on the CPU."""
    found = [exit_metrics(logits, full[part], None if expected is None else expected[part]) for part, logits in parts]
    return torch.cat(found, 1).cpu()


def _exits(head: FusedHead, z: Tensor, full: FullPrediction) -> Iterator[tuple[slice, Tensor]]:
    """Logits from a jump's normalised z [n, r], of as many sentences at a time as the cache holds logits of.

    A product reads all of M, which is r wide: of fewer than r sentences, that would take longer than their logits.
    """
    rows = _cached_rows(full)
    for block in _slices(len(z), max(rows, z.shape[1])):
        logits = head.project(z[block])
        for part in _slices(len(logits), rows):
            yield slice(block.start + part.start, block.start + part.stop), logits[part]


def _cached_rows(full: FullPrediction) -> int:
    """How many sentences' logits the cache holds."""
    return max(1, CACHED_ELEMENTS[full.probabilities.device.type] // full.probabilities.shape[1])


def _slices(n: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover 0..n."""
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def _table(results: Sequence[Mapping[Key, Tensor]], sentence_ids: Tensor) -> pa.Table:
    """From one mapping of methods to [6, n] for each level to one table."""
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
