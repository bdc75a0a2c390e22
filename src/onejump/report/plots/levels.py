"""Precision and surprisal by exit level or by rank: figures `methods`, `joint_jump`, `single_jumps` and `ranks`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from onejump.analysis.columns import METRIC_COLUMNS
from onejump.analysis.one_jump import SHARES
from onejump.report.plots.axes import (
    LEVEL_LABEL,
    METRIC_LABELS,
    cut_surprisal,
    metric_panels,
    plot_method,
    plot_with_interval,
    set_level_axis,
    with_legend,
)
from onejump.report.style import METHOD_STYLES
from onejump.report.tables import BranchTables

# Methods that are drawn as lines, and those that are also drawn with their intervals. Of the lenses those that G6 is
# about: more lines could not be told apart.
PLAIN, BANDED = ("constant", "token_table", *SHARES, "joint"), ("identity", "n_njtc", "ojfa")


def plot_methods(tables: BranchTables) -> Figure:
    """OJFA, identity and N-NJTC, as in the paper's Figure 4, with the joint jump, between the floor and lenses."""
    figure, panels = metric_panels()
    plot_by_level(panels, tables.table("levels", "method", "level", *METRIC_COLUMNS), PLAIN, BANDED)
    return with_legend(figure, panels["precision"])


def plot_by_level(panels: dict[str, Axes], table: pd.DataFrame, plain: Sequence[str], banded: Sequence[str]) -> None:
    """Draw methods by exit level into the metrics' panels, some of them with bands; where identity ends is noted."""
    plain = [method for method in plain if (table["method"] == method).any()]  # not every study has every lens
    for metric in METRIC_LABELS:
        axes = panels[metric]
        for index, method in enumerate(plain):
            part = table[table["method"] == method].sort_values("level")
            plot_method(axes, method, part["level"], part[metric], index)
        for index, method in enumerate(banded, 1):
            part = table[table["method"] == method].sort_values("level")
            plot_with_interval(axes, method, part, "level", metric, index)
        set_level_axis(axes.xaxis, table["level"].nunique())
    cut_surprisal(panels["surprisal"], table)


def plot_joint_jump(tables: BranchTables) -> Figure:
    """A joint jump alone between identity and the floor, and its gates if it has any."""
    gates = tables.table("gates", "level", "gate", may_be_empty=True)
    figure, panels = metric_panels(extra=0 if gates.empty else 1)
    levels = tables.table("levels", "method", "level", *METRIC_COLUMNS)
    plot_by_level(panels, levels, ("constant", "token_table"), ("identity", "joint"))
    if not gates.empty:
        axes, look = panels["extra"], METHOD_STYLES["joint"]
        if gates["level"].isna().any():
            axes.axhline(gates["gate"].item(), color=look.colour, linewidth=look.width)
        else:
            axes.plot(gates["level"], gates["gate"], color=look.colour, marker=".", linewidth=look.width)
        axes.set(title="Gates", ylabel="gate $a_k$", xlabel=LEVEL_LABEL)
        set_level_axis(axes.xaxis, levels["level"].nunique())
    return with_legend(figure, panels["precision"])


def plot_single_jumps(tables: BranchTables) -> Figure:
    """OJFA and the joint jump against all other single jumps, as in the paper's Figure 2."""
    columns = ["ojfa", "joint", *(f"arbitrary_{name}" for name in ("mean", "q05", "q25", "q75", "q95"))]
    table = tables.table("single_jumps", "metric", "level", *columns)
    figure, panels = metric_panels()
    for metric, axes in panels.items():
        part = table[table["metric"] == metric].sort_values("level")
        look = {"color": METHOD_STYLES["arbitrary"].colour, "linewidth": 0}
        for low, high, alpha, label in (("q05", "q95", 0.22, "5–95%"), ("q25", "q75", 0.38, "25–75%")):
            ends = part[f"arbitrary_{low}"], part[f"arbitrary_{high}"]
            axes.fill_between(part["level"], *ends, alpha=alpha, label=label, **look)
        plot_method(axes, "arbitrary", part["level"], part["arbitrary_mean"], suffix=": mean")
        for index, method in enumerate(("joint", "ojfa"), 1):
            plot_method(axes, method, part["level"], part[method], index)
        set_level_axis(axes.xaxis, len(part))
    return with_legend(figure, panels["precision"])


def plot_ranks(tables: BranchTables) -> Figure:
    """Precision and surprisal of exact fits by rank, with the variant's own rank marked."""
    table = tables.table("ranks", "method", "rank", *METRIC_COLUMNS)
    own = int(tables.table("jumps", "rank")["rank"].iloc[0])
    figure, panels = metric_panels()
    for metric, axes in panels.items():
        for method in ("n_njtc", "joint", "ojfa"):
            part = table[table["method"] == method].sort_values("rank")
            plot_with_interval(axes, method, part, "rank", metric)
        axes.set_xscale("log")
        ends = {1, own, int(table["rank"].max())}
        shown = sorted(ends | {rank for rank in (2, 10, 20, 50, 100, 200) if _is_clear_of(rank, ends)})
        axes.set_xticks(shown, [str(rank) for rank in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axvline(own, color="#999999", linestyle="--", linewidth=0.9, zorder=0, label=f"the variant's rank, {own}")
        axes.set(xlabel="rank r")
    return with_legend(figure, panels["precision"])


def _is_clear_of(rank: int, ends: set[int]) -> bool:
    """Whether a tick at `rank` lies below the last of the ends and not close to any, on a logarithmic axis."""
    return rank < max(ends) and all(abs(np.log(rank / end)) > 0.35 for end in ends)
