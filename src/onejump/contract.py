"""What stages hand on to stages that need no PyTorch: columns of their tables, and the selection."""

from pathlib import Path

from onejump.artifacts import OnejumpError, read_json

# Of an evaluation; `onejump.evaluation` says what they are.
METRICS = ("correct", "correct_at_5", "surprisal", "exit_surprisal", "kl", "confidence")
# Scores of jumps on training sentences, and whether the largest or the smallest is the best.
SCORES = {"d_m": 1, "cosine": 1, "squared_cosine": 1, "mse": -1}
# Of a curve over ranks.
RANK_COLUMNS = (
    *("method", "rank", "jump", "n"),
    *(f"{metric}{end}" for metric in ("precision", "surprisal") for end in ("", "_low", "_high")),
)


def read_selection(path: str | Path, n_jumps: int) -> dict:
    """A selection.json, checked.

    Raises:
        OnejumpError: the file is damaged, or selects among another number of jumps.
    """
    selection = read_json(path)
    if len(selection["scores"]) != n_jumps:
        raise OnejumpError(
            f"{path}: selects among {len(selection['scores'])} jumps, expected {n_jumps}; rerun select-jump"
        )
    return selection
