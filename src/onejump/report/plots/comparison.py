"""Methods beside each other over all variants of a model: figures `overview` and `check_cost`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from onejump.analysis.columns import METRIC_COLUMNS
from onejump.report.plots.axes import cut_surprisal, metric_panels, with_legend
from onejump.report.plots.levels import BANDED, PLAIN, plot_by_level
from onejump.report.style import METHOD_STYLES
from onejump.report.tables import Comparison, read_summary
from onejump.study.lenses import LENSES

BRANCH = ("model", "seed", "variant")


def plot_overview(summary: Path, model: str) -> Figure:
    """Every method of the first variant at each exit level, and the first variant with the joint jump alone."""
    table = _of_model(read_summary(summary, "levels", *BRANCH, "method", "level", *METRIC_COLUMNS), model)
    table = table[table["seed"] == table["seed"].iloc[0]]
    leading, one_jump = _leading_variants(table)
    figure, panels = metric_panels()
    alone = table[(table["variant"] == one_jump) & (table["method"] == "joint")].assign(method="one_jump")
    banded = BANDED if one_jump is None else (*BANDED, "one_jump")
    plot_by_level(panels, pd.concat([table[table["variant"] == leading], alone]), PLAIN, banded)
    return with_legend(figure, panels["precision"])


def plot_check_cost(summary: Path, model: str) -> Figure:
    """Mean precision and surprisal of each method of each variant against the multiply-adds of one exit check.

    Joint jumps alone that differ in rank are joined by a line, which bears the name of the highest rank's variant. The
    floor is that of the first variant.
    """
    means = Comparison.of(summary, model).means()
    alone = ~means["variant"].isin(means.loc[means["method"] == "ojfa", "variant"])
    means["shown"] = means["method"].mask(alone & (means["method"] == "joint"), "one_jump")
    series = _series(means[means["shown"].isin(("one_jump", "joint_shortlist"))], summary, model)
    ends = [part.iloc[-1] for part in series if part["shown"].iloc[0] == "one_jump"]
    figure, panels = metric_panels()
    figure.set_size_inches(9.6, 3.8)  # names take their part
    for metric, axes in panels.items():
        for method in ("constant", "token_table"):  # they take no multiply-adds
            look, value = METHOD_STYLES[method], means.loc[means["method"] == method, metric].iloc[0]
            axes.axhline(value, color=look.colour, linestyle=look.line, linewidth=look.width, label=look.name, zorder=1)
        for method in ("identity", *LENSES, "arbitrary", "n_njtc", "joint", "ojfa", "one_jump", "joint_shortlist"):
            part, look = means[means["shown"] == method], METHOD_STYLES[method]
            if part.empty:  # not every study has every method
                continue
            point = {"color": look.colour, "marker": look.marker or "x", "label": look.name, "zorder": 2}
            axes.scatter(part["check"], part[metric], s=28, linewidths=0.4, **point)
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set(xlabel="multiply-adds of one exit check", ylim=(0, None))
        for part in series:
            axes.plot(part["check"], part[metric], color=METHOD_STYLES[part["shown"].iloc[0]].colour, linewidth=0.6)
    cut_surprisal(panels["surprisal"], means.assign(surprisal_high=means["surprisal"]), ("identity", "arbitrary"))
    for metric, axes in panels.items() if ends else ():
        _name_at_right(axes, *([end[column] for end in ends] for column in ("check", metric, "variant")))
    return with_legend(figure, panels["precision"])


def _series(means: pd.DataFrame, summary: Path, model: str) -> list[pd.DataFrame]:
    """The rows of joint jumps alone that differ in nothing but rank together, by rank.

    Variants of the same rank differ in what their jumps' files do not say, such as their text, and are on their own.
    """
    facts = ["fit", "target", "gate", "scales", "inputs"]
    jumps = _of_model(read_summary(summary, "jumps", *BRANCH, "jump", "rank", *facts), model)
    joint = jumps[jumps["jump"] == "joint"].drop_duplicates("variant").drop(columns=["model", "seed", "jump"])
    grouped = means.merge(joint, on="variant").groupby(["shown", *facts], sort=False)
    found = []
    for _, part in grouped:
        alike = [part.sort_values("rank")] if part["rank"].is_unique else [part[i : i + 1] for i in range(len(part))]
        found.extend(alike)
    return found


def _name_at_right(axes: Axes, x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> None:
    """Name points of a panel whose limits are set, in a column right of it, in the order of y and clear of each other.

    The names lie as near to the heights of their points as that allows, in squared error.
    """
    low, high = axes.get_ylim()
    points = sorted(zip(y, x, names, strict=True))
    steps = min(0.055, 1 / len(points)) * np.arange(len(points))  # lines of small print in a panel of usual height
    wanted = (np.array([point[0] for point in points]) - low) / (high - low)
    heights = isotonic_regression(wanted - steps).x.clip(0, 1 - steps[-1]) + steps
    line = {"arrowstyle": "-", "linewidth": 0.4, "color": "#999999", "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
    for height, (at_y, at_x, name) in zip(heights, points, strict=True):
        text = {"xytext": (1.04, height), "textcoords": "axes fraction", "va": "center", "fontsize": 7}
        axes.annotate(name, (at_x, at_y), **text, arrowprops=line)


def _leading_variants(table: pd.DataFrame) -> tuple[str, str | None]:
    """Of some rows about methods: the first variant that has OJFA, and the first one with the joint jump alone."""
    chosen = set(table.loc[table["method"] == "ojfa", "variant"])
    names = dict.fromkeys(table["variant"])
    alone = [name for name in names if name not in chosen]
    return next(name for name in names if name in chosen), alone[0] if alone else None


def _of_model(table: pd.DataFrame, model: str) -> pd.DataFrame:
    return table[table["model"] == model]
