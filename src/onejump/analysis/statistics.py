"""What the claims are about: statistics of the means of some columns, which have one row for each sentence.

Differences are taken sentence by sentence, before the means, so that equal methods differ by exactly zero. Hits are
summed over levels before the mean over sentences: these are whole numbers, so that ties are exact.
"""

from collections.abc import Mapping

import numpy as np

from onejump.analysis.columns import WITH_INTERVALS
from onejump.analysis.reading import EvaluationGrids

FLOOR = "constant_by_position"  # of all methods without a hidden state or a token, the one that knows most
FLOORS = {"floor": FLOOR, "token_table": "token_table"}
WINDOWS = {"": 3, "_quarter": 4, "_half": 2}  # early and late: the first and the last third of the levels, and others
BETTER = {"precision": 1, "surprisal": -1}  # whether more of a metric is better

Statistic = tuple[str, str, str, int | None]  # claim, name, metric, level
Columns = Mapping[str, np.ndarray]


def transfer_columns(grids: EvaluationGrids, ojfa: int) -> Columns:
    """For each metric, OJFA less each other single jump, summed over levels: [transfer sentence, K-1]."""
    columns = {}
    for metric, name in WITH_INTERVALS.items():
        columns[metric] = (grids.single_jumps(name)[ojfa] - grids.others(name, ojfa)).sum(1).T
    return columns


def transfer_statistics(mean: Columns) -> dict[Statistic, np.ndarray]:
    """C2's statistics of means [b, K-1] of transfer_columns: values [b]."""
    found = {}
    for metric, to_others in mean.items():
        n_levels = to_others.shape[1] + 1
        found["C2", "difference", metric, None] = to_others.mean(1) / n_levels
        found["C2", "difference_to_median", metric, None] = np.median(to_others, 1) / n_levels
    return found | {("C2", "rank", "precision", None): 1 + (mean["precision"] < 0).sum(1)}


def reselected_columns(grids: EvaluationGrids) -> Columns:
    """For each metric, all single jumps, the joint jump and N-NJTC, summed over levels: [transfer sentence, K or 1]."""
    columns = {}
    for metric, name in WITH_INTERVALS.items():
        columns[f"single {metric}"] = jumps = grids.single_jumps(name).sum(1).T
        for method in ("joint", "n_njtc"):
            columns[f"{method} {metric}"] = grids.metric(method, name)[:, : len(jumps)].sum(0)[:, None]
    return columns


def reselected_statistics(mean: Columns, jump: np.ndarray) -> dict[Statistic, np.ndarray]:
    """Statistics of means [b, c] of reselected_columns with the jump that is OJFA in each, [b] integers: values [b]."""
    found = {}
    for metric in WITH_INTERVALS:
        single = mean[f"single {metric}"]
        n = single.shape[1]  # jumps, and levels
        ojfa = np.take_along_axis(single, jump[:, None], 1)[:, 0]
        found["C2", "difference_reselected", metric, None] = (ojfa - (single.sum(1) - ojfa) / (n - 1)) / n
        found["C3", "difference_reselected", metric, None] = (ojfa - mean[f"joint {metric}"][:, 0]) / n
        if metric == "precision":
            found["C5", "kept_reselected", metric, None] = ojfa / mean[f"n_njtc {metric}"][:, 0]
    return found


def sentence_columns(grids: EvaluationGrids) -> Columns:
    """Columns on all test sentences: [sentence, K], or [sentence, 1] for what only its mean over levels is used of."""
    columns = {method: grids.metric(method, "correct").T for method in ("ojfa", "n_njtc")}
    for metric, name in WITH_INTERVALS.items():
        ojfa, n_njtc = grids.metric("ojfa", name), grids.metric("n_njtc", name)
        columns[f"identity {metric}"] = (ojfa - grids.metric("identity", name)).T
        early = slice(_window(len(ojfa), ""))
        means = {f"early floor {metric}": ojfa[early] - grids.metric(FLOOR, name)[early]}
        for other in ("joint", "middle", "n_njtc"):
            means[f"{other} {metric}"] = ojfa - grids.metric(other, name)
        for floor, method in FLOORS.items():
            for above, values in (("ojfa", ojfa), ("n_njtc", n_njtc)):
                means[f"{above} above {floor} {metric}"] = BETTER[metric] * (values - grids.metric(method, name))
        columns |= {column: values.mean(0)[:, None] for column, values in means.items()}
    return columns


def sentence_statistics(mean: Columns) -> dict[Statistic, np.ndarray]:
    """Statistics of means [b, c] of sentence_columns: values [b], or [b, K] for extremes over levels."""
    ojfa, n_njtc = mean["ojfa"], mean["n_njtc"]
    n_levels = ojfa.shape[1]
    found = {}
    for metric in WITH_INTERVALS:
        found["C2", "difference_to_middle", metric, None] = mean[f"middle {metric}"][:, 0]
        found["C3", "difference", metric, None] = mean[f"joint {metric}"][:, 0]
        to_identity = mean[f"identity {metric}"]
        for end in WINDOWS:
            levels = _window(n_levels, end)
            found["C4", f"early_difference{end}", metric, None] = to_identity[:, :levels].mean(1)
            found["C4", f"late_difference{end}", metric, None] = to_identity[:, -levels:].mean(1)
        found["C4", "early_difference_to_floor", metric, None] = mean[f"early floor {metric}"][:, 0]
        found |= {("C4", "difference", metric, level): to_identity[:, level] for level in range(n_levels)}
        found["C5", "difference", metric, None] = mean[f"n_njtc {metric}"][:, 0]
        for floor in FLOORS:
            kept, whole = (mean[f"{method} above {floor} {metric}"][:, 0] for method in ("ojfa", "n_njtc"))
            found["C5", f"kept_above_{floor}", metric, None] = np.where(whole > 0, kept / whole, np.nan)
    ahead = mean["identity precision"] > 0
    last_ahead = n_levels - 1 - ahead[:, ::-1].argmax(1)
    found["C4", "crossing_level", "precision", None] = np.where(ahead.any(1), last_ahead + 1, 0)
    loss = (n_njtc - ojfa) / n_njtc.mean(1, keepdims=True)
    found["C5", "kept", "precision", None] = ojfa.mean(1) / n_njtc.mean(1)
    found["C5", "worst_loss", "precision", None] = loss
    found["C5", "worst_level", "precision", None] = loss.argmax(1)
    found["C6", "smallest_share", "precision", None] = ojfa / n_njtc
    relative = ojfa / ojfa.mean(1, keepdims=True)
    found["C6", "largest_drop", "precision", None] = found["C6", "relative_range", "precision", None] = relative
    return found


def largest_drop(levels: np.ndarray) -> float:
    """How far a later level of `levels` [K] lies below an earlier one at most; 0 if none does."""
    return float((np.maximum.accumulate(levels) - levels).max())


def _window(n_levels: int, end: str) -> int:
    return max(1, n_levels // WINDOWS[end])
