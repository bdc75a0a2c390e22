"""Columns of the tables of the analysis, apart from their computation, which needs PyTorch."""

# Scores of jumps on training sentences, and whether the largest or the smallest is the best.
SCORES = {"d_m": 1, "cosine": 1, "squared_cosine": 1, "mse": -1}

# Of a curve over ranks.
RANK_COLUMNS = (
    *("method", "rank", "jump", "n"),
    *(f"{metric}{end}" for metric in ("precision", "surprisal") for end in ("", "_low", "_high")),
)
