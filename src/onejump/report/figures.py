"""Figures of a study, drawn from its summary tables and from nothing else.

`FIGURES` and `EXACT_FIGURES` name the kinds that take the tables' rows of one model, seed and variant and return a
Figure, `MODEL_FIGURES` those of a model over all of them. They are written as SVG, for the report, and as PDF, for
papers, byte for byte the same for the same tables.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator

from onejump.files.atomic import OnejumpError, atomic_path
from onejump.report.style import _STYLE, INK, METHOD_STYLES, VERDICT_STYLES
from onejump.report.tables import Rows, read_summary

SOFTMAX_TEMPERATURE = 5e-4  # of D_m, as in the paper's Figure 3; the table's `softmax` column is taken at it


COURSE_POINTS = 80  # of one jump's fit, as drawn; the column of a page has no room for more


LEVEL, JUMP = "exit level k", "jump m"


METRICS = {"precision": "precision (agrees with the full model)", "surprisal": "surprisal (nats)"}


# What the report finds in the SVG of `transfer` by this id: the area of the K x K cells.
GRID_ID = "part-grid"


def draw(kind: str, summary: Path, model: str, seed: int | None, variant: str | None, path: Path) -> None:
    """Draw one figure and write it as SVG and, beside it, as PDF; equal tables give equal bytes.

    Args:
        kind: a key of `FIGURES`, `EXACT_FIGURES` or `MODEL_FIGURES`.
        summary: the folder with the study's summary tables.
        model, seed, variant: whose rows to draw; a figure of a model needs no seed and no variant.
        path: the SVG file; the PDF has the same name with another suffix.

    Raises:
        OnejumpError: no such kind, or a table is missing or lacks the columns or rows.
    """
    figure = make_figure(kind, summary, model, seed, variant)
    undated = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None, "Creator": None}}
    for format_, metadata in undated.items():
        with style.context(["default", _STYLE]), atomic_path(path.with_suffix(f".{format_}")) as temporary:
            figure.savefig(temporary, format=format_, dpi=200, metadata=metadata)


def make_figure(kind: str, summary: Path, model: str, seed: int | None, variant: str | None) -> Figure:
    """The Figure that `draw` writes; arguments and errors as there."""
    of_branch = FIGURES | EXACT_FIGURES
    if kind not in of_branch | MODEL_FIGURES:
        raise OnejumpError(f"no figure is called {kind!r}, only {', '.join(of_branch | MODEL_FIGURES)}")
    with style.context(["default", _STYLE]):  # whatever a user's matplotlibrc says
        if kind in MODEL_FIGURES:
            return MODEL_FIGURES[kind](Path(summary), model)
        return of_branch[kind](Rows(Path(summary), model, seed, variant))


def scores(rows: Rows) -> Figure:
    """D_m of every jump: softmaxed as in the paper's Figure 3 with the bootstrap's votes, and as it is."""
    table, chosen = rows.selected()
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])

    colours = _jump_colours(table.index, chosen)
    top.bar(table.index, table["softmax"], width=_bar_width(table), color=colours)
    won = table.loc[table["bootstrap_share"] > 0, "bootstrap_share"]
    votes = top.plot(
        won.index,
        won,
        linestyle="none",
        marker="D",
        markersize=3.5,
        markerfacecolor="white",
        markeredgecolor=INK,
        markeredgewidth=0.8,
        label="share of bootstrap draws won",
    )
    top.set(ylabel="share", ylim=(0, 1.12))
    top.set_yticks(np.linspace(0, 1, 5))
    best = table.loc[chosen]
    # The note stands on the side with more room, clear of the tall bar it speaks of.
    side, align = (0.99, "right") if chosen < len(table) / 2 else (0.01, "left")
    note = (
        f"OJFA: jump {chosen}\nsoftmax {best['softmax']:.2f}\nbest in {best['bootstrap_share']:.0%} of bootstrap draws"
    )
    colour = METHOD_STYLES["ojfa"].colour
    top.text(side, 0.97, note, transform=top.transAxes, ha=align, va="top", color=colour, linespacing=1.35)
    bars = Patch(
        color=METHOD_STYLES["arbitrary"].colour, label=f"softmax of $D_m$ (temperature {SOFTMAX_TEMPERATURE:g})"
    )
    figure.legend(handles=[bars, *votes], loc="outside upper left", ncols=2)

    bottom.plot(table.index, table["score"], color="#999999", linewidth=1, zorder=1)
    bottom.scatter(table.index, table["score"], c=colours, s=14, zorder=2)
    bottom.set(ylabel="$D_m$", xlabel=JUMP)
    _level_axis(bottom.xaxis, len(table))
    sns.despine(fig=figure)
    return figure


def single_jumps(rows: Rows) -> Figure:
    """OJFA and the joint jump against all other single jumps, as in the paper's Figure 2."""
    columns = ["ojfa", "joint", *(f"arbitrary_{name}" for name in ("mean", "q05", "q25", "q75", "q95"))]
    table = rows.table("single_jumps", "metric", "level", *columns)
    figure, panels = _metric_panels()
    for metric, axes in panels.items():
        part = table[table["metric"] == metric].sort_values("level")
        colour = METHOD_STYLES["arbitrary"].colour
        for low, high, alpha, label in (("q05", "q95", 0.22, "5–95 %"), ("q25", "q75", 0.38, "25–75 %")):
            axes.fill_between(
                part["level"],
                part[f"arbitrary_{low}"],
                part[f"arbitrary_{high}"],
                color=colour,
                alpha=alpha,
                linewidth=0,
                label=label,
            )
        for index, (method, column) in enumerate(
            {"arbitrary": "arbitrary_mean", "joint": "joint", "ojfa": "ojfa"}.items()
        ):
            _method_line(axes, method, part["level"], part[column], index, ": mean" if method == "arbitrary" else "")
        _level_axis(axes.xaxis, len(part))
    return _with_legend(figure, panels["precision"])


