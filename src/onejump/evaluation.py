"""What each method predicts at an exit level, sentence by sentence, against the full model.

Metrics (all of the token after the chosen position; logarithms are natural):

- correct: the exit's most probable token is the full model's (its mean is the precision);
- correct_at_5: the exit's most probable token is among the full model's five (Din et al. 2023);
- surprisal: -log p_exit(most probable token of the full model) (OJFA's text);
- exit_surprisal: -log p_full(most probable token of the exit) (Din et al.'s code);
- kl: KL(full || exit);
- confidence: the exit's largest probability.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from tqdm import tqdm

from onejump.activations import Activations
from onejump.artifacts import OnejumpError, read_table, write_table
from onejump.exit_head import fuse
from onejump.jumps import FoldedJump
from onejump.models import Head

METRICS = ("correct", "correct_at_5", "surprisal", "exit_surprisal", "kl", "confidence")
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
        log_probabilities = logits.log_softmax(-1)
        probabilities = log_probabilities.exp()
        top = log_probabilities.topk(min(5, logits.shape[1]), -1)
        entropy = -torch.linalg.vecdot(probabilities, log_probabilities)
        return cls(probabilities, log_probabilities, entropy, _argmax(logits)[0][:, 0], top.values[:, -1])

    def __getitem__(self, rows: slice) -> "FullPrediction":
        """The same for some of the sentences."""
        return FullPrediction(**{name: value[rows] for name, value in vars(self).items()})


def exit_metrics(logits: Tensor, full: FullPrediction) -> Tensor:
    """All METRICS of an exit, [6, n] float32, from its logits [n, V]; the logits are overwritten."""
    token, top = _argmax(logits)
    shifted = logits.sub_(top)
    target = shifted.gather(1, full.token[:, None])[:, 0]
    expected = torch.linalg.vecdot(full.probabilities, shifted)
    log_normaliser = shifted.exp_().sum(1).log()
    exit_log_probability = full.log_probabilities.gather(1, token)[:, 0]
    return torch.stack(
        [
            (token[:, 0] == full.token).float(),
            (exit_log_probability >= full.fifth).float(),
            log_normaliser - target,
            -exit_log_probability,
            log_normaliser - expected - full.entropy,
            (-log_normaliser).exp(),
        ]
    )


def _argmax(logits: Tensor, width: int = 64) -> tuple[Tensor, Tensor]:
    """Index and value of each row's maximum, each [n, 1]; by blocks, since the CPU's plain argmax is slow."""
    n, size = logits.shape
    if size % width:
        value, index = logits.max(1, keepdim=True)
        return index, value
    blocks = logits.view(n, size // width, width)
    block = blocks.amax(2).argmax(1)
    inner = blocks[torch.arange(n, device=logits.device), block]
    value, index = inner.max(1, keepdim=True)
    return block[:, None] * width + index, value


@dataclass(frozen=True)
class LevelJumps:
    """What can be exited with at one level.

    Attributes:
        jumps: jumps 0..K-1, on the device.
        ojfa: the selected one.
        joint: the joint jump, on the device.
        jtc: weight [H, H] and bias [H] of the level's full-rank jump, on the device.
    """

    jumps: Sequence[FoldedJump]
    ojfa: int
    joint: FoldedJump
    jtc: tuple[Tensor, Tensor]


def evaluate_level(
    activations: Activations,
    head: Head,
    level: int,
    exits: LevelJumps,
    target: str,
    transfer_sentences: int,
    device: torch.device,
) -> pa.Table:
    """Stage `evaluate-level`: every method at one exit level.

    Args:
        activations: of the test split.
        head: of the model, on `device`.
        level: 0..K-1.
        exits: what to exit with.
        target: `pre_norm` or `post_norm`.
        transfer_sentences: on how many of the rows, the first ones, every arbitrary jump is evaluated.
        device: where to compute.

    Returns:
        method, jump int32 (null where it is none of the K), sentence_id int32, and METRICS (the first two boolean, the
        others float32).

    Raises:
        OnejumpError: the level is not an exit level.
    """
    if not 0 <= level < activations.n_blocks:
        raise OnejumpError(
            f"level {level} is out of range; exit levels of this model are 0..{activations.n_blocks - 1}"
        )
    n = len(activations)
    transfer_sentences = min(transfer_sentences, n)  # `not_first` keeps fewer rows than there are test sentences
    x = activations.level(level).to(device)
    final = activations.level(activations.n_blocks).to(device)
    fused = fuse(head, [jump.B for jump in (*exits.jumps, exits.joint)], target)
    coordinates = [jump(x) for jump in (*exits.jumps, exits.joint)]
    after_jump = head.project if target == "post_norm" else head.logits
    weight, bias = exits.jtc

    # Methods by their key (name, and jump where it is one of the K): how to get logits, or which of the exits to take.
    full_rank: dict[Key, Callable[[slice], Tensor]] = {
        ("identity", None): lambda rows: head.logits(x[rows]),
        ("jtc", None): lambda rows: after_jump(x[rows] @ weight + bias),
    }
    low_rank: dict[Key, int] = {
        ("n_njtc", level): level,
        ("ojfa", exits.ojfa): exits.ojfa,
        ("joint", None): len(exits.jumps),
        **{("arbitrary", m): m for m in range(len(exits.jumps))},
    }
    size = {key: transfer_sentences if key[0] == "arbitrary" else n for key in (*full_rank, *low_rank)}
    results = {key: torch.empty(len(METRICS), size[key]) for key in size}
    cached = max(1, CACHED_ELEMENTS[device.type] // head.weight.shape[0])
    with torch.inference_mode():
        for rows in tqdm(_slices(0, n, ROWS[device.type]), desc=f"level {level}", unit="chunk", mininterval=30):
            full = FullPrediction.of(head.logits(final[rows]))
            parts = [
                (part, full[part.start - rows.start : part.stop - rows.start])
                for part in _slices(rows.start, rows.stop, cached)
            ]
            for key, logits in full_rank.items():
                block = logits(rows)
                for part, expected in parts:
                    found = block[part.start - rows.start : part.stop - rows.start]
                    results[key][:, part] = exit_metrics(found, expected)
            for part, expected in parts:
                for key, m in low_rank.items():
                    some = slice(part.start, min(part.stop, size[key]))
                    if some.start < some.stop:
                        found = fused[m].logits(coordinates[m][some])
                        results[key][:, some] = exit_metrics(found, expected[: some.stop - some.start])
    return pa.concat_tables([_table(key, activations.sentence_ids, values) for key, values in results.items()])


def _slices(start: int, stop: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover start..stop."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def _table(key: Key, sentence_ids: Tensor, values: Tensor) -> pa.Table:
    method, jump = key
    n = values.shape[1]
    columns = {
        "method": pa.array([method]).take(pa.array(np.zeros(n, np.int32))).dictionary_encode(),
        "jump": pa.array([jump] * n, pa.int32()),
        "sentence_id": sentence_ids[:n].numpy(),
    }
    for name, value in zip(METRICS, values.numpy(), strict=True):
        columns[name] = value.astype(bool) if name.startswith("correct") else value
    return pa.table(columns)


def collect_transfer(levels: Iterable[str | Path], path: str | Path) -> None:
    """Stage `collect-transfer`: the K x K grid of precision and surprisal from the levels' evaluations, in order.

    Raises:
        OnejumpError: an evaluation is missing or damaged, or jumps are missing from it.
    """
    parts = []
    levels = list(levels)
    for level, file in enumerate(levels):
        table = read_table(file, ["method", "jump", "correct", "surprisal"])
        own = pc.unique(table.filter(pc.field("method") == "n_njtc")["jump"]).to_pylist()
        table = table.filter(pc.field("method") == "arbitrary")
        table = table.set_column(2, "correct", pc.cast(table["correct"], pa.float64()))
        means = table.group_by("jump").aggregate([("correct", "mean"), ("surprisal", "mean")]).sort_by("jump")
        if means["jump"].to_pylist() != list(range(len(levels))):
            raise OnejumpError(
                f"{file}: has jumps {means['jump'].to_pylist()}, expected 0..{len(levels) - 1}; rerun it"
            )
        if own != [level]:
            raise OnejumpError(f"{file}: evaluates level {own}, expected {level}; give the levels in order")
        parts.append(
            pa.table(
                {
                    "jump": means["jump"],
                    "level": pa.array([level] * len(means), pa.int32()),
                    "precision": means["correct_mean"],
                    "surprisal": means["surprisal_mean"],
                }
            )
        )
    write_table(path, pa.concat_tables(parts).sort_by([("jump", "ascending"), ("level", "ascending")]))
