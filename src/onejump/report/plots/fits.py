"""How well the jumps are fitted: figure `fits`."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from onejump.report.plots.axes import JUMP_LABEL, set_level_axis
from onejump.report.style import INK, METHOD_STYLES
from onejump.report.tables import BranchTables

CURVE_POINTS = 80  # drawn of one jump's fit; a column of the page cannot show more


def plot_fits(tables: BranchTables) -> Figure:
    """How well each jump is fitted; beside it the progress of iterative fits, or the ridge of others.

    Fits by squared error by their gap to the exact optimum, and fits by divergence by that on the validation slice.
    """
    table = tables.table("jumps", "jump", "gap", "ridge")
    curves = tables.table("curves", "jump", "step", "gap", "validation_kl", may_be_empty=True)
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    kept = tables.kept_divergences()
    left.set(title="Fitted jumps")
    if not kept.empty:
        _per_jump(left, table.assign(kept=table["jump"].map(kept)), "kept", "-")
        _curves(right, curves, "validation_kl")
        left.set(ylabel="validation KL (nats)", ylim=(0, None))
        right.set(title="Progress of the KL fits", xlabel="step", ylabel="validation KL (nats)", ylim=(0, None))
    else:
        _per_jump(left, table, "gap", "-")
        _log_axis(left, table["gap"])
        left.set(ylabel="gap to the exact optimum")
        if curves.empty:
            _per_jump(right, table, "ridge", "none")
            _log_axis(right, table["ridge"])
            right.set(title="Chosen ridge", ylabel="ridge λ")
        else:
            _curves(right, curves, "gap")
            _log_axis(right, curves["gap"])
            right.set(title="Progress of the Adam fits", xlabel="epoch", ylabel="gap to the exact optimum")
    handles = (handle for axes in (left, right) for handle in axes.get_legend_handles_labels()[0])
    entries = {handle.get_label(): handle for handle in handles}
    figure.legend(handles=list(entries.values()), loc="outside upper center", ncols=3)
    sns.despine(fig=figure)
    return figure


def _per_jump(axes: Axes, table: pd.DataFrame, column: str, line: str) -> None:
    """One value per jump, by level, and the joint jump's as a line across."""
    single = table[table["jump"] != "joint"].astype({"jump": int}).sort_values("jump")
    look = {"color": INK, "marker": ".", "linestyle": line, "linewidth": 0.8, "label": "one jump per level"}
    axes.plot(single["jump"], single[column], **look)
    look = METHOD_STYLES["joint"]
    for value in table.loc[table["jump"] == "joint", column]:
        axes.axhline(value, color=look.colour, linestyle="--", linewidth=1.4, zorder=1, label=look.name)
    axes.set(xlabel=JUMP_LABEL)
    set_level_axis(axes.xaxis, len(single))


def _curves(axes: Axes, curves: pd.DataFrame, values: str) -> None:
    """The progress of iterative fits: a thin line per level, their median, and the joint jump."""
    table = curves.pivot(index="step", columns="jump", values=values).sort_index()
    joint = table.pop("joint") if "joint" in table else None
    table.columns = table.columns.astype(int)
    table = table.sort_index(axis=1)
    lines = [table[jump].dropna().reset_index().to_numpy() for jump in table]
    lines = [line[np.unique(np.linspace(0, len(line) - 1, CURVE_POINTS).astype(int))] for line in lines]
    thin = LineCollection(lines, array=table.columns.to_numpy(), cmap="crest", linewidths=0.7)
    thin.set_rasterized(table.size > 10_000)  # or the curves of deep models would be most of the report
    axes.add_collection(thin)
    if joint is not None:
        look = METHOD_STYLES["joint"]
        axes.plot(joint.dropna(), color=look.colour, linestyle="--", linewidth=1.4, label=look.name)
    # A fit that has stopped keeps its last value, or the median would end as that of the slowest fits only.
    axes.plot(table.ffill().median(axis=1), color=INK, linewidth=2.2, label="median over levels")
    axes.autoscale()
    bar = axes.figure.colorbar(thin, ax=axes, aspect=30, pad=0.02)
    bar.set_label(JUMP_LABEL)
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    bar.outline.set_visible(False)


def _log_axis(axes: Axes, values: pd.Series) -> None:
    """A logarithmic y axis, linear around zero if some values are zero or negligible."""
    positive = values[values > 0]
    if positive.empty:
        return
    floor = max(positive.min(), positive.max() * 1e-8)
    if values.min() >= floor:
        # Whole decades, so that powers of ten are labels enough.
        axes.set_yscale("log")
        axes.set_ylim(10 ** np.floor(np.log10(values.min() / 1.3)), 10 ** np.ceil(np.log10(values.max() * 1.3)))
    else:
        axes.set_yscale("symlog", linthresh=floor)
