"""How the results of a model depend on the choices that the paper leaves open: figure `sensitivity`."""

from pathlib import Path

import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from onejump.report.style import INK, METHOD_STYLES, VERDICT_STYLES
from onejump.report.tables import Comparison, read_summary


def plot_sensitivity(summary: Path, model: str) -> Figure:
    """Which verdicts change with the choices that the paper leaves open, beside each method's mean precision.

    Of all variants on the same seeds, and without first tokens if some variants leave these out.
    """
    compared = Comparison.of(summary, model)
    grid, means = compared.verdicts(), compared.means().set_index(["method", "variant"])["precision"]
    chosen = read_summary(summary, "scores", "model", "seed", "variant", "jump", "ojfa")
    chosen = chosen[(chosen["model"] == model) & chosen["seed"].isin(compared.seeds) & chosen["ojfa"]]
    variants, claims = list(grid.index), sorted(grid.columns)
    grid = grid[claims]

    figure = Figure(figsize=(7.2, 1.5 + 0.34 * len(variants)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1])
    for y, variant in enumerate(variants):
        for x, claim in enumerate(claims):
            look = VERDICT_STYLES[grid.loc[variant, claim]]
            left.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, facecolor=look.colour, linewidth=0))
            left.text(x, y, look.mark, ha="center", va="center", color=look.ink, fontweight="bold")
            if grid.loc[variant, claim] != grid.loc[variants[0], claim]:
                edges = {"edgecolor": INK, "linewidth": 1.8, "facecolor": "none"}
                left.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, **edges))
    jumps = {variant: ", ".join(dict.fromkeys(part["jump"])) for variant, part in chosen.groupby("variant")}
    names = [f"{variant} (jump {jumps[variant]})" for variant in variants]
    left.set_yticks(range(len(variants)), names)
    where = "" if compared.positions == "all" else ", without first tokens"
    left.set(title=f"Verdicts{where}", xlim=(-0.55, len(claims) - 0.45), ylim=(len(variants) - 0.5, -0.5))
    left.set_xticks(range(len(claims)), claims)
    left.tick_params(length=0)
    for method in ("arbitrary", "identity", "n_njtc", "joint", "ojfa"):
        if method not in means:  # arbitrary jumps are not told apart by position
            continue
        look = METHOD_STYLES[method]
        point = {"color": look.colour, "label": look.name, "markeredgecolor": "white", "markersize": 7}
        right.plot(means[method].loc[variants], range(len(variants)), look.marker, clip_on=False, **point)
    right.set(title="Mean precision", xlim=(0, None))
    right.tick_params(axis="y", length=0)
    right.grid(axis="y", color="#dddddd", linewidth=0.6)
    found = set(grid.to_numpy().ravel())
    looks = {name: look for name, look in VERDICT_STYLES.items() if name in found}
    marks = [Patch(color=look.colour, label=f"{look.mark} {name}") for name, look in looks.items()]
    marks.append(Patch(facecolor="none", edgecolor=INK, linewidth=1.8, label=f"differs from {variants[0]}"))
    handles, _ = right.get_legend_handles_labels()
    figure.legend(handles=[*marks, *handles[::-1]], loc="outside lower center", ncols=5, columnspacing=1.2)
    sns.despine(fig=figure, left=True)
    sns.despine(ax=left, left=True, bottom=True)
    return figure
