"""Precision and surprisal by exit level or by rank: figures `methods`, `single_jumps` and `ranks`."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from onejump.analysis.columns import METRIC_COLUMNS
from onejump.report.plots.axes import LEVEL_LABEL, METRIC_LABELS, plot_method, plot_with_interval, set_level_axis
from onejump.report.style import METHOD_STYLES
from onejump.report.tables import BranchTables


def plot_methods(tables: BranchTables) -> Figure:
    """OJFA, identity and N-NJTC, as in the paper's Figure 4, with the joint jump, between the floor and JTC."""
    table = tables.table("levels", "method", "level", *METRIC_COLUMNS)
    figure, panels = _metric_panels()
    for metric, axes in panels.items():
        for index, method in enumerate(("constant", "token_table", "jtc", "joint")):
            part = table[table["method"] == method].sort_values("level")
            plot_method(axes, method, part["level"], part[metric], index)
        for index, method in enumerate(("identity", "n_njtc", "ojfa"), 1):
            part = table[table["method"] == method].sort_values("level")
            plot_with_interval(axes, method, part, "level", metric, index)
        set_level_axis(axes.xaxis, table["level"].nunique())
    _cut_identity(panels["surprisal"], table)
    return _with_legend(figure, panels["precision"])


def plot_single_jumps(tables: BranchTables) -> Figure:
    """OJFA and the joint jump against all other single jumps, as in the paper's Figure 2."""
    columns = ["ojfa", "joint", *(f"arbitrary_{name}" for name in ("mean", "q05", "q25", "q75", "q95"))]
    table = tables.table("single_jumps", "metric", "level", *columns)
    figure, panels = _metric_panels()
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
    return _with_legend(figure, panels["precision"])


def plot_ranks(tables: BranchTables) -> Figure:
    """Precision and surprisal of exact fits by rank, with the variant's own rank marked."""
    table = tables.table("ranks", "method", "rank", *METRIC_COLUMNS)
    own = int(tables.table("jumps", "rank")["rank"].iloc[0])
    figure, panels = _metric_panels()
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
    return _with_legend(figure, panels["precision"])


def _is_clear_of(rank: int, ends: set[int]) -> bool:
    """Whether a tick at `rank` lies below the last of the ends and not close to any, on a logarithmic axis."""
    return rank < max(ends) and all(abs(np.log(rank / end)) > 0.35 for end in ends)


def _metric_panels() -> tuple[Figure, dict[str, Axes]]:
    """A precision and a surprisal panel, side by side."""
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    panels = dict(zip(METRIC_LABELS, figure.subplots(1, 2), strict=True))
    for (metric, axes), better in zip(panels.items(), ("higher", "lower"), strict=True):
        axes.set(xlabel=LEVEL_LABEL, ylabel=METRIC_LABELS[metric], title=f"{metric.capitalize()} ({better} is better)")
    return figure, panels


def _cut_identity(axes: Axes, table: pd.DataFrame) -> None:
    """End the surprisal axis above the jumps if identity's would flatten them, and note how far identity goes."""
    identity = table["method"] == "identity"
    highest, jumps = table.loc[identity, "surprisal"].max(), table.loc[~identity, "surprisal_high"].max()
    if highest > 1.5 * jumps:
        axes.set_ylim(bottom=0, top=1.2 * jumps)
        note, colour = f"Identity: up to {highest:.1f} ↑", METHOD_STYLES["identity"].colour
        clear = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}  # of the line that it is about
        axes.text(0.02, 0.97, note, transform=axes.transAxes, va="top", color=colour, bbox=clear)


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=5, handlelength=2.2)
    sns.despine(fig=figure)
    return figure
