"""The paper's claims C1-C6, each assessed by name with a paired bootstrap over the documents of the test sentences.

A statement says on which side of a bound a statistic lies (RULES). It is supported if the 95 % interval lies entirely
on that side, contradicted if it lies entirely on the other, and inconclusive otherwise. A difference in precision whose
whole interval is within EQUIVALENT of zero, but not on one side of it, is `equivalent`: that it is small is known.

A claim rests on the statements that decide it: supported if all of them are, contradicted if any of them is, after
Holm's correction for having several, and inconclusive otherwise. The other statements stand beside the claim, each with
a verdict of its own. All of it is done for all test sentences and again without those cut at position 0 (`1+`), which
is a case of its own in many models. Means are over exit levels, and differences are OJFA minus the other method.

Each claim, what decides it, what would falsify it, and what stands beside it:

- C1, over 30x fewer parameters: the `ratio` of N-NJTC's parameters to OJFA's, counted in their files, is at least 30;
  a smaller one falsifies it. The ratio is the number of blocks. The paper has models with 32 or more; one with 30 is
  held to no more than 30, and to one with fewer the claim does not apply: it is `inapplicable`. It has no interval.
- C2, OJFA beats arbitrary jumps: its precision is above the mean of the other K-1 jumps (`difference`), and its
  surprisal below their median (`difference_to_median`). It falls if the typical jump is as good. Surprisal rests on the
  median because a few jumps that fail catastrophically rule the mean. Both need every jump at every level, and so are
  on the transfer sentences. Beside it: the median in precision, the mean in surprisal, and on all test sentences the
  jump of level K/2, which is taken without any data (`difference_to_middle`). Reported: OJFA's `rank` among all K by
  mean precision (1 is best; jumps that tie with OJFA do not count against it).
- C3, OJFA beats the joint jump: the mean `difference`, one verdict in precision and one in surprisal. A joint jump that
  is better in either falsifies it.
- C4, OJFA beats identity early, identity wins late: `early_difference` and `late_difference` in precision, over the
  first and the last third of the levels. An identity that is better early, or worse late, falsifies it. Beside it: the
  same in surprisal, where identity's scale counts too; over quarters and halves, since the paper does not say how early
  is early; and whether OJFA is early better than the floor (`early_difference_to_floor`), as identity may be worse than
  a constant. Reported: the `difference` at each level, and the `crossing_level`, from which on identity's precision is
  at least OJFA's (K: at no level).
- C5, OJFA largely matches N-NJTC: it has `kept` more than 0.9 of N-NJTC's mean precision. Less falsifies it. Beside it:
  more than 0.8 and 0.95; `kept_above_floor`, the same share of what is above the floor, in precision and in surprisal,
  since keeping what a constant has is no feat; and `worst_loss`, the largest loss of precision at any level as a share
  of N-NJTC's mean, below 0.25. Reported: `kept_above_token_table`, mean `difference`, `worst_level`.
- C6, OJFA is stable over levels: at no level does it keep less than 0.75 of N-NJTC's precision (`smallest_share`), and
  no later level has lost 0.5 of OJFA's mean precision against an earlier one (`largest_drop`). Getting better with
  depth is no instability. Reported: the `relative_range`, largest minus smallest precision as a share of the mean.

The floor is `constant_by_position`: of all methods that see neither a hidden state nor a token, the one that knows
most. It is one method, named beforehand, since the better of two would be chosen by the test sentences. Margins are our
judgement, since the paper gives none; those of C6 were C5's and C6's before it was split in this way. They are shares
because precision differs several-fold between models. A share of nothing, or of what is not above the floor, is
undefined, and makes its statement inconclusive.

Extremes over levels have no percentile interval, since resampling adds noise to an extreme that noise has already
inflated. `smallest_share` and `worst_loss` are extremes of the two ends of a band that covers all levels at once: so
many standard errors wide as 95 % of resamples stay within. The interval of a drop or range is the estimate plus and
minus the 95 % quantile of how far resampling moves any two levels apart. Both cover at least 95 %. p-values are
two-sided, from the same resamples. Intervals hold for the jumps as fitted and selected; other fits and other training
sentences are what other seeds are for.

Only for the statistics named `.._reselected`, of C2, C3 and C5, the selection is done again in each resample: beside
the test documents, the training documents that D_m is a mean over are resampled, and OJFA is the jump that is then the
best. It needs every jump at every level, and so is on the transfer sentences. The jumps themselves stay as fitted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from onejump.analysis import statistics
from onejump.analysis.bootstrap import CONFIDENCE, resampled_means
from onejump.analysis.columns import CLAIM_POSITIONS, POSITIONS
from onejump.analysis.reading import EvaluationGrids
from onejump.analysis.statistics import Columns, Statistic
from onejump.files.tensors import TensorFile

RESAMPLES = 10_000
FEWER_PARAMETERS = 30  # C1
EQUIVALENT = 0.01  # a difference in mean precision that nobody would notice


class Rule(NamedTuple):
    """Where a claim says that a statistic lies, and whether the claim's verdict rests on it."""

    side: str
    bound: float
    decides: bool = False


