"""What the plots have in common: labels, axes of levels, and how a method is drawn."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
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
