"""Which jump is selected, and how every jump does at every level: figures `scores` and `transfer`."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from onejump.analysis.columns import TEMPERATURE
from onejump.report.plots.axes import JUMP_LABEL, LEVEL_LABEL, METRIC_LABELS, set_level_axis
from onejump.report.style import INK, METHOD_STYLES
from onejump.report.tables import BranchTables

GRID_ID = "part-grid"  # by this id the report finds the area of the K x K cells in the SVG of `transfer`


def plot_scores(tables: BranchTables) -> Figure:
    """D_m of every jump: its softmax, as in the paper's Figure 3, with the bootstrap's winners, and D_m itself."""
    table, chosen = tables.selected()
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])

    colours = _jump_colours(table.index, chosen)
    top.bar(table.index, table["softmax"], width=_bar_width(table), color=colours)
    won = table.loc[table["bootstrap_share"] > 0, "bootstrap_share"]
    look = {"markersize": 3.5, "markerfacecolor": "white", "markeredgecolor": INK, "markeredgewidth": 0.8}
    votes = top.plot(won.index, won, "D", label="share of bootstrap draws won", **look)
    top.set(ylabel="share", ylim=(0, 1.12), yticks=np.linspace(0, 1, 5))
    best = table.loc[chosen]
    # The note stands on the side with more room, away from the tall bar that it is about.
    side, align = (0.99, "right") if chosen < len(table) / 2 else (0.01, "left")
    softmax, share = f"softmax {best['softmax']:.2f}", f"best in {best['bootstrap_share']:.0%} of bootstrap draws"
    note, colour = f"OJFA: jump {chosen}\n{softmax}\n{share}", METHOD_STYLES["ojfa"].colour
    top.text(side, 0.97, note, transform=top.transAxes, ha=align, va="top", color=colour, linespacing=1.35)
    bars = Patch(color=METHOD_STYLES["arbitrary"].colour, label=f"softmax of $D_m$ (temperature {TEMPERATURE:g})")
    figure.legend(handles=[bars, *votes], loc="outside upper left", ncols=2)

    bottom.plot(table.index, table["score"], color="#999999", linewidth=1, zorder=1)
    bottom.scatter(table.index, table["score"], c=colours, s=14, zorder=2)
    bottom.set(ylabel="$D_m$", xlabel=JUMP_LABEL)
    set_level_axis(bottom.xaxis, len(table))
    sns.despine(fig=figure)
    return figure


def plot_transfer(tables: BranchTables) -> Figure:
    """Every jump at every exit level, beside each jump's D_m."""
    grid, (scores, chosen) = tables.grid(), tables.selected()
    size = len(grid)
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    heat, side = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])

    # As K x K vector squares, the grid would be large and show hairlines; it goes into the SVG as one picture.
    edges = np.arange(size + 1) - 0.5
    top = grid.max(axis=None) or 1  # a grid of zeros is dark, not in the middle of a scale around zero
    mesh = heat.pcolormesh(edges, edges, grid.to_numpy(), cmap="mako", vmin=0, vmax=top, rasterized=True)
    heat.patch.set_gid(GRID_ID)
    colour = METHOD_STYLES["ojfa"].colour
    heat.add_patch(Rectangle((-0.5, chosen - 0.5), size, 1, fill=False, edgecolor=colour, linewidth=1.6, clip_on=False))
    heat.set(xlabel=LEVEL_LABEL, ylabel=JUMP_LABEL, ylim=(size - 0.5, -0.5))
    set_level_axis(heat.xaxis, size)
    set_level_axis(heat.yaxis, size)
    bar = figure.colorbar(mesh, ax=heat, location="top", aspect=45, pad=0.02)
    bar.set_label(METRIC_LABELS["precision"])
    bar.outline.set_visible(False)

    side.barh(scores.index, scores["score"], height=_bar_width(scores), color=_jump_colours(scores.index, chosen))
    side.set(xlabel="$D_m$")
    side.xaxis.set_major_locator(MaxNLocator(nbins=3))
    side.tick_params(axis="y", left=False, labelleft=False)
    place = side.get_yaxis_transform()
    side.text(1.04, chosen, f"OJFA\nm = {chosen}", transform=place, va="center", color=colour, fontweight="bold")
    sns.despine(ax=side, left=True)
    sns.despine(ax=heat, left=True, bottom=True)
    return figure


def _jump_colours(jumps: pd.Index, chosen: int) -> list[str]:
    return [METHOD_STYLES["ojfa" if jump == chosen else "arbitrary"].colour for jump in jumps]


def _bar_width(jumps: pd.DataFrame) -> float:
    """Bars have gaps between them, unless so many gaps would shimmer."""
    return 0.8 if len(jumps) <= 60 else 1.0