def methods(rows: Rows) -> Figure:
    """OJFA against identity and N-NJTC, with JTC as the upper reference, as in the paper's Figure 4."""
    limits = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
    table = rows.table("levels", "method", "level", *limits)
    figure, panels = _metric_panels()
    for metric, axes in panels.items():
        for index, method in enumerate(("jtc", "identity", "n_njtc", "ojfa")):
            part = table[table["method"] == method].sort_values("level")
            _method_line(axes, method, part["level"], part[metric], index)
            if method != "jtc":
                low, high = part[f"{metric}_low"], part[f"{metric}_high"]
                axes.fill_between(part["level"], low, high, color=METHOD_STYLES[method].colour, alpha=0.2, linewidth=0)
        _level_axis(axes.xaxis, table["level"].nunique())
    _cut_identity(panels["surprisal"], table)
    return _with_legend(figure, panels["precision"])


def transfer(rows: Rows) -> Figure:
    """Every jump at every exit level, beside each jump's D_m."""
    table = rows.table("transfer", "jump", "level", "precision").astype({"jump": int})
    table_scores, chosen = rows.selected()
    grid = table.pivot(index="jump", columns="level", values="precision")
    size = len(grid)
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    heat, side = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])

    # A mesh of K x K vector squares would be large and show hairlines, so it goes into the SVG as one picture.
    edges = np.arange(size + 1) - 0.5
    top = grid.max(axis=None) or 1  # a grid of nothing but misses is dark, not halfway up a scale around zero
    mesh = heat.pcolormesh(edges, edges, grid.to_numpy(), cmap="mako", vmin=0, vmax=top, rasterized=True)
    heat.patch.set_gid(GRID_ID)
    colour = METHOD_STYLES["ojfa"].colour
    heat.add_patch(Rectangle((-0.5, chosen - 0.5), size, 1, fill=False, edgecolor=colour, linewidth=1.6, clip_on=False))
    heat.set(xlabel=LEVEL, ylabel=JUMP, ylim=(size - 0.5, -0.5))
    _level_axis(heat.xaxis, size)
    _level_axis(heat.yaxis, size)
    bar = figure.colorbar(mesh, ax=heat, location="top", aspect=45, pad=0.02)
    bar.set_label(METRICS["precision"])
    bar.outline.set_visible(False)

    colours = _jump_colours(table_scores.index, chosen)
    side.barh(table_scores.index, table_scores["score"], height=_bar_width(table_scores), color=colours)
    side.set(xlabel="$D_m$")
    side.xaxis.set_major_locator(MaxNLocator(nbins=3))
    side.tick_params(axis="y", left=False, labelleft=False)
    place = side.get_yaxis_transform()
    side.text(1.04, chosen, f"OJFA\nm = {chosen}", transform=place, va="center", color=colour, fontweight="bold")
    sns.despine(ax=side, left=True)
    sns.despine(ax=heat, left=True, bottom=True)
    return figure


