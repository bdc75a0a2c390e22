"""The figures of a study, plotted from its summary tables and from nothing else.

They are written as SVG, for the report, and as PDF, for papers; equal tables give equal bytes.
"""

import io
from collections.abc import Callable
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

from onejump.files.atomic import OnejumpError, atomic_path
from onejump.files.sealed import seal_svg
from onejump.report.plots.comparison import plot_check_cost, plot_overview
from onejump.report.plots.dynamic_exit import plot_dynamic_exit
from onejump.report.plots.fits import plot_fits
from onejump.report.plots.levels import plot_joint_jump, plot_methods, plot_ranks, plot_single_jumps
from onejump.report.plots.selection import plot_scores, plot_transfer
from onejump.report.plots.sensitivity import plot_sensitivity
from onejump.report.style import MATPLOTLIB_STYLE
from onejump.report.tables import BranchTables

# The figures of one model, seed and variant.
BRANCH_PLOTS: dict[str, Callable[[BranchTables], Figure]] = {
    "scores": plot_scores,
    "single_jumps": plot_single_jumps,
    "methods": plot_methods,
    "joint_jump": plot_joint_jump,
    "transfer": plot_transfer,
    "fits": plot_fits,
    "dynamic_exit": plot_dynamic_exit,
    "ranks": plot_ranks,
}

# Those of a model, over all its seeds and variants.
MODEL_PLOTS: dict[str, Callable[[Path, str], Figure]] = {
    "overview": plot_overview,
    "check_cost": plot_check_cost,
    "sensitivity": plot_sensitivity,
}


def plot_figure(kind: str, summary: Path, model: str, seed: int | None, variant: str | None, path: Path) -> None:
    """Plot one figure and write it as SVG to `path` and, beside it, as PDF.

    `kind` is a key of BRANCH_PLOTS or MODEL_PLOTS, `summary` the folder of the summary tables, and the rest says whose
    rows to plot; figures of a model use neither seed nor variant.

    Raises:
        OnejumpError: there is no such kind, or a table is missing or lacks the columns or rows.
    """
    figure = make_figure(kind, summary, model, seed, variant)
    for format_, date in (("svg", "Date"), ("pdf", "CreationDate")):
        with style.context(["default", MATPLOTLIB_STYLE]), atomic_path(path.with_suffix(f".{format_}")) as temporary:
            figure.savefig(temporary, format=format_, dpi=200, metadata={date: None, "Creator": None})
            if format_ == "svg":
                seal_svg(temporary)


def draw_svg(kind: str, summary: Path, model: str, seed: int, variant: str) -> bytes:
    """A figure as an SVG file in which text is text, a third as large; arguments and errors as for `plot_figure`."""
    figure, file = make_figure(kind, summary, model, seed, variant), io.BytesIO()
    with style.context(["default", MATPLOTLIB_STYLE | {"svg.fonttype": "none"}]):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def make_figure(kind: str, summary: Path, model: str, seed: int | None, variant: str | None) -> Figure:
    """The Figure that `plot_figure` writes; arguments and errors as there."""
    with style.context(["default", MATPLOTLIB_STYLE]):  # whatever a user's matplotlibrc says
        if kind in MODEL_PLOTS:
            return MODEL_PLOTS[kind](summary, model)
        if kind in BRANCH_PLOTS:
            return BRANCH_PLOTS[kind](BranchTables(summary, model, seed, variant))
    raise OnejumpError(f"no figure is called {kind!r}, only {', '.join(BRANCH_PLOTS | MODEL_PLOTS)}")
