"""Dynamic exit: stop at the first level whose confidence reaches a threshold.

A low threshold saves blocks and loses agreement with the full model; the curve over thresholds shows what a method is
worth. Each level that is passed costs an exit check, which is expensive with the whole output head and nearly free with
a fused one. One threshold of each method is chosen on the validation slice of the training sentences, and what it gives
on the test sentences is reported: a threshold chosen there would look better than it is.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from onejump.analysis.bootstrap import interval
from onejump.analysis.costs import Costs

# The token table exits before the first block or never. Of the jumps a variant with the joint one alone has the last
# one or two.
METHODS = ("token_table", "identity", "n_njtc", "ojfa", "joint", "joint_shortlist")
AGREEMENT = 0.9  # with the full model on the validation slice, that a chosen threshold must reach
POINTS = 41  # thresholds at quantiles of all confidences, which spread exits over levels,
TOP_POINTS = 41  # and at quantiles of each sentence's largest, which spread the share of sentences that exit at all


def dynamic_exit_table(
    test: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray], documents: np.ndarray, costs: Costs
) -> pd.DataFrame:
    """The trade-off of each method, over thresholds.

    Args:
        test: method -> [2, K, N], whether the exit's token is the full model's, and the exit's largest probability.
        held_out: the same methods on the validation slice of the training sentences.
        documents: [N], the document of each test sentence.
        costs: of the model.

    Returns:
        method; threshold (a token exits where confidence reaches it; infinite: never); chosen, true for one threshold
        of each method, the lowest with an agreement of AGREEMENT on the validation slice; held_out_agreement, the
        agreement there; and on the test sentences blocks, mean share of the K blocks that are run; agreement with the
        full model, with its 95 % bootstrap interval; checks, mean number of levels that are checked; plain_cost and
        fused_cost, multiply-adds including checks as a share of the full model's, by the whole output head, or as the
        check is cheapest: fused, with a shortlist, or nothing for the token table (plain_cost is null for these two,
        and fused_cost for identity, which has no low rank to fuse).
    """
    parts, agreements = [], []
    for method in test:
        chosen = chosen_threshold(*held_out[method])
        thresholds = np.unique([*candidates(test[method][1]), chosen])
        exits = [_exit(*test[method], threshold) for threshold in thresholds]
        agreement, levels = (np.stack(values, 1) for values in zip(*exits, strict=True))
        never = (levels == costs.n_blocks).mean(0)
        checks = np.minimum(levels + 1, costs.levels(method)).mean(0)
        # Tokens that never exit still pay for the output head at the end.
        work = levels.mean(0) * costs.block + never * costs.plain_check
        plain = np.nan if method in ("token_table", "joint_shortlist") else costs.plain_check
        cheapest = np.nan if method == "identity" else costs.check(method)
        columns = {
            "method": method,
            "threshold": thresholds,
            "chosen": thresholds == chosen,
            "held_out_agreement": [_exit(*held_out[method], threshold)[0].mean() for threshold in thresholds],
            "blocks": levels.mean(0) / costs.n_blocks,
            "agreement": agreement.mean(0),
            "checks": checks,
            "plain_cost": (work + checks * plain) / costs.full,
            "fused_cost": (work + checks * cheapest) / costs.full,
        }
        parts.append(pd.DataFrame(columns))
        agreements.append(agreement)
    table = pd.concat(parts, ignore_index=True)
    # All methods together, so that resamples are drawn once.
    low, high = interval(np.concatenate(agreements, 1), documents)
    after = table.columns.get_loc("agreement") + 1
    table.insert(after, "agreement_low", low)
    table.insert(after + 1, "agreement_high", high)
    return table


def chosen_threshold(correct: np.ndarray, confidence: np.ndarray) -> float:
    """The lowest threshold, and so that with the fewest blocks, with an agreement of AGREEMENT; both [K, N]."""
    return next(one for one in candidates(confidence) if _exit(correct, confidence, one)[0].mean() >= AGREEMENT)


def candidates(confidence: np.ndarray) -> np.ndarray:
    """Thresholds for confidences [K, N], in ascending order, the last one infinite.

    The others are confidences that occur: between two of them, rounding would decide what exits.
    """
    quantiles = np.quantile(confidence, np.linspace(0, 1, POINTS), method="higher")
    largest = np.quantile(confidence.max(0), np.linspace(0, 1, TOP_POINTS), method="higher")
    return np.append(np.unique(np.concatenate([quantiles, largest])), np.inf)


def _exit(correct: np.ndarray, confidence: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Agreement and number of blocks run of each sentence, at one threshold."""
    passed = confidence >= threshold
    level = np.where(passed.any(0), passed.argmax(0), len(passed))
    full = np.ones((1, correct.shape[1]))  # what never exits agrees with the full model
    return np.concatenate([correct, full])[level, np.arange(correct.shape[1])], level