def fits(rows: Rows) -> Figure:
    """How far each fit is from the exact optimum, and how it came there, or which ridge a closed form chose."""
    table = rows.table("jumps", "jump", "gap", "ridge")
    curves = rows.table("curves", "jump", "step", "gap", "validation_kl", may_be_empty=True)
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _per_jump(left, table, "gap", "-")
    left.set(title="Fitted jumps", ylabel="gap to the exact optimum")
    if curves.empty:
        _per_jump(right, table, "ridge", "none")
        right.set(title="Chosen ridge", ylabel="ridge λ")
    elif curves["validation_kl"].notna().any():
        _courses(right, curves, "validation_kl")
        right.set(title="Course of the KL fit", xlabel="step", ylabel="validation KL (nats)")
    else:
        _courses(right, curves, "gap")
        _log_axis(right, curves["gap"])
        right.set(title="Course of Adam", xlabel="epoch", ylabel="gap to the exact optimum")
    entries = {}
    for axes in (left, right):
        entries |= {handle.get_label(): handle for handle in axes.get_legend_handles_labels()[0]}
    figure.legend(handles=list(entries.values()), loc="outside upper center", ncols=3)
    sns.despine(fig=figure)
    return figure


def dynamic_exit(rows: Rows) -> Figure:
    """Agreement against the blocks that are run, and against all multiply-adds with plain and fused exit checks."""
    columns = ("blocks", "agreement", "agreement_low", "agreement_high", "plain_cost", "fused_cost")
    table = rows.table("dynamic_exit", "method", *columns)
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for index, method in enumerate(("identity", "n_njtc", "joint", "ojfa")):
        part = table[table["method"] == method]
        _method_line(left, method, part["blocks"], part["agreement"], index)
        look = METHOD_STYLES[method]
        ends = (part["agreement_low"], part["agreement_high"])
        left.fill_between(part["blocks"], *ends, color=look.colour, alpha=0.2, linewidth=0)
        if method == "identity":
            right.plot(part["plain_cost"], part["agreement"], color=look.colour, linestyle=":", linewidth=look.width)
            continue
        _method_line(right, method, part["fused_cost"], part["agreement"], index)
        right.plot(part["plain_cost"], part["agreement"], color=look.colour, linestyle=":", linewidth=look.width)
    left.set(xlabel="share of blocks run", ylabel="agreement with the full model", xlim=(0, 1.02), ylim=(0, 1.02))
    right.set(xlabel="multiply-adds, exit checks included, as a share", title="With the cost of exit checks")
    left.set_title("Blocks alone")
    highest = max(1.05, 1.05 * table["plain_cost"].max())
    right.set_xlim(0, highest)
    right.axvline(1, color="#999999", linewidth=0.8, zorder=0)
    handles, labels = left.get_legend_handles_labels()
    plain = Line2D([], [], color=INK, linestyle=":", label="plain head at every check")
    figure.legend([*handles[::-1], plain], [*labels[::-1], plain.get_label()], loc="outside upper center", ncols=5)
    sns.despine(fig=figure)
    return figure


