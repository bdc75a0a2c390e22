"""The paper's claims C1-C6, each assessed by name with a paired bootstrap over test sentences.

A claim is one or more statements, each about a statistic and a bound (RULES). A statement is supported if the 95 %
interval of its statistic lies entirely on the claimed side of the bound, contradicted if it lies entirely on the other
side, and inconclusive otherwise. A claim is supported if all its statements are, contradicted if any of them is, and
inconclusive otherwise. Means are over exit levels, and every difference is OJFA minus the other method, sentence by
sentence.

- C1, over 30x fewer parameters: the `ratio` of N-NJTC's parameters to OJFA's, counted in their files, is at least 30.
  The ratio is the number of blocks. The paper has models with 32 or more; one with 30 is held to no more than 30, and
  to one with fewer the claim does not apply: it is `inapplicable`. It has no interval.
- C2, OJFA beats arbitrary jumps: the mean `difference` from the mean of the other K-1 jumps, in precision and in
  surprisal, on the transfer sentences. Also reported: OJFA's `rank` among all K by mean precision (1 is best; jumps
  that tie with OJFA do not count against it).
- C3, OJFA beats the joint jump: the mean `difference`, in precision and in surprisal.
- C4, OJFA beats identity at early levels, identity wins late: `early_difference` and `late_difference` in precision,
  means over the first and the last third of the levels. Also reported: the same in surprisal, the `difference` at each
  level, and the `crossing_level`, from which on identity's precision is at least OJFA's (K: at no level).
- C5, OJFA largely matches N-NJTC: `kept`, OJFA's mean precision as a share of N-NJTC's, and `worst_loss`, the largest
  loss of precision at any level, as a share of N-NJTC's mean. Also reported: the mean `difference` and the
  `worst_level`.
- C6, OJFA is stable over levels: `relative_range`, the largest minus the smallest precision of any level as a share of
  OJFA's mean. Also reported: the `range` itself.

The margins of C5 and C6 are our judgement, since the paper gives none. They are shares of a mean precision because
precision differs several-fold between models: under an absolute margin, a useless jump would pass wherever N-NJTC is
poor too. A share of zero is undefined, and makes its statement inconclusive. Extremes over levels (`worst_loss` and
both ranges) have no percentile interval, since resampling adds noise to an extreme that noise has already inflated.
Their interval is the estimate plus and minus the 95 % quantile of how far resampling moves any level (for a range: any
two levels apart), which covers at least 95 %. Intervals hold for the jumps as fitted; other fits and other training
sentences are what other seeds are for. Nothing is corrected for testing several statements.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from onejump.analysis.bootstrap import resampled_means
from onejump.analysis.columns import WITH_INTERVALS
from onejump.analysis.reading import EvaluationGrids
from onejump.files.tensors import TensorFile

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEWER_PARAMETERS = 30  # C1
KEPT = 0.9  # C5: more than nine tenths of the precision of K times as many parameters,
WORST_LOSS = 0.25  # and no level may lose a quarter of it, so that a good mean cannot hide levels that fail
STABLE_RANGE = 0.5  # C6: the range over levels is less than half the mean

# (claim, statistic, metric) -> where the claim says that it lies. Statistics that are not here are only reported.
RULES: dict[tuple[str, str, str], tuple[str, float]] = {
    ("C1", "ratio", "parameters"): (">=", FEWER_PARAMETERS),
    ("C2", "difference", "precision"): (">", 0),
    ("C2", "difference", "surprisal"): ("<", 0),
    ("C3", "difference", "precision"): (">", 0),
    ("C3", "difference", "surprisal"): ("<", 0),
    ("C4", "early_difference", "precision"): (">", 0),
    ("C4", "late_difference", "precision"): ("<", 0),
    ("C5", "kept", "precision"): (">", KEPT),
    ("C5", "worst_loss", "precision"): ("<", WORST_LOSS),
    ("C6", "relative_range", "precision"): ("<", STABLE_RANGE),
}

# Statistics that are extremes over levels -> the extreme, and how far resampling moves it given each level's deviation.
EXTREMES = {
    "worst_loss": (np.max, lambda deviation: np.abs(deviation).max(1)),
    **dict.fromkeys(("relative_range", "range"), (np.ptp, lambda deviation: np.ptp(deviation, 1))),
}

Statistic = tuple[str, str, str, int | None]  # claim, name, metric, level
Columns = Mapping[str, np.ndarray]


def claims_table(grids: EvaluationGrids, ojfa: int, parameters: Mapping[str, int], seed: int) -> pd.DataFrame:
    """Every statistic of every claim for one model, seed and variant.

    `parameters` says how many numbers the methods `ojfa` and `n_njtc` need at inference.

    Returns:
        claim, statistic, metric, level (null if it is over all levels), estimate, low, high, rule such as `> 0.9` and
        verdict (both null if the statistic is only reported), claim_verdict (the same in all rows of a claim).
    """
    ratio = parameters["n_njtc"] / parameters["ojfa"]
    rows = [_row(("C1", "ratio", "parameters", None), ratio, np.nan, np.nan)]
    enough = "supported" if ratio >= FEWER_PARAMETERS else "contradicted"
    rows[0]["verdict"] = enough if len(grids.metric("ojfa", "correct")) >= FEWER_PARAMETERS else "inapplicable"
    rows += _estimates(_transfer_columns(grids, ojfa), _transfer_statistics, seed)
    rows += _estimates(_test_columns(grids), _test_statistics, seed)
    table = pd.DataFrame(rows).astype({"level": "Int32"}).sort_values("claim", kind="stable", ignore_index=True)
    return table.assign(claim_verdict=table.groupby("claim")["verdict"].transform(_claim_verdict))


def n_parameters(file: TensorFile) -> int:
    """How many numbers a file of jumps holds, counted from the shapes of its tensors."""
    return sum(math.prod(file.shape(name)) for name in file.names)


def verdict(low: float, high: float, side: str, bound: float) -> str:
    """What an interval says about the statement that a statistic lies on one side, `>` or `<`, of a bound."""
    above, below = low > bound, high < bound
    if above or below:
        return "supported" if above == (side == ">") else "contradicted"
    return "inconclusive"


def _claim_verdict(verdicts: pd.Series) -> str:
    found = set(verdicts.dropna())
    if "contradicted" in found:
        return "contradicted"
    return found.pop() if found in ({"supported"}, {"inapplicable"}) else "inconclusive"


def _row(statistic: Statistic, estimate: float, low: float, high: float) -> dict:
    row = dict(zip(("claim", "statistic", "metric", "level"), statistic, strict=True))
    row |= {"estimate": estimate, "low": low, "high": high, "rule": None, "verdict": None}
    if statistic[:3] in RULES:
        side, bound = RULES[statistic[:3]]
        row |= {"rule": f"{side} {bound:g}", "verdict": verdict(low, high, side, bound)}
    return row


def _estimates(columns: Columns, statistics: Callable[[Columns], dict[Statistic, np.ndarray]], seed: int) -> list[dict]:
    """Statistics of the means of columns [N, c], one row per sentence, with intervals from resamples that all share.

    `statistics` maps means [b, c] to values [b], or [b, K] for those in EXTREMES.
    """
    values = np.concatenate(list(columns.values()), 1)
    ends = np.cumsum([part.shape[1] for part in columns.values()])[:-1]

    def of(means: np.ndarray) -> dict[Statistic, np.ndarray]:
        return statistics(dict(zip(columns, np.split(means, ends, 1), strict=True)))

    with np.errstate(divide="ignore", invalid="ignore"):  # a share of zero is NaN, and so is its interval
        estimates = {name: value[0] for name, value in of(values.mean(0, keepdims=True)).items()}
        blocks = [of(means) for means in resampled_means(values, seed, RESAMPLES)]
        resampled = {name: np.concatenate([block[name] for block in blocks]) for name in estimates}
        return [_row(name, *_interval(name[1], estimates[name], resampled[name])) for name in estimates]


def _interval(name: str, estimate: np.ndarray, resampled: np.ndarray) -> tuple[float, float, float]:
    """Estimate, low and high of a statistic, from its value and its resampled values: [R], or [R, K] if in EXTREMES."""
    if name not in EXTREMES:
        low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(estimate), float(low), float(high)
    extreme, change = EXTREMES[name]
    reach = np.quantile(change(resampled - estimate), CONFIDENCE)
    return float(extreme(estimate)), float(extreme(estimate) - reach), float(extreme(estimate) + reach)


# Differences are taken sentence by sentence, before the means, so that equal methods differ by exactly zero. Hits are
# summed over levels before the mean over sentences: these are whole numbers, so that ties are exact.
def _transfer_columns(grids: EvaluationGrids, ojfa: int) -> Columns:
    correct = grids.single_jumps("correct").sum(1)
    columns = {"ojfa": correct[[ojfa]].T, "others": np.delete(correct, ojfa, 0).T}
    for metric, name in WITH_INTERVALS.items():
        columns[metric] = (grids.single_jumps(name)[ojfa] - grids.others(name, ojfa)).mean((0, 1))[:, None]
    return columns


def _transfer_statistics(mean: Columns) -> dict[Statistic, np.ndarray]:
    found = {("C2", "difference", metric, None): mean[metric][:, 0] for metric in WITH_INTERVALS}
    return found | {("C2", "rank", "precision", None): 1 + (mean["others"] > mean["ojfa"]).sum(1)}


def _test_columns(grids: EvaluationGrids) -> Columns:
    columns = {method: grids.metric(method, "correct").T for method in ("ojfa", "n_njtc", "identity")}
    for metric, name in WITH_INTERVALS.items():
        for other in ("joint", "identity", "n_njtc"):
            difference = grids.metric("ojfa", name) - grids.metric(other, name)
            columns[f"{other} {metric}"] = difference.T if other == "identity" else difference.mean(0)[:, None]
    return columns


def _test_statistics(mean: Columns) -> dict[Statistic, np.ndarray]:
    ojfa, n_njtc, identity = (mean[method] for method in ("ojfa", "n_njtc", "identity"))
    n_levels = ojfa.shape[1]
    third = max(1, n_levels // 3)
    found = {}
    for metric in WITH_INTERVALS:
        found["C3", "difference", metric, None] = mean[f"joint {metric}"][:, 0]
        to_identity = mean[f"identity {metric}"]
        found["C4", "early_difference", metric, None] = to_identity[:, :third].mean(1)
        found["C4", "late_difference", metric, None] = to_identity[:, -third:].mean(1)
        found |= {("C4", "difference", metric, level): to_identity[:, level] for level in range(n_levels)}
        found["C5", "difference", metric, None] = mean[f"n_njtc {metric}"][:, 0]
    behind = identity < ojfa
    last_behind = n_levels - 1 - behind[:, ::-1].argmax(1)
    found["C4", "crossing_level", "precision", None] = np.where(behind.any(1), last_behind + 1, 0)
    loss = (n_njtc - ojfa) / n_njtc.mean(1, keepdims=True)
    found["C5", "kept", "precision", None] = ojfa.mean(1) / n_njtc.mean(1)
    found["C5", "worst_loss", "precision", None] = loss
    found["C5", "worst_level", "precision", None] = loss.argmax(1)
    found["C6", "relative_range", "precision", None] = ojfa / ojfa.mean(1, keepdims=True)
    found["C6", "range", "precision", None] = ojfa
    return found