# (claim, statistic, metric) -> its statements, the main one first. Statistics that are not here are only reported.
Rules = Mapping[tuple[str, str, str], tuple[Rule, ...]]
RULES: Rules = {
    ("C1", "ratio", "parameters"): (Rule(">=", FEWER_PARAMETERS, True),),
    ("C2", "difference", "precision"): (Rule(">", 0, True),),
    ("C2", "difference", "surprisal"): (Rule("<", 0),),
    ("C2", "difference_to_median", "precision"): (Rule(">", 0),),
    ("C2", "difference_to_median", "surprisal"): (Rule("<", 0, True),),
    ("C2", "difference_to_middle", "precision"): (Rule(">", 0),),
    ("C2", "difference_to_middle", "surprisal"): (Rule("<", 0),),
    ("C2", "difference_reselected", "precision"): (Rule(">", 0),),
    ("C2", "difference_reselected", "surprisal"): (Rule("<", 0),),
    ("C3", "difference", "precision"): (Rule(">", 0, True),),
    ("C3", "difference", "surprisal"): (Rule("<", 0, True),),
    ("C3", "difference_reselected", "precision"): (Rule(">", 0),),
    ("C3", "difference_reselected", "surprisal"): (Rule("<", 0),),
    **{
        ("C4", f"{when}_difference{end}", metric): (Rule(side, 0, metric == "precision" and not end),)
        for end in statistics.WINDOWS
        for metric, sides in {"precision": "><", "surprisal": "<>"}.items()
        for when, side in zip(("early", "late"), sides, strict=True)
    },
    ("C4", "early_difference_to_floor", "precision"): (Rule(">", 0),),
    ("C4", "early_difference_to_floor", "surprisal"): (Rule("<", 0),),
    ("C5", "kept", "precision"): (Rule(">", 0.9, True), Rule(">", 0.8), Rule(">", 0.95)),
    ("C5", "kept_above_floor", "precision"): (Rule(">", 0.9), Rule(">", 0.8), Rule(">", 0.95)),
    ("C5", "kept_above_floor", "surprisal"): (Rule(">", 0.9), Rule(">", 0.8), Rule(">", 0.95)),
    ("C5", "kept_reselected", "precision"): (Rule(">", 0.9),),
    ("C5", "worst_loss", "precision"): (Rule("<", 0.25),),
    ("C6", "smallest_share", "precision"): (Rule(">", 0.75, True),),
    ("C6", "largest_drop", "precision"): (Rule("<", 0.5, True),),
}

BANDS = {"worst_loss": np.max, "smallest_share": np.min, "smallest_difference": np.min}  # -> the extreme over levels
SPREADS = {"largest_drop": statistics.largest_drop, "relative_range": np.ptp}


