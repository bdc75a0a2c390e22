"""What one joint jump is worth beside the paper's jumps: statements G1 to G6, assessed as the paper's claims are.

Each is about a variant with the joint jump alone, on the sentences of the study's other variants with the same
positions and training text, `against` which it is set. What decides each, what would falsify it, and what stands beside
it:

- G1, better than OJFA: `difference` in precision above 0, and in surprisal below. OJFA better in either falsifies it.
- G2, better than N-NJTC by squared error, which has a jump for each level: the same differences.
- G3, identity is better at no level: `smallest_difference`, the least that any level's precision is above identity's,
  is more than 0 over a band that covers all levels at once. One level where identity is better falsifies it.
- G4, no null explains it: a jump of the same form that sees nothing (gates and a bias), or that was fitted to other
  sentences' states, has less than nine tenths of its gain over identity in precision (`share_of_gain`).
- G5, the primary one: one jump keeps more than nine tenths of what N-NJTC with the same fit, target, rank, gate and
  inputs has above the floor (`kept_above_floor`), in precision. That is the paper's thesis, for this jump. Beside it:
  the same in surprisal. Scales make no difference here: a level's own jump has no use for them.
- G6, how near it comes to the upper references: its `share` of JTC's precision, and, where that is evaluated, its
  `share_of_tuned_lens`. They are only reported.

Differences are the one jump's less the other's, sentence by sentence, and the floor is that of the paper's claims.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from onejump.analysis.claims import Rule, Rules, assessed, estimates
from onejump.analysis.columns import CLAIM_POSITIONS, POSITIONS, WITH_INTERVALS
from onejump.analysis.reading import EvaluationGrids
from onejump.analysis.statistics import BETTER, FLOOR, Columns, Statistic
from onejump.study.fits import FITS
from onejump.study.variants import FITTED_BY

BETTER_IN_BOTH = {"precision": (Rule(">", 0, True),), "surprisal": (Rule("<", 0, True),)}
RULES: Rules = {
    **{(claim, "difference", metric): rules for claim in ("G1", "G2") for metric, rules in BETTER_IN_BOTH.items()},
    ("G3", "smallest_difference", "precision"): (Rule(">", 0, True),),
    ("G4", "share_of_gain", "precision"): (Rule("<", 0.9, True),),
    ("G5", "kept_above_floor", "precision"): (Rule(">", 0.9, True), Rule(">", 0.8), Rule(">", 0.95)),
    ("G5", "kept_above_floor", "surprisal"): (Rule(">", 0.9),),
}

# The lenses that G6 is about, and its statistic for each.
SHARES = {"jtc": "share", "tuned_lens": "share_of_tuned_lens"}


def claims_against(own: Mapping, other: Mapping) -> list[str]:
    """Which claims about a variant with these choices, the joint jump alone, can be made against another."""
    if any(other[key] != own[key] for key in ("positions", "train_on")):
        return []
    if other["jumps"] == "joint":
        alike = all(own[key] == other[key] for key in FITTED_BY if key not in ("inputs", "rank"))
        null = own["inputs"] == "states" != other["inputs"]
        return ["G4"] if alike and null and (other["inputs"] == "none" or other["rank"] == own["rank"]) else []
    paper = FITS[other["fit"]].squared_error and other["gate"] == "none" and other["inputs"] == "states"
    found = ["G1", "G2", "G3", "G6"] if paper else []
    return [*found, "G5"] if all(own[key] == other[key] for key in FITTED_BY if key != "scales") else found


def one_jump_table(one: EvaluationGrids, other: EvaluationGrids, claims: Sequence[str], seed: int) -> pd.DataFrame:
    """Every statement of these claims about the joint jump of `one` against the jumps, or the joint jump, of `other`.

    Returns:
        As `claims_table`, for the claims G1 to G6.
    """
    columns, parts = _columns(one, other), []
    for name in CLAIM_POSITIONS:
        first, last = POSITIONS.get(name, (0, math.inf))
        kept = (first <= one.positions) & (one.positions <= last)
        if kept.any():
            part = {column: values[kept] for column, values in columns.items()}
            rows = estimates(part, one.documents[kept], _statistics, RULES, seed)
            parts.append(assessed([row for row in rows if row["claim"] in claims]).assign(positions=name))
    return pd.concat(parts, ignore_index=True)


def _columns(one: EvaluationGrids, other: EvaluationGrids) -> Columns:
    """Columns on all test sentences: [sentence, K], or [sentence, 1] for what only its mean over levels is used of."""
    correct, identity = one.metric("joint", "correct"), one.metric("identity", "correct")
    if "n_njtc" not in other.methods:
        gains = {"gain": correct - identity, "null's gain": other.metric("joint", "correct") - identity}
        return {name: values.mean(0)[:, None] for name, values in gains.items()}
    means = {"one": correct} | {lens: other.metric(lens, "correct") for lens in SHARES if lens in other.methods}
    for metric, name in WITH_INTERVALS.items():
        joint, n_njtc, floor = one.metric("joint", name), other.metric("n_njtc", name), one.metric(FLOOR, name)
        means[f"ojfa {metric}"], means[f"n_njtc {metric}"] = joint - other.metric("ojfa", name), joint - n_njtc
        means[f"one above floor {metric}"] = BETTER[metric] * (joint - floor)
        means[f"n_njtc above floor {metric}"] = BETTER[metric] * (n_njtc - floor)
    columns = {column: values.mean(0)[:, None] for column, values in means.items()}
    return columns | {"identity": (correct - identity).T}


def _statistics(mean: Columns) -> dict[Statistic, np.ndarray]:
    """Statistics of means [b, c] of the columns: values [b], or [b, K] for extremes over levels."""
    if "gain" in mean:
        gain, of_null = mean["gain"][:, 0], mean["null's gain"][:, 0]
        return {("G4", "share_of_gain", "precision", None): np.where(gain > 0, of_null / gain, np.nan)}
    found = {}
    for metric in WITH_INTERVALS:
        found["G1", "difference", metric, None] = mean[f"ojfa {metric}"][:, 0]
        found["G2", "difference", metric, None] = mean[f"n_njtc {metric}"][:, 0]
        kept, whole = (mean[f"{which} above floor {metric}"][:, 0] for which in ("one", "n_njtc"))
        found["G5", "kept_above_floor", metric, None] = np.where(whole > 0, kept / whole, np.nan)
    found["G3", "smallest_difference", "precision", None] = mean["identity"]
    for lens, statistic in SHARES.items():
        if lens in mean:
            found["G6", statistic, "precision", None] = mean["one"][:, 0] / mean[lens][:, 0]
    return found
