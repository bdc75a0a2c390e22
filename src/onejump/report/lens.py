"""The page of a trajectory: what a model would predict at each level of a text, token by token, to read and compare."""

import json
import math
from collections.abc import Mapping

import pandas as pd
from markupsafe import Markup

from onejump.report.rendering import render, verbatim

METHODS = {"jump": "Jump", "identity": "Identity (logit lens)"}
MEASURES = {"probability": "Probability", "kl": "KL to the final prediction", "entropy": "Entropy"}
LARGEST_KL = 10.0  # nats, where the shading ends
SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def render_lens(table: pd.DataFrame, config: Mapping) -> str:
    """The page, as one self-contained HTML file.

    Args:
        table: of `PublishedJump.trajectory`.
        config: of the published jump.
    """
    final = table[table["method"] == "model"].sort_values("position")
    tokens, K = final["token"].map(_visible).tolist(), int(final["level"].iloc[0])
    largest = {"probability": 1.0, "kl": LARGEST_KL, "entropy": math.log(config["base_model"]["vocabulary"])}
    methods, readings = {}, {"model": [_reading(row) for row in final.itertuples()]}
    for method in METHODS:
        rows = table[table["method"] == method].sort_values(["level", "position"])
        by_level = {level: list(part.itertuples()) for level, part in rows.groupby("level")}
        readings[method] = [[_reading(row) for row in by_level[level]] for level in range(K)]
        methods[method] = [
            (level, [_cell(row, last, largest) for row, last in zip(by_level[level], final.itertuples(), strict=True)])
            for level in reversed(range(K))
        ]
    data = json.dumps({"tokens": tokens, "levels": K, "readings": readings}, ensure_ascii=False)
    return render(
        "lens.html.j2",
        config=config,
        tokens=tokens,
        levels=K,
        names=METHODS,
        measures=MEASURES,
        methods=methods,
        final=[_cell(row, row, largest) for row in final.itertuples()],
        largest_kl=LARGEST_KL,
        data=Markup(data.replace("<", "\\u003c")),
        style=verbatim("style.css"),
        lens_style=verbatim("lens.css"),
        script=verbatim("lens.js"),
    )


def _visible(token: str) -> str:
    """A token with its spaces to be seen."""
    return "".join(SIGNS.get(letter, letter) for letter in token) or "∅"


def _reading(row) -> list:
    """What is told of a cell: token, probability, KL, entropy."""
    return [_visible(row.predicted), *(round(number, 4) for number in (row.probability, row.kl, row.entropy))]


def _cell(row, final, largest: dict[str, float]) -> dict:
    """A cell: its token, whether that is the final one, and by how much each measure shades it, 0 to 1."""
    shades = {name: min(max(getattr(row, name) / most, 0.0), 1.0) for name, most in largest.items()}
    style = ";".join(f"--{name}:{shade:.2f}" for name, shade in shades.items())
    return {"token": _visible(row.predicted), "same": row.predicted_id == final.predicted_id, "style": style}