def claims_table(grids: EvaluationGrids, selection: Mapping, parameters: Mapping[str, int], seed: int) -> pd.DataFrame:
    """Every statistic of every claim for one model, seed and variant.

    `selection` has the jump `ojfa`, and the `bootstrap_share` of the resamples of the training documents in which each
    jump is selected; `parameters` says how many numbers the methods `ojfa` and `n_njtc` need at inference.

    Returns:
        positions, `all` or `1+` (left out if no transfer sentence is cut there); claim, statistic, metric, level (null
        if it is over all levels); estimate, low, high; rule such as `> 0.9`, a row for each if there are several;
        decides, whether the claim rests on it; p, two-sided; p_holm, corrected for the claim's other deciding
        statements; verdict; claim_verdict, the same in all rows of a claim. Statistics that are only reported have no
        rule, p or verdict.
    """
    parts = []
    for name in CLAIM_POSITIONS:
        first, last = POSITIONS.get(name, (0, math.inf))
        kept = (first <= grids.positions) & (grids.positions <= last)
        if kept[: grids.arbitrary.shape[-1]].any():
            parts.append(_claims_of(grids.where(kept), selection, parameters, seed).assign(positions=name))
    table = pd.concat(parts, ignore_index=True)
    return table[["positions", *table.columns.drop("positions")]]


def n_parameters(file: TensorFile) -> int:
    """How many numbers a file of jumps holds, counted from the shapes of its tensors."""
    return sum(math.prod(file.shape(name)) for name in file.names)


def verdict(low: float, high: float, side: str, bound: float, equivalent: float = 0.0) -> str:
    """What an interval says about the statement that a statistic lies on one side, `>` or `<`, of a bound.

    Within `equivalent` of the bound, a statistic is as good as there.
    """
    above, below = low > bound, high < bound
    if above or below:
        return "supported" if above == (side == ">") else "contradicted"
    return "equivalent" if max(high - bound, bound - low) < equivalent else "inconclusive"


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values of several statements [n]: below 0.05 where the statement holds whatever the others."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]), 1)
    return adjusted


def _claims_of(grids: EvaluationGrids, selection: Mapping, parameters: Mapping[str, int], seed: int) -> pd.DataFrame:
    ojfa = selection["ojfa"]
    ratio = parameters["n_njtc"] / parameters["ojfa"]
    rows = _rows(("C1", "ratio", "parameters", None), ratio, np.nan, np.nan, lambda bound: np.nan, RULES)
    enough = "supported" if ratio >= FEWER_PARAMETERS else "contradicted"
    rows[0]["verdict"] = enough if len(grids.metric("ojfa", "correct")) >= FEWER_PARAMETERS else "inapplicable"
    on_transfer = statistics.transfer_columns(grids, ojfa), statistics.transfer_statistics
    on_all = statistics.sentence_columns(grids), statistics.sentence_statistics
    for columns, values_of in (on_transfer, on_all):
        rows += estimates(columns, grids.documents, values_of, RULES, seed)
    # Training and test documents are drawn apart, so any of the one may stand beside any of the others.
    jumps = winners(selection["bootstrap_share"], RESAMPLES)
    at_estimate, resampled = (
        partial(statistics.reselected_statistics, jump=jump) for jump in (np.array([ojfa]), jumps)
    )
    columns = statistics.reselected_columns(grids)
    return assessed(rows + estimates(columns, grids.documents, at_estimate, RULES, seed, resampled))


def winners(shares: Sequence[float], resamples: int) -> np.ndarray:
    """The jump that each of so many resamples selects, [resamples] integers: each jump its share of them, in order."""
    return np.searchsorted(np.cumsum(shares), (np.arange(resamples) + 0.5) / resamples)


def assessed(rows: list[dict]) -> pd.DataFrame:
    """Rows of `estimates` as a table, with p-values after Holm's correction and the verdict of each claim."""
    table = pd.DataFrame(rows).astype({"level": "Int32"}).sort_values("claim", kind="stable", ignore_index=True)
    deciding = table[table["decides"]].groupby("claim")
    table["p_holm"] = deciding["p"].transform(lambda p: holm(p.to_numpy()))
    verdicts = {claim: _claim_verdict(table.loc[part.index]) for claim, part in deciding}
    return table.assign(claim_verdict=table["claim"].map(verdicts))


