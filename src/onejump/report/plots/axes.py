"""What the plots have in common: labels, axes of levels, and how a method is drawn."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from onejump.report.style import METHOD_STYLES

LEVEL_LABEL, JUMP_LABEL = "exit level k", "jump m"
METRIC_LABELS = {"precision": "precision against the full model", "surprisal": "surprisal (nats)"}


def set_level_axis(axis: Axis, count: int) -> None:
    """Whole, uncrowded ticks for levels or jumps 0..count-1."""
    axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    if axis.axis_name == "x":
        axis.axes.set_xlim(-0.5, count - 0.5)


def plot_method(axes: Axes, method: str, x: pd.Series, y: pd.Series, index: int = 0, suffix: str = "") -> None:
    """Draw a method's line; by its index, markers of close lines start at different points and hide none."""
    look = METHOD_STYLES[method]
    step = max(1, len(x) // 15)  # some fifteen markers
    line = {"color": look.colour, "linestyle": look.line, "linewidth": look.width, "label": look.name + suffix}
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.4}
    axes.plot(x, y, marker=look.marker, markevery=(index % step, step), **line, **edge)


def plot_with_interval(axes: Axes, method: str, table: pd.DataFrame, x: str, y: str, index: int = 0) -> None:
    """Draw the line of a method's column `y`, and the band of its confidence intervals."""
    plot_method(axes, method, table[x], table[y], index)
    look = {"color": METHOD_STYLES[method].colour, "alpha": 0.2, "linewidth": 0}
    axes.fill_between(table[x], table[f"{y}_low"], table[f"{y}_high"], **look)


def metric_panels(extra: int = 0) -> tuple[Figure, dict[str, Axes]]:
    """A precision and a surprisal panel, side by side, and perhaps an extra one."""
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    panels = dict(zip([*METRIC_LABELS, "extra"], figure.subplots(1, 2 + extra), strict=False))
    for metric, better in zip(METRIC_LABELS, ("higher", "lower"), strict=True):
        better = f"{metric.capitalize()} ({better} is better)"
        panels[metric].set(xlabel=LEVEL_LABEL, ylabel=METRIC_LABELS[metric], title=better)
    return figure, panels


def cut_surprisal(axes: Axes, table: pd.DataFrame, methods: Sequence[str] = ("identity",)) -> None:
    """End the surprisal axis above the rest if some methods would flatten it, and note how far these go."""
    highest = table[table["method"].isin(methods)].groupby("method", sort=False)["surprisal"].max()
    rest = table.loc[~table["method"].isin(methods), "surprisal_high"].max()
    if highest.max() > 1.5 * rest:
        axes.set_ylim(bottom=0, top=1.2 * rest)
        clear = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}  # of the line that it is about
        for i, (method, value) in enumerate(highest[highest > 1.2 * rest].items()):
            look, where = METHOD_STYLES[method], {"xy": (0.02, 0.97 - 0.08 * i), "xycoords": "axes fraction"}
            note = f"{look.name}: up to {value:.1f} ↑"
            axes.annotate(note, **where, va="top", color=look.colour, bbox=clear)


def with_legend(figure: Figure, axes: Axes) -> Figure:
    """The figure, with the legend of a panel above all of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=5, handlelength=2.2)
    sns.despine(fig=figure)
    return figure