def ranks(rows: Rows) -> Figure:
    """Precision and surprisal against the rank of exact fits, with the variant's own rank marked."""
    limits = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
    table = rows.table("ranks", "method", "rank", *limits)
    own = int(rows.table("jumps", "rank")["rank"].iloc[0])
    figure, panels = _metric_panels()
    for metric, axes in panels.items():
        for method in ("n_njtc", "joint", "ojfa"):
            part = table[table["method"] == method].sort_values("rank")
            _method_line(axes, method, part["rank"], part[metric], 0)
            ends = (part[f"{metric}_low"], part[f"{metric}_high"])
            axes.fill_between(part["rank"], *ends, color=METHOD_STYLES[method].colour, alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        ends = {1, own, int(table["rank"].max())}
        shown = sorted(ends | {rank for rank in (2, 10, 20, 50, 100, 200) if _apart(rank, ends)})
        axes.set_xticks(shown, [str(rank) for rank in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axvline(own, color="#999999", linestyle="--", linewidth=0.9, zorder=0, label=f"rank {own}, the variant's")
        axes.set(xlabel="rank r")
    return _with_legend(figure, panels["precision"])


def _apart(rank: int, others: set[int]) -> bool:
    """Whether a tick at `rank` lies between the others and clear of them, on a logarithmic axis."""
    return rank < max(others) and all(abs(np.log(rank / other)) > 0.35 for other in others)


FIGURES: dict[str, Callable[[Rows], Figure]] = {
    "scores": scores,
    "single_jumps": single_jumps,
    "methods": methods,
    "transfer": transfer,
    "fits": fits,
    "dynamic_exit": dynamic_exit,
}


# Only where fits are exact, which makes them nested in rank.
EXACT_FIGURES: dict[str, Callable[[Rows], Figure]] = {"ranks": ranks}


def sensitivity(summary: Path, model: str) -> Figure:
    """Which verdicts flip with the choices that the paper leaves open, and what each method reaches under them."""
    verdicts = read_summary(summary, "verdicts", "model", "variant", "claim", "verdict")
    verdicts = verdicts[verdicts["model"] == model]
    methods = read_summary(summary, "methods", "model", "seed", "variant", "method", "precision")
    means = methods[methods["model"] == model].groupby(["method", "variant"])["precision"].mean()
    chosen = read_summary(summary, "scores", "model", "seed", "variant", "jump", "ojfa")
    chosen = chosen[(chosen["model"] == model) & chosen["ojfa"]]
    variants, claims = list(dict.fromkeys(verdicts["variant"])), sorted(set(verdicts["claim"]))
    grid = verdicts.pivot(index="variant", columns="claim", values="verdict").loc[variants, claims]

    figure = Figure(figsize=(7.2, 1.5 + 0.34 * len(variants)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1])
    for y, variant in enumerate(variants):
        for x, claim in enumerate(claims):
            look = VERDICT_STYLES[grid.loc[variant, claim]]
            left.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, facecolor=look.colour, linewidth=0))
            flipped = grid.loc[variant, claim] != grid.loc[variants[0], claim]
            left.text(x, y, look.mark, ha="center", va="center", color=look.ink, fontweight="bold")
            if flipped:
                edges = {"edgecolor": INK, "linewidth": 1.8, "facecolor": "none"}
                left.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, **edges))
    jumps = {variant: ", ".join(dict.fromkeys(part["jump"])) for variant, part in chosen.groupby("variant")}
    names = [f"{variant} (jump {jumps[variant]})" for variant in variants]
    left.set_yticks(range(len(variants)), names)
    left.set(xlim=(-0.55, len(claims) - 0.45), ylim=(len(variants) - 0.5, -0.5))
    left.set_xticks(range(len(claims)), claims)
    left.tick_params(length=0)
    left.set_title("Verdicts")
    for method in ("arbitrary", "identity", "n_njtc", "joint", "ojfa"):
        look = METHOD_STYLES[method]
        values = means[method].loc[variants]
        right.plot(
            values,
            range(len(variants)),
            look.marker,
            color=look.colour,
            label=look.name,
            markeredgecolor="white",
            markersize=7,
            clip_on=False,
        )
    right.set_title("Mean precision")
    right.set(xlim=(0, None))
    right.tick_params(axis="y", length=0)
    right.grid(axis="y", color="#dddddd", linewidth=0.6)
    marks = [Patch(color=look.colour, label=f"{look.mark} {name}") for name, look in VERDICT_STYLES.items()]
    marks.append(Patch(facecolor="none", edgecolor=INK, linewidth=1.8, label=f"differs from {variants[0]}"))
    handles, _ = right.get_legend_handles_labels()
    figure.legend(handles=[*marks, *handles[::-1]], loc="outside lower center", ncols=5, columnspacing=1.2)
    sns.despine(fig=figure, left=True)
    sns.despine(ax=left, left=True, bottom=True)
    return figure


# Of a model, over all its seeds and variants.
MODEL_FIGURES: dict[str, Callable[[Path, str], Figure]] = {"sensitivity": sensitivity}


def _jump_colours(jumps: pd.Index, chosen: int) -> list[str]:
    return [METHOD_STYLES["ojfa" if jump == chosen else "arbitrary"].colour for jump in jumps]


def _bar_width(jumps: pd.DataFrame) -> float:
    """Bars with gaps between them, but not so many that the gaps shimmer."""
    return 0.8 if len(jumps) <= 60 else 1.0


def _level_axis(axis, count: int) -> None:
    """Whole-numbered, uncrowded ticks for levels or jumps 0..count-1."""
    axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    if axis.axis_name == "x":
        axis.axes.set_xlim(-0.5, count - 0.5)


