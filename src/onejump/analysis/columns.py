"""Columns of the tables of the analysis, kept apart from their computation, which needs PyTorch."""

import math

# The metrics with confidence intervals: their column in a table -> their name in an evaluation.
WITH_INTERVALS = {"precision": "correct", "surprisal": "surprisal"}
METRIC_COLUMNS = tuple(f"{metric}{end}" for metric in WITH_INTERVALS for end in ("", "_low", "_high"))
RANK_COLUMNS = ("method", "rank", "jump", "n", *METRIC_COLUMNS)  # of the table over ranks

# Of the tables of claims; `one_jump` has `against` besides.
STATEMENT_COLUMNS = ("positions", "claim", "statistic", "metric", "level", "estimate", "low", "high", "rule", "decides")
STATEMENT_COLUMNS += ("p", "p_holm", "verdict", "claim_verdict")

# Of the table of checks with a shortlist.
SHORTLIST_COLUMNS = ("width", "tokens", "check", "agreement", "worst_agreement", "chosen", "test_agreement")

# Of the table of lenses.
LENS_COLUMNS = ("lens", "level", "ridge", "best_step", "validation_kl", "converged")

# Groups of test sentences by the position of the chosen token -> the first and the last one in it. Position 0 is a case
# of its own: a constant input where the tokenizer puts a BOS there, and massive activations in many models.
POSITIONS = {"0": (0, 0), "1-4": (1, 4), "5+": (5, math.inf), "1+": (1, math.inf)}
CLAIM_POSITIONS = ("all", "1+")  # sentences on which claims are assessed

# Scores of jumps on training sentences, and whether the largest (1) or the smallest (-1) is the best.
SCORES = {"d_m": 1, "cosine": 1, "squared_cosine": 1, "mse": -1}

TEMPERATURE = 5e-4  # of the softmax over D_m, as in the paper's Figure 3
