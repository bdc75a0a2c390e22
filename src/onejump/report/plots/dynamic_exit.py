"""What exiting early saves when confidence decides where: figure `dynamic_exit`."""

import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from onejump.report.plots.axes import plot_method, plot_with_interval
from onejump.report.style import INK, METHOD_STYLES
from onejump.report.tables import BranchTables

FEW = {"marker": ".", "markersize": 6, "linestyle": "none"}
CHOSEN = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.6, "linestyle": "none"}
WIDEST = 2  # times the full model's multiply-adds: the most that the axis shows


def plot_dynamic_exit(tables: BranchTables) -> Figure:
    """Agreement against the share of blocks run, and against all multiply-adds with plain and fused exit checks.

    Rings are at the thresholds that were chosen on the validation slice, dots at those for checks at fewer levels.
    """
    columns = ("blocks", "agreement", "agreement_low", "agreement_high", "plain_cost", "fused_cost", "chosen")
    table = tables.table("dynamic_exit", "method", *columns)
    few = tables.table("few_checks", "method", "blocks", "agreement", "cost")
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for index, method in enumerate(("identity", "n_njtc", "joint", "joint_shortlist", "ojfa", "token_table")):
        part = table[table["method"] == method]
        if part.empty:  # not every variant has every method
            continue
        plot_with_interval(left, method, part, "blocks", "agreement", index)
        if method != "identity":  # it has no low rank to fuse
            plot_method(right, method, part["fused_cost"], part["agreement"], index)
        look = METHOD_STYLES[method]
        right.plot(part["plain_cost"], part["agreement"], color=look.colour, linestyle=":", linewidth=look.width)
        own = few[few["method"] == method]
        for axes, x in ((left, "blocks"), (right, "cost")):
            axes.plot(own[x], own["agreement"], color=look.colour, **FEW)
        (chosen,) = part[part["chosen"]].to_dict("records")
        cost = chosen["plain_cost" if method == "identity" else "fused_cost"]
        for axes, x in ((left, chosen["blocks"]), (right, cost)):
            axes.plot(x, chosen["agreement"], color=look.colour, **CHOSEN)
    left.set(xlabel="share of blocks run", ylabel="agreement with the full model", xlim=(0, 1.03), ylim=(0, 1.05))
    left.set_title("Blocks only")
    right.set(xlabel="share of the full model's multiply-adds", title="Exit checks included")
    highest = table["plain_cost"].max()
    right.set_xlim(0, min(1.05 * max(1, highest), WIDEST))
    if highest > WIDEST:  # or plain checks would squeeze the other curves
        right.text(0.98, 0.5, f"plain: up to {highest:.1f} →", transform=right.transAxes, ha="right")
    right.axvline(1, color="#999999", linewidth=0.8, zorder=0)
    handles, _ = left.get_legend_handles_labels()
    plain = Line2D([], [], color=INK, linestyle=":", label="plain exit checks")
    chosen = Line2D([], [], color=INK, label="threshold chosen", **CHOSEN)
    fewer = Line2D([], [], color=INK, label="fewer checks", **FEW)
    handles = [*handles[::-1], plain, chosen, fewer]
    figure.legend(handles=handles, loc="outside upper center", ncols=5)
    sns.despine(fig=figure)
    return figure