def _metric_panels() -> tuple[Figure, dict[str, Axes]]:
    """A precision and a surprisal panel, side by side."""
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    panels = dict(zip(METRICS, figure.subplots(1, 2), strict=True))
    for (metric, axes), better in zip(panels.items(), ("higher", "lower"), strict=True):
        axes.set(xlabel=LEVEL, ylabel=METRICS[metric], title=f"{metric.capitalize()} ({better} is better)")
    return figure, panels


def _method_line(axes: Axes, method: str, x: pd.Series, y: pd.Series, index: int, suffix: str = "") -> None:
    look = METHOD_STYLES[method]
    # Some fifteen markers, starting at different levels so that those of close lines do not hide each other.
    step = max(1, len(x) // 15)
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


def _cut_identity(axes: Axes, table: pd.DataFrame) -> None:
    """End the surprisal axis above the jumps where identity's would flatten them, and say how far identity goes."""
    identity = table["method"] == "identity"
    highest, jumps = table.loc[identity, "surprisal"].max(), table.loc[~identity, "surprisal_high"].max()
    if highest > 1.5 * jumps:
        axes.set_ylim(bottom=0, top=1.2 * jumps)
        look = METHOD_STYLES["identity"]
        note = f"{look.name}: up to {highest:.1f} ↑"
        axes.text(0.02, 0.97, note, transform=axes.transAxes, va="top", color=look.colour)


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=5, handlelength=2.2)
    sns.despine(fig=figure)
    return figure


def _per_jump(axes: Axes, table: pd.DataFrame, column: str, line: str) -> None:
    """One value per jump over the levels, and the joint jump's as a line across."""
    single = table[table["jump"] != "joint"].astype({"jump": int}).sort_values("jump")
    axes.plot(
        single["jump"],
        single[column],
        color=INK,
        marker=".",
        markersize=5,
        linestyle=line,
        linewidth=0.8,
        label="one jump per level",
    )
    look = METHOD_STYLES["joint"]
    for value in table.loc[table["jump"] == "joint", column]:
        axes.axhline(value, color=look.colour, linestyle="--", linewidth=1.4, zorder=1, label=look.name)
    axes.set(xlabel=JUMP)
    _level_axis(axes.xaxis, len(single))
    _log_axis(axes, table[column])


def _courses(axes: Axes, curves: pd.DataFrame, values: str) -> None:
    """The course of iterative fits: a thin line per level, their median, and the joint jump."""
    table = curves.pivot(index="step", columns="jump", values=values).sort_index()
    joint = table.pop("joint") if "joint" in table else None
    table.columns = table.columns.astype(int)
    table = table.sort_index(axis=1)
    courses = [table[jump].dropna().reset_index().to_numpy() for jump in table]
    lines = LineCollection(
        [course[np.unique(np.linspace(0, len(course) - 1, COURSE_POINTS).astype(int))] for course in courses],
        array=table.columns.to_numpy(),
        cmap="crest",
        linewidths=0.7,
        rasterized=table.size > 10_000,  # else the deepest models' courses would be most of the report
    )
    axes.add_collection(lines)
    if joint is not None:
        look = METHOD_STYLES["joint"]
        axes.plot(joint.dropna(), color=look.colour, linestyle="--", linewidth=1.4, label=look.name)
    # A fit that has stopped keeps its last value, else the median would be one over the slowest fits only.
    axes.plot(table.ffill().median(axis=1), color=INK, linewidth=2.2, label="median over levels")
    axes.autoscale()
    bar = axes.figure.colorbar(lines, ax=axes, aspect=30, pad=0.02)
    bar.set_label(JUMP)
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    bar.outline.set_visible(False)


def _log_axis(axes: Axes, values: pd.Series) -> None:
    """A logarithmic y axis where the values allow one; linear around zero where some are zero or vanishing."""
    positive = values[values > 0]
    if positive.empty:
        return
    floor = max(positive.min(), positive.max() * 1e-8)
    if values.min() >= floor:
        # Whole decades, so that no label but a power of ten is needed.
        axes.set_yscale("log")
        axes.set_ylim(10 ** np.floor(np.log10(values.min() / 1.3)), 10 ** np.ceil(np.log10(values.max() * 1.3)))
    else:
        axes.set_yscale("symlog", linthresh=floor)
