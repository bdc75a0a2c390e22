"""A trajectory as a figure for papers: what a model would predict at each level of a text, token by token."""

import warnings
from collections.abc import Mapping
from unicodedata import east_asian_width

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from onejump.files.atomic import OnejumpError
from onejump.report.lens import LARGEST, MEASURES, METHODS, visible
from onejump.report.style import INK, MATPLOTLIB_STYLE

# Inches. Sixteen tokens are as wide as a page's text, and two methods at 30 levels as high.
CELL_WIDTH, CELL_HEIGHT = 0.42, 0.1
LEFT, RIGHT, HEADING, BETWEEN, FOOT = 0.45, 0.03, 0.36, 0.04, 0.45
NARROWEST = 4.4  # for a heading and the foot beside each other
SIZE = 5.5  # points; a letter of DejaVu Sans Mono is 0.602 as wide
LETTER = 0.602 * SIZE / 72 / CELL_WIDTH  # of a cell's width
LETTERS = int(0.96 / LETTER)
TOKEN = {"family": "monospace", "size": SIZE, "parse_math": False, "ha": "center", "va": "center"}
SHADES = LinearSegmentedColormap.from_list("lens", ["#ffffff", "#4c9cc9"])  # as on the page: ink is legible on all
STYLE = {**MATPLOTLIB_STYLE, "font.monospace": ["DejaVu Sans Mono"], "svg.fonttype": "none", "savefig.dpi": 300}
COLUMNS = ["position", "token", "level", "method", "predicted", "predicted_id", *MEASURES]


class LensFigure(Figure):
    """A figure that is saved in its own style, whatever a user's matplotlibrc says: text in SVG is text."""

    def savefig(self, *args, **options) -> None:
        """As Matplotlib's; PNG has 300 dots an inch."""
        with style.context(["default", STYLE]), warnings.catch_warnings():
            # One for each letter that Matplotlib has no font for; readers of SVG may have one.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            super().savefig(*args, **options)


def plot_trajectory(
    table: pd.DataFrame, measure: str = "probability", names: Mapping[str, str] | None = None
) -> LensFigure:
    """Draw a trajectory: a panel for each method, with a column for each token and a row for each level.

    A cell has the most probable token, and is shaded by a measure. The top row is the full model's prediction; what
    agrees with it is underlined. Cells have one size, so that 16 tokens are as wide as a page's text: of a long text or
    a deep model, give some rows of the table.

    Args:
        table: of `PublishedJump.trajectory`, or some of its rows.
        measure: probability, kl or entropy.
        names: method -> heading of its panel, for the methods to draw, in order; by default all that the table has.

    Returns:
        A figure of Matplotlib, for `savefig`.

    Raises:
        OnejumpError: the table is no trajectory or has no row of a method, or there is no such measure.
    """
    if measure not in MEASURES:
        raise OnejumpError(f"no measure is called {measure!r}, only {', '.join(MEASURES)}")
    if missing := [name for name in COLUMNS if name not in table]:
        raise OnejumpError(f"the table has no column {', '.join(missing)}; give one of jump.trajectory")
    found = set(table["method"])
    names = names or {method: name for method, name in METHODS.items() if method in found}
    if missing := [method for method in names or METHODS if method not in found]:
        raise OnejumpError(f"the table has no row of {', '.join(missing)}; give some of jump.trajectory")
    with style.context(["default", STYLE]):
        return _figure(table, measure, names)


def _figure(table: pd.DataFrame, measure: str, names: Mapping[str, str]) -> LensFigure:
    columns = {position: x for x, position in enumerate(sorted(table["position"].unique()))}
    rows = {level: y for y, level in enumerate(sorted(table["level"].unique()))}
    panel = HEADING + CELL_HEIGHT * len(rows)
    width = max(NARROWEST, LEFT + CELL_WIDTH * len(columns) + RIGHT)
    height = len(names) * panel + (len(names) - 1) * BETWEEN + FOOT
    figure = LensFigure(figsize=(width, height))

    def axes_at(left: float, bottom: float, wide: float, high: float) -> Axes:
        """Axes by their inches from the corner at the lower left."""
        return figure.add_axes((left / width, bottom / height, wide / width, high / height))

    norm = Normalize(0, LARGEST[measure])
    for number, (method, name) in enumerate(names.items()):
        bottom = height - (number + 1) * panel - number * BETWEEN
        axes = axes_at(LEFT, bottom, CELL_WIDTH * len(columns), CELL_HEIGHT * len(rows))
        _draw(axes, table[table["method"].isin((method, "model"))], measure, norm, columns, rows)
        axes.text(0, len(rows) + 1.6, name, size=8.5, weight="bold", parse_math=False)
    note = "Underlined: the full model’s prediction, which is the top row"
    figure.text(LEFT / width, 0.25 / height, note, size=7, va="center")
    key = axes_at(width - RIGHT - 1.4, 0.25, 1.3, 0.07)
    unit, beyond = ("", "neither") if measure == "probability" else (" (nats)", "max")
    bar = figure.colorbar(ScalarMappable(norm, SHADES), key, orientation="horizontal", extend=beyond)
    bar.solids.set(rasterized=False, edgecolor="face")  # no picture in an SVG file, and no seams
    bar.set_ticks([0, norm.vmax / 2, norm.vmax])
    bar.ax.tick_params(labelsize=6.5, length=2, pad=1)
    bar.set_label(MEASURES[measure] + unit, size=7, labelpad=1)
    return figure


def _draw(
    axes: Axes, part: pd.DataFrame, measure: str, norm: Normalize, columns: dict[int, int], rows: dict[int, int]
) -> None:
    """Draw the cells of a method, and the tokens of the text above them."""
    shades = part.pivot(index="level", columns="position", values=measure).reindex(index=rows, columns=columns)
    axes.pcolormesh(shades.to_numpy(), cmap=SHADES, norm=norm, edgecolor="white", linewidth=0.5)
    final = part[part["method"] == "model"].set_index("position")["predicted_id"]
    agree = part["predicted_id"] == part["position"].map(final)
    lines = []
    for row, underlined in zip(part.itertuples(), agree, strict=True):
        x, y, text = columns[row.position] + 0.5, rows[row.level] + 0.5, _short(row.predicted)
        axes.text(x, y, text, weight="bold" if row.method == "model" else "normal", **TOKEN)
        if underlined:
            half = _width(text) * LETTER / 2
            lines.append((y - 0.38, x - half, x + half))
    if lines:
        axes.hlines(*zip(*lines, strict=True), color=INK, linewidth=0.4)
    for position, token in part.drop_duplicates("position")[["position", "token"]].itertuples(index=False):
        axes.text(columns[position] + 0.5, len(rows) + 0.7, _short(token), weight="bold", **TOKEN)
    axes.text(-0.08, len(rows) + 0.7, "token", size=SIZE, ha="right", va="center")
    axes.set_yticks([y + 0.5 for y in rows.values()], rows, size=SIZE)
    axes.set_ylabel("level", size=7)
    axes.tick_params(length=0, pad=2)
    axes.set(xticks=[], xlim=(0, len(columns)), ylim=(0, len(rows)))
    axes.spines[:].set_visible(False)


def _short(token: str) -> str:
    """A token, or the beginning of it that a cell has room for."""
    text = visible(token)
    if _width(text) <= LETTERS:
        return text
    while _width(text) >= LETTERS:
        text = text[:-1]
    return f"{text}…"


def _width(text: str) -> int:
    """How many letters wide a text is."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)
