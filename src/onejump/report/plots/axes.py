"""What the plots have in common: labels, axes of levels, and how a method is drawn."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator

from onejump.report.style import METHOD_STYLES

LEVEL_LABEL, JUMP_LABEL = "exit level k", "jump m"
METRIC_LABELS = {"precision": "precision against the full model", "surprisal": "surprisal (nats)"}

# The columns of both metrics with their intervals, as several tables have them.
METRIC_COLUMNS = [f"{metric}{end}" for metric in METRIC_LABELS for end in ("", "_low", "_high")]


def set_level_axis(axis: Axis, count: int) -> None:
    """Whole, uncrowded ticks for levels or jumps 0..count-1."""
    axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    if axis.axis_name == "x":
        axis.axes.set_xlim(-0.5, count - 0.5)


def plot_method(axes: Axes, method: str, x: pd.Series, y: pd.Series, index: int = 0, suffix: str = "") -> None:
    """Draw a method's line.

    Args:
        axes: where to.
        method: a key of METHOD_STYLES.
        x: of the points.
        y: of the points.
        index: of the line; markers of close lines then start at different points and do not hide each other.
        suffix: of the method's name in the legend.
    """
    look = METHOD_STYLES[method]
    step = max(1, len(x) // 15)  # some fifteen markers
    axes.plot(
        x,
        y,
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        linewidth=look.width,
        label=look.name + suffix,
        markevery=(index % step, step),
        markeredgecolor="white",
        markeredgewidth=0.4,
    )


def plot_interval(axes: Axes, method: str, x: pd.Series, low: pd.Series, high: pd.Series) -> None:
    """Draw the band of a method's confidence intervals."""
    axes.fill_between(x, low, high, color=METHOD_STYLES[method].colour, alpha=0.2, linewidth=0)
