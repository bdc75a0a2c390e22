"""A made-up trajectory of awkward tokens, for the tests of its page."""

import numpy as np
import pandas as pd

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
    *"abcdefgh",
]
K = 30
CONFIG = {"jump": "joint", "rank": 5, "gated": True, "base_model": {"model": "SmolLM2-135M", "vocabulary": 49152}}


def lens_table() -> pd.DataFrame:
    """As `PublishedJump.trajectory` returns it."""
    rng = np.random.default_rng(0)
    rows = []
    for position, token in enumerate(TOKENS):
        for level in range(K + 1):
            for method in ("jump", "identity") if level < K else ("model",):
                predicted = int(rng.integers(len(TOKENS)))
                numbers = [rng.random(), 0.0 if level == K else 15 * rng.random(), 10 * rng.random()]
                rows.append([position, token, level, method, TOKENS[predicted], predicted, *numbers])
    columns = ["position", "token", "level", "method", "predicted", "predicted_id", "probability", "kl", "entropy"]
    return pd.DataFrame(rows, columns=columns)