def _claim_verdict(deciding: pd.DataFrame) -> str:
    # C1 has no p-value: nothing about it is uncertain.
    if ((deciding["verdict"] == "contradicted") & ~(deciding["p_holm"] >= 1 - CONFIDENCE)).any():
        return "contradicted"
    found = set(deciding["verdict"])
    return found.pop() if found in ({"supported"}, {"inapplicable"}) else "inconclusive"


def _rows(
    statistic: Statistic, estimate: float, low: float, high: float, p_of: Callable[[float], float], rules: Rules
) -> list[dict]:
    """A row for each statement about a statistic, or one that only reports it."""
    row = dict(zip(("claim", "statistic", "metric", "level"), statistic, strict=True))
    row |= {"estimate": estimate, "low": low, "high": high}
    row |= {"rule": None, "decides": False, "p": np.nan, "p_holm": np.nan, "verdict": None}
    rows = []
    for side, bound, decides in rules.get(statistic[:3], ()):
        equivalent = EQUIVALENT if bound == 0 and statistic[2] == "precision" else 0.0
        found = {"rule": f"{side} {bound:g}", "decides": decides, "p": p_of(bound)}
        rows.append(row | found | {"verdict": verdict(low, high, side, bound, equivalent)})
    return rows or [row]


def estimates(
    columns: Columns,
    documents: np.ndarray,
    values_of: Callable[[Columns], dict[Statistic, np.ndarray]],
    rules: Rules,
    seed: int,
    resampled_of: Callable[[Columns], dict[Statistic, np.ndarray]] | None = None,
) -> list[dict]:
    """Statements about statistics of the means of columns [N, c], with intervals from resamples that all share.

    The rows are the first N sentences. `values_of` maps means [b, c] to values [b], or [b, K] for extremes over levels;
    `resampled_of` does so for the resamples, where it is another function.
    """
    values = np.concatenate(list(columns.values()), 1)
    ends = np.cumsum([part.shape[1] for part in columns.values()])[:-1]

    def named(means: np.ndarray) -> Columns:
        return dict(zip(columns, np.split(means, ends, 1), strict=True))

    with np.errstate(divide="ignore", invalid="ignore"):  # a share of zero is NaN, and so is its interval
        found = {name: value[0] for name, value in values_of(named(values.mean(0, keepdims=True))).items()}
        means = np.concatenate(list(resampled_means(values, documents[: len(values)], seed, RESAMPLES)))
        resampled = (resampled_of or values_of)(named(means))
        return [
            row
            for name, estimate in found.items()
            for row in _rows(name, *_interval(name[1], estimate, resampled[name]), rules)
        ]


def _interval(
    name: str, estimate: np.ndarray, resampled: np.ndarray
) -> tuple[float, float, float, Callable[[float], float]]:
    """A statistic's estimate, low and high, and its p-value against a bound.

    From its value and its resampled values: [R], or [R, K] for extremes over levels. A p-value is the share of
    resamples that change it as much as would bring it to the bound.
    """
    value = float((BANDS | SPREADS).get(name, float)(estimate))
    if not (np.isfinite(estimate).all() and np.isfinite(resampled).all()):
        return value, math.nan, math.nan, lambda bound: math.nan

    def share(there: np.ndarray) -> float:
        return (1 + there.sum()) / (1 + len(there))

    if name in BANDS:
        extreme, error = BANDS[name], np.maximum(resampled.std(0), 1e-12)  # a level may be the same in all resamples
        change = np.abs((resampled - estimate) / error).max(1)
        reach = np.quantile(change, CONFIDENCE) * error
        low, high = (float(extreme(estimate + end)) for end in (-reach, reach))
        return value, low, high, lambda bound: share(change >= abs(extreme((estimate - bound) / error)))
    if name in SPREADS:
        change = np.ptp(resampled - estimate, 1)
        reach = float(np.quantile(change, CONFIDENCE))
        return value, value - reach, value + reach, lambda bound: share(change >= abs(value - bound))
    low, high = map(float, np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    return value, low, high, lambda bound: min(1, 2 * min(share(resampled <= bound), share(resampled >= bound)))
