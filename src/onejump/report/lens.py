"""The page of a trajectory: what a model would predict at each level of a text, token by token, to read and compare."""

import json
from collections.abc import Mapping

import pandas as pd
from markupsafe import Markup

from onejump.report.rendering import render, verbatim
from onejump.sharing.card import WORDS

METHODS = {"jump": "Jump", "beside": "Jump beside it", "identity": "Identity (logit lens)"}
MEASURES = {"probability": "Probability", "kl": "KL to the final prediction", "entropy": "Entropy"}
LARGEST = {"probability": 1.0, "kl": 10.0, "entropy": 10.0}  # where the shading ends; nats
SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def method_names(jump: Mapping, beside: Mapping | None = None) -> dict[str, str]:
    """Method of a trajectory -> what it is called, in the order in which they are shown.

    Args:
        jump: the config of the published jump.
        beside: that of a second one, if the trajectory has it.
    """
    names = {"jump": _description(jump)}
    if beside is not None:
        names["beside"] = _description(beside)
        if names["beside"] == names["jump"]:
            names = {"jump": f"{names['jump']} (the first)", "beside": f"{names['beside']} (the second)"}
    return names | {"identity": METHODS["identity"]}


def _description(config: Mapping) -> str:
    words = WORDS[config["jump"]]
    return f"{words[0].upper()}{words[1:]}, rank {config['rank']}{', with gates' if config['gated'] else ''}"


def render_lens(table: pd.DataFrame, names: Mapping[str, str], model: str) -> str:
    """The page, as one self-contained HTML file.

    Args:
        table: of `PublishedJump.trajectory`.
        names: of its methods, in the order in which they are shown.
        model: the name of the base model.
    """
    final = table[table["method"] == "model"].sort_values("position")
    tokens, K = final["token"].map(visible).tolist(), int(final["level"].iloc[0])
    methods, readings = {}, {"model": [_reading(row) for row in final.itertuples()]}
    for method in names:
        rows = table[table["method"] == method].sort_values(["level", "position"])
        by_level = {level: list(part.itertuples()) for level, part in rows.groupby("level")}
        readings[method] = [[_reading(row) for row in by_level[level]] for level in range(K)]
        methods[method] = [
            (level, [_cell(row, last) for row, last in zip(by_level[level], final.itertuples(), strict=True)])
            for level in reversed(range(K))
        ]
    data = json.dumps({"tokens": tokens, "levels": K, "readings": readings}, ensure_ascii=False)
    return render(
        "lens.html.j2",
        model=model,
        tokens=tokens,
        levels=K,
        names=names,
        measures=MEASURES,
        methods=methods,
        final=[_cell(row, row) for row in final.itertuples()],
        largest=LARGEST,
        data=Markup(data.replace("<", "\\u003c")),
        style=verbatim("style.css"),
        lens_style=verbatim("lens.css"),
        script=verbatim("lens.js"),
    )


def visible(token: str) -> str:
    """A token with its spaces to be seen, and a letter that cannot be seen by its code point."""
    seen = (SIGNS.get(c) or (c if c.isprintable() else f"U+{ord(c):04X}") for c in token)
    return "".join(seen) or "∅"


def _reading(row) -> list:
    """What is told of a cell: token, probability, KL, entropy."""
    return [visible(row.predicted), *(round(number, 4) for number in (row.probability, row.kl, row.entropy))]


def _cell(row, final) -> dict:
    """A cell: its token, whether that is the final one, and by how much each measure shades it, 0 to 1."""
    shades = {name: min(max(getattr(row, name) / most, 0.0), 1.0) for name, most in LARGEST.items()}
    style = ";".join(f"--{name}:{shade:.2f}" for name, shade in shades.items())
    return {"token": visible(row.predicted), "same": row.predicted_id == final.predicted_id, "style": style}
