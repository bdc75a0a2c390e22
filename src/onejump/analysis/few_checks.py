"""Dynamic exit with checks at few levels, which are chosen on the validation slice of the training sentences.

A check costs multiply-adds whether or not the sentence exits there. So levels are added one after another, each time
the one with which the exit is cheapest while it agrees enough with the full model there; what these levels give with
the threshold chosen there is then measured on the test sentences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from onejump.analysis.bootstrap import interval
from onejump.analysis.costs import Costs
from onejump.analysis.dynamic_exit import AGREEMENT, candidates


@dataclass(frozen=True)
class _Exits:
    """What exits with some thresholds give: each [threshold, N], but cost, a share of the full model's, [threshold]."""

    agreement: np.ndarray
    level: np.ndarray
    checks: np.ndarray
    cost: np.ndarray


def few_checks_table(
    test: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray], documents: np.ndarray, costs: Costs
) -> pd.DataFrame:
    """Each method with checks at 1, 2, 4, ... and all K levels, or at the first alone.

    Arguments are as of `dynamic_exit_table`.

    Returns:
        method; n_levels, with checks, and levels, which they are; threshold, the lowest one with an agreement of
        AGREEMENT on the validation slice, and held_out_agreement, the agreement there; on the test sentences blocks,
        agreement with its 95 % bootstrap interval, checks and cost, as the check is cheapest, as `dynamic_exit_table`
        has them; identity_agreement, of identity on the test sentences with those of its levels and thresholds that
        agree most on the validation slice without more multiply-adds there, or of the full model, which is 1, where it
        takes no more (null if nothing is as cheap).
    """
    rows, agreements = [], []
    for method, (correct, confidence) in held_out.items():
        check, thresholds = costs.check(method), candidates(confidence)
        order = _order(correct, confidence, thresholds, check, costs)
        for n in _sizes(costs.levels(method)):
            levels = sorted(order[:n]) if n < costs.n_blocks else list(range(n))
            before = _exits(correct, confidence, thresholds, levels, check, costs)
            chosen = int((before.agreement.mean(1) >= AGREEMENT).argmax())  # the first, since thresholds ascend
            after = _exits(*test[method], thresholds[[chosen]], levels, check, costs)
            row = {
                "method": method,
                "n_levels": n,
                "levels": ", ".join(map(str, levels)),
                "threshold": thresholds[chosen],
            }
            row |= {"held_out_agreement": before.agreement[chosen].mean(), "held_out_cost": before.cost[chosen]}
            row |= {"blocks": after.level.mean() / costs.n_blocks, "agreement": after.agreement.mean()}
            rows.append(row | {"checks": after.checks.mean(), "cost": after.cost[0]})
            agreements.append(after.agreement[0])
    table = pd.DataFrame(rows)
    low, high = interval(np.stack(agreements, 1), documents)
    after = table.columns.get_loc("agreement") + 1
    table.insert(after, "agreement_low", low)
    table.insert(after + 1, "agreement_high", high)
    of_identity = table.loc[table["method"] == "identity", "levels"]
    sets = [list(map(int, levels.split(", "))) for levels in of_identity]
    table["identity_agreement"] = _identity_at(table["held_out_cost"], test, held_out, sets, costs)
    return table.drop(columns="held_out_cost")


def _sizes(n_blocks: int) -> list[int]:
    """1, 2, 4, ... below K, and K."""
    return [*(2**i for i in range(n_blocks.bit_length()) if 2**i < n_blocks), n_blocks]


def _order(correct: np.ndarray, confidence: np.ndarray, thresholds: np.ndarray, check: int, costs: Costs) -> list[int]:
    """Levels in the order in which they are added: each time the one with the cheapest exit that agrees enough."""
    K, N = confidence.shape
    levels = np.arange(K)[:, None, None]
    own = np.where(confidence[:, None] >= thresholds[:, None], levels, K)  # [level, threshold, N]
    right = np.concatenate([correct, np.ones((1, N))])
    first, passed, order = np.full(own.shape[1:], K), np.zeros(K + 1), []
    for _ in range(_sizes(K)[-2]):
        level = np.minimum(first, own)
        checks = passed[level] + (level >= levels)
        work = costs.block * level + costs.plain_check * (level == K) + check * checks
        enough = right[level, np.arange(N)].mean(2) >= AGREEMENT
        cheapest = np.where(enough, work.mean(2), np.inf).min(1)
        cheapest[order] = np.inf
        order.append(int(cheapest.argmin()))
        first = level[order[-1]]
        passed[order[-1] :] += 1
    return order


def _exits(
    correct: np.ndarray,
    confidence: np.ndarray,
    thresholds: np.ndarray,
    levels: Sequence[int],
    check: int,
    costs: Costs,
) -> _Exits:
    """Exits at some levels only, in ascending order."""
    K, N = confidence.shape
    passed = confidence[levels] >= thresholds[:, None, None]  # [threshold, checked, N]
    exits, number = passed.any(1), passed.argmax(1)
    level = np.where(exits, np.array(levels)[number], K)
    checks = np.where(exits, number + 1, len(levels))
    work = costs.block * level + costs.plain_check * ~exits + check * checks
    right = np.concatenate([correct, np.ones((1, N))])
    return _Exits(right[level, np.arange(N)], level, checks, work.mean(1) / costs.full)


def _identity_at(
    budgets: Sequence[float],
    test: Mapping[str, np.ndarray],
    held_out: Mapping[str, np.ndarray],
    sets: Sequence[Sequence[int]],
    costs: Costs,
) -> list[float]:
    """Agreement of identity on the test sentences within each budget, with the best of some sets of levels."""
    correct, confidence = held_out["identity"]
    thresholds, check, found = candidates(confidence), costs.check("identity"), [(1.0, 1.0, 1.0)]  # never to check
    for levels in sets:
        before = _exits(correct, confidence, thresholds, levels, check, costs)
        after = _exits(*test["identity"], thresholds, levels, check, costs)
        found += zip(before.cost, before.agreement.mean(1), after.agreement.mean(1), strict=True)
    cost, agreed, given = np.array(found).T
    best = [np.where(cost <= budget, agreed, -1).argmax() for budget in budgets]
    return [given[i] if cost[i] <= budget else np.nan for i, budget in zip(best, budgets, strict=True)]
