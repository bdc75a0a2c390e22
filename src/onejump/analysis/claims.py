"""The paper's claims C1-C6, each tested by name with a paired bootstrap over test sentences.

A claim is one or more statements, each a statistic and a bound (RULES). Where the 95 % percentile interval of the
statistic lies wholly on the claimed side of the bound, the statement is supported; wholly on the other side,
contradicted; else inconclusive. A claim is supported where all its statements are, contradicted where one of them is,
else inconclusive. Means are over exit levels, and every difference is OJFA minus the other, sentence by sentence.

- C1, 30x fewer parameters: `ratio` of N-NJTC's numbers to OJFA's, counted in the tensors, is at least 30. The paper's
  "over 30x" is of models with 32 and more blocks; one with 30 is held to no more. It has no interval.
- C2, OJFA beats arbitrary jumps: mean `difference` to the mean of the other K-1 jumps, in precision and in surprisal,
  on the transfer sentences. Beside it the `rank` of OJFA among all K by mean precision (1 is best).
- C3, OJFA beats the joint jump: mean `difference`, in precision and in surprisal.
- C4, OJFA beats identity early, identity wins late: `early_difference` and `late_difference` in precision, means over
  the first and the last third of the levels. Beside them both in surprisal, the `difference` at each level, and the
  `crossing_level` from which on identity has at least OJFA's precision (K: never).
- C5, OJFA largely matches N-NJTC: `kept`, OJFA's mean precision as a share of N-NJTC's, and `worst_loss`, the most
  precision lost at one level, as a share of N-NJTC's mean. Beside them the mean `difference`, and the `worst_level`.
- C6, OJFA is stable over levels: `relative_range`, largest minus smallest precision of a level as a share of OJFA's
  mean. Beside it the `range` itself.

The margins of C5 and C6 are judgements, since the paper gives none. They are shares of a mean precision because that
differs several times between models: an absolute margin would let a useless jump pass where N-NJTC itself is poor.
A share of nothing is undefined, and inconclusive. Extremes over levels (`worst_loss`, both ranges) have no percentile
interval, since each resample would add its noise to an extreme that noise has made already; theirs is the estimate plus
and minus the 95 % quantile of how far resampling moves any level (for a range: moves two levels apart), which covers
with at least 95 %. Intervals hold for the jumps as they were fitted: other fits and training sentences are other seeds.
They are not corrected for testing several statements.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from onejump.analysis.bootstrap import resampled_means
from onejump.analysis.grids import EvaluationGrids
from onejump.exits.columns import METRICS

RESAMPLES = 10_000


CONFIDENCE = 0.95


FEWER_PARAMETERS = 30  # C1


KEPT = 0.9  # C5: at least nine tenths of the precision that K times as many parameters buy,


WORST_LOSS = 0.25  # and at no level a loss of a quarter of it, so that a good mean cannot hide levels that fail


STABLE_RANGE = 0.5  # C6: all levels in a band at most half as wide as the mean is high


# Where the statement of a claim about a statistic of a metric holds; what is not here is only reported.
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


# Statistics that are an extreme over levels, and what resampling can change it by, given each level's deviation.
EXTREMES = {
    "worst_loss": (np.max, lambda deviation: np.abs(deviation).max(1)),
    "relative_range": (np.ptp, lambda deviation: np.ptp(deviation, 1)),
    "range": (np.ptp, lambda deviation: np.ptp(deviation, 1)),
}


COLUMNS = {"precision": "correct", "surprisal": "surprisal"}  # each metric's name in the evaluation


Statistic = tuple[str, str, str, int | None]  # claim, name, metric, level


def claims_table(grids: EvaluationGrids, ojfa: int, parameters: Mapping[str, int], seed: int) -> pd.DataFrame:
    """Stage `assess-claims`: every statistic of every claim for one model, seed and variant.

    Args:
        grids: what each method predicts.
        ojfa: the selected jump.
        parameters: how many numbers `ojfa` and `n_njtc` need at inference.
        seed: of the bootstrap.

    Returns:
        claim, statistic, metric, level (null where it is over levels), estimate, low, high, rule such as `> 0.9` and
        verdict (both null where the statistic is only reported), claim_verdict (the same in all rows of a claim).
    """
    ratio = parameters["n_njtc"] / parameters["ojfa"]
    counted = {"verdict": "supported" if ratio >= FEWER_PARAMETERS else "contradicted"}
    rows = [_row(("C1", "ratio", "parameters", None), ratio, np.nan, np.nan) | counted]
    rows += _estimates(_transfer_columns(grids, ojfa), _transfer_statistics, seed)
    rows += _estimates(_test_columns(grids), _test_statistics, seed)
    table = pd.DataFrame(rows).astype({"level": "Int32"}).sort_values("claim", kind="stable", ignore_index=True)
    return table.assign(claim_verdict=table.groupby("claim")["verdict"].transform(_claim_verdict))


def verdict(low: float, high: float, side: str, bound: float) -> str:
    """What an interval says of the statement that a statistic lies on that side, `>` or `<`, of a bound."""
    above, below = low > bound, high < bound
    if above or below:
        return "supported" if above == (side == ">") else "contradicted"
    return "inconclusive"


def _claim_verdict(verdicts: pd.Series) -> str:
    found = set(verdicts.dropna())
    if "contradicted" in found:
        return "contradicted"
    return "supported" if found == {"supported"} else "inconclusive"


def _row(statistic: Statistic, estimate: float, low: float, high: float) -> dict:
    claim, name, metric, level = statistic
    side, bound = RULES.get((claim, name, metric), (None, None))
    return {
        **{"claim": claim, "statistic": name, "metric": metric, "level": level},
        **{"estimate": estimate, "low": low, "high": high},
        "rule": None if side is None else f"{side} {bound:g}",
        "verdict": None if side is None else verdict(low, high, side, bound),
    }


def _estimates(
    columns: Mapping[str, np.ndarray],
    statistics: Callable[[Mapping[str, np.ndarray]], dict[Statistic, np.ndarray]],
    seed: int,
) -> list[dict]:
    """Statistics of column means, with their intervals.

    Args:
        columns: name -> [N, c], one row a sentence.
        statistics: from name -> means [b, c] to statistic -> [b], or [b, K] for those of EXTREMES.
        seed: of the resampling, which all columns share.
    """
    values = np.concatenate(list(columns.values()), 1)
    ends = np.cumsum([part.shape[1] for part in columns.values()])[:-1]

    def of(means: np.ndarray) -> dict[Statistic, np.ndarray]:
        return statistics(dict(zip(columns, np.split(means, ends, 1), strict=True)))

    with np.errstate(divide="ignore", invalid="ignore"):  # a share of nothing is NaN, and so is its interval
        estimates = {name: value[0] for name, value in of(values.mean(0, keepdims=True)).items()}
        blocks = [of(means) for means in resampled_means(values, seed, RESAMPLES)]
        resampled = {name: np.concatenate([block[name] for block in blocks]) for name in estimates}
        return [_row(name, *_interval(name[1], estimates[name], resampled[name])) for name in estimates]


def _interval(name: str, estimate: np.ndarray, resampled: np.ndarray) -> tuple[float, float, float]:
    """Estimate, low and high of a statistic from its value and its resampled values [R], or [R, K] if in EXTREMES."""
    if name not in EXTREMES:
        low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(estimate), float(low), float(high)
    extreme, change = EXTREMES[name]
    reach = np.quantile(change(resampled - estimate), CONFIDENCE)
    return float(extreme(estimate)), float(extreme(estimate) - reach), float(extreme(estimate) + reach)


# Differences are taken sentence by sentence, before the means: equal methods then differ by exactly nothing. Precisions
# are summed over levels as whole numbers, exactly.
def _transfer_columns(grids: EvaluationGrids, ojfa: int) -> dict[str, np.ndarray]:
    columns = {
        metric: (_of_jumps(grids, name)[ojfa] - grids.others(name, ojfa)).mean((0, 1))[:, None]
        for metric, name in COLUMNS.items()
    }
    correct = _of_jumps(grids, "correct").sum(1)
    return columns | {"ojfa": correct[[ojfa]].T, "others": np.delete(correct, ojfa, 0).T}


def _of_jumps(grids: EvaluationGrids, name: str) -> np.ndarray:
    """One metric of all single jumps: [jump, level, sentence]."""
    return grids.arbitrary[METRICS.index(name)]


def _transfer_statistics(mean: Mapping[str, np.ndarray]) -> dict[Statistic, np.ndarray]:
    found = {("C2", "difference", metric, None): mean[metric][:, 0] for metric in COLUMNS}
    return found | {("C2", "rank", "precision", None): 1 + (mean["others"] > mean["ojfa"]).sum(1)}


def _test_columns(grids: EvaluationGrids) -> dict[str, np.ndarray]:
    columns = {method: grids.metric(method, "correct").T for method in ("ojfa", "n_njtc", "identity")}
    for metric, name in COLUMNS.items():
        for other in ("joint", "identity", "n_njtc"):
            difference = grids.metric("ojfa", name) - grids.metric(other, name)
            columns[f"{other} {metric}"] = difference.T if other == "identity" else difference.mean(0)[:, None]
    return columns


def _test_statistics(mean: Mapping[str, np.ndarray]) -> dict[Statistic, np.ndarray]:
    ojfa, n_njtc, identity = (mean[method] for method in ("ojfa", "n_njtc", "identity"))
    n_levels = ojfa.shape[1]
    third = max(1, n_levels // 3)
    found: dict[Statistic, np.ndarray] = {}
    for metric in COLUMNS:
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
