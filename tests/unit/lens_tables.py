"""A made-up trajectory of awkward tokens, for the tests of its page and its figure."""

import numpy as np
import pandas as pd

from onejump.report.lens import method_names

TOKENS = [
    " the",
    "</script>",
    "<b>",
    "&amp;",
    '"',
    "\n",
    "",
    "é",
    "中",
    "🙂",
    " of",
    "extraordinarily-long-token",
    "$x_1$",
    "\x00",
    "\u200b",
    *"abcdefgh",
]
K = 30
NAMES = method_names({"jump": "joint", "rank": 5, "gated": True}, {"jump": "all", "rank": 5, "gated": False})


def lens_table(n_blocks: int = K) -> pd.DataFrame:
    """As `PublishedJump.trajectory` returns it for two jumps."""
    rng = np.random.default_rng(0)
    rows = []
    for position, token in enumerate(TOKENS):
        for level in range(n_blocks + 1):
            for method in NAMES if level < n_blocks else ("model",):
                predicted = int(rng.integers(len(TOKENS)))
                numbers = [rng.random(), 0.0 if level == n_blocks else 15 * rng.random(), 10 * rng.random()]
                rows.append([position, token, level, method, TOKENS[predicted], predicted, *numbers])
    columns = ["position", "token", "level", "method", "predicted", "predicted_id", "probability", "kl", "entropy"]
    return pd.DataFrame(rows, columns=columns)
