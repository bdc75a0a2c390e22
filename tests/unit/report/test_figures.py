"""Every figure shows what its tables say, at the usual depth and the smallest, and equal tables give equal bytes."""

import hashlib
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from summary_tables import read_frame, write_summary

from onejump.files.atomic import OnejumpError
from onejump.files.tables import write_frame
from onejump.report.figures import BRANCH_PLOTS, MODEL_PLOTS, make_figure, plot_figure
from onejump.report.plots.axes import cut_surprisal
from onejump.report.plots.comparison import _name_at_right, _series
from onejump.report.style import METHOD_STYLES, VERDICT_STYLES
from onejump.report.tables import Comparison
from onejump.study.layout import FIGURES, JOINT_FIGURES, MODEL_FIGURES, NESTED_FIGURES

MODEL, SEED = "smollm2-135m", 0


@pytest.fixture(scope="module", params=[30, 2])
def summary(request, tmp_path_factory):
    """Tables of two models, so that a figure that mixed up their rows would show."""
    folder = tmp_path_factory.mktemp(f"k{request.param}")
    variants = ("paper", "exact", "alone")
    return write_summary(folder, models=(MODEL, "other"), variants=variants, n_levels=request.param, seeds=(SEED, 1))


def rows(summary, name, variant="paper", **conditions):
    table = read_frame(summary / f"{name}.parquet")
    for column, value in {"model": MODEL, "seed": SEED, "variant": variant, **conditions}.items():
        table = table[table[column] == value]
    return table.reset_index(drop=True)


def selected(summary):
    scores = rows(summary, "scores")
    return int(scores.loc[scores["ojfa"], "jump"].item())


def lines(axes):
    """The labelled lines of a panel: label -> (x, y)."""
    return {
        line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def bands(axes):
    """The shaded bands of a panel as sets of corners."""
    return [{tuple(point) for point in band.get_paths()[0].vertices} for band in axes.collections]


def corners(x, low, high):
    return set(zip(x, low, strict=True)) | set(zip(x, high, strict=True))


VARIANT_OF = {"ranks": "exact", "joint_jump": "alone"}


def test_every_figure_of_the_layout_can_be_plotted_and_no_other():
    assert set(BRANCH_PLOTS) == {*FIGURES, *NESTED_FIGURES, *JOINT_FIGURES}
    assert set(MODEL_PLOTS) == set(MODEL_FIGURES)


@pytest.mark.parametrize("kind", BRANCH_PLOTS | MODEL_PLOTS)
def test_is_a_valid_svg_and_the_same_bytes_again(summary, kind, tmp_path):
    digests = set()
    # Twice at one depth is enough, since plotting takes most of these tests' time.
    names = ["again.svg", "first.svg"] if len(rows(summary, "scores")) == 2 else ["first.svg"]
    for name in names:
        plot_figure(kind, summary, MODEL, SEED, VARIANT_OF.get(kind, "paper"), tmp_path / name)
        made = [(tmp_path / name).with_suffix(suffix).read_bytes() for suffix in (".svg", ".pdf")]
        digests.add(hashlib.sha256(b"".join(made)).hexdigest())
    assert len(digests) == 1
    root = ElementTree.parse(tmp_path / "first.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("viewBox")
    assert "date" not in (tmp_path / "first.svg").read_text().lower()
    assert made[1].startswith(b"%PDF")
    assert b"CreationDate" not in made[1]
    pdfs = [name.replace(".svg", ".pdf") for name in names]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names + pdfs)


def test_scores_are_the_tables(summary):
    table, chosen = rows(summary, "scores"), selected(summary)
    top, bottom = make_figure("scores", summary, MODEL, SEED, "paper").axes
    assert [bar.get_height() for bar in top.patches] == table["softmax"].tolist()
    colours = [to_hex(bar.get_facecolor()).upper() for bar in top.patches]
    assert [m for m, colour in enumerate(colours) if colour == METHOD_STYLES["ojfa"].colour] == [chosen]
    x, y = lines(top)["share of bootstrap draws won"]
    won = table[table["bootstrap_share"] > 0]
    assert x.tolist() == won["jump"].tolist()
    assert y.tolist() == won["bootstrap_share"].tolist()
    assert bottom.get_lines()[0].get_ydata().tolist() == table["score"].tolist()
    note = top.texts[0].get_text()
    best = table.iloc[chosen]
    assert f"jump {chosen}\n" in note
    assert f"{best['softmax']:.2f}" in note
    assert f"{best['bootstrap_share']:.0%}" in note


@pytest.mark.parametrize(("panel", "metric"), [(0, "precision"), (1, "surprisal")])
def test_single_jumps_are_the_tables(summary, panel, metric):
    table = rows(summary, "single_jumps", metric=metric)
    axes = make_figure("single_jumps", summary, MODEL, SEED, "paper").axes[panel]
    drawn = lines(axes)
    expected = {"OJFA": "ojfa", "Joint jump": "joint", "Arbitrary jumps: mean": "arbitrary_mean"}
    assert drawn.keys() == expected.keys()
    for label, column in expected.items():
        assert drawn[label][0].tolist() == table["level"].tolist()
        assert drawn[label][1].tolist() == table[column].tolist()
    for band, (low, high) in zip(bands(axes), [("q05", "q95"), ("q25", "q75")], strict=True):
        assert band == corners(table["level"], table[f"arbitrary_{low}"], table[f"arbitrary_{high}"])
    assert metric in axes.get_ylabel()
    assert axes.get_xlabel() == "exit level k"


@pytest.mark.parametrize(("variant", "lenses"), [("paper", ["jtc"]), ("exact", ["jtc", "tuned_lens"])])
@pytest.mark.parametrize(("panel", "metric"), [(0, "precision"), (1, "surprisal")])
def test_methods_are_the_tables(summary, panel, metric, variant, lenses):
    """Of the lenses those that G6 is about, if they were evaluated."""
    axes = make_figure("methods", summary, MODEL, SEED, variant).axes[panel]
    drawn = lines(axes)
    without_band = ("constant", "token_table", *lenses, "joint")
    methods = (*without_band, "identity", "n_njtc", "ojfa")
    assert drawn.keys() == {METHOD_STYLES[method].name for method in methods}
    drawn_bands = bands(axes)
    for method in methods:
        table = rows(summary, "levels", variant, method=method)
        assert drawn[METHOD_STYLES[method].name][0].tolist() == table["level"].tolist()
        assert drawn[METHOD_STYLES[method].name][1].tolist() == table[metric].tolist()
        band = corners(table["level"], table[f"{metric}_low"], table[f"{metric}_high"])
        assert (band in drawn_bands) == (method not in without_band)


def test_a_surprisal_of_identity_that_leaves_the_panel_is_written_into_it(summary):
    axes = make_figure("methods", summary, MODEL, SEED, "paper").axes[1]
    highest = rows(summary, "levels", method="identity")["surprisal"].max()
    assert axes.get_ylim()[1] < highest
    assert f"up to {highest:.1f}" in axes.texts[0].get_text()
    jumps = rows(summary, "levels")
    assert axes.get_ylim()[1] > jumps.loc[jumps["method"] != "identity", "surprisal_high"].max()


def test_transfer_is_the_grid_with_the_selected_row_outlined(summary):
    table, chosen = rows(summary, "transfer"), selected(summary)
    size = table["jump"].nunique()
    heat, side, *_ = make_figure("transfer", summary, MODEL, SEED, "paper").axes
    mesh = heat.collections[0]
    grid = np.asarray(mesh.get_array()).reshape(size, size)
    assert (grid[table["jump"], table["level"]] == table["precision"]).all()
    (outline,) = heat.patches
    assert (outline.get_x(), outline.get_y()) == (-0.5, chosen - 0.5)
    assert (outline.get_width(), outline.get_height()) == (size, 1)
    assert heat.get_ylim() == (size - 0.5, -0.5) == side.get_ylim()  # jump 0 on top, rows level with the bars
    assert [bar.get_width() for bar in side.patches] == rows(summary, "scores")["score"].tolist()


def test_a_grid_of_nothing_but_misses_is_dark(tmp_path):
    write_summary(tmp_path, variants=("paper",), n_levels=3)
    write_frame(tmp_path / "transfer.parquet", read_frame(tmp_path / "transfer.parquet").assign(precision=0.0))
    mesh = make_figure("transfer", tmp_path, MODEL, SEED, "paper").axes[0].collections[0]
    assert mesh.get_clim() == (0, 1)


def test_fits_by_adam_show_every_course(summary):
    jumps, curves = rows(summary, "jumps"), rows(summary, "curves")
    left, right, *_ = make_figure("fits", summary, MODEL, SEED, "paper").axes
    drawn = lines(left)
    assert drawn["one jump per level"][1].tolist() == jumps.loc[jumps["jump"] != "joint", "gap"].tolist()
    assert set(drawn["Joint jump"][1]) == {jumps.loc[jumps["jump"] == "joint", "gap"].item()}
    courses = right.collections[0].get_segments()
    for jump, course in enumerate(courses):
        expected = curves[curves["jump"] == str(jump)]
        assert np.array_equal(course, expected[["step", "gap"]])
    assert len(courses) == len(jumps) - 1
    joint = curves[curves["jump"] == "joint"]
    assert np.array_equal(lines(right)["Joint jump"], joint[["step", "gap"]].T)
    # By hand: each level's gap at each epoch, a stopped fit's last one kept.
    ends = [dict(map(tuple, course)) for course in courses]
    epochs = range(1, int(curves["step"].max()) + 1)
    expected = [np.median([end[min(epoch, max(end))] for end in ends]) for epoch in epochs]
    _x, y = lines(right)["median over levels"]
    assert np.allclose(y[: len(epochs)], expected)
    assert right.get_yscale() == "log"


def test_fits_that_are_exact_show_the_ridge(summary):
    table = rows(summary, "jumps", "exact")
    _, right = make_figure("fits", summary, MODEL, SEED, "exact").axes
    drawn = lines(right)
    assert drawn["one jump per level"][1].tolist() == table.loc[table["jump"] != "joint", "ridge"].tolist()
    assert set(drawn["Joint jump"][1]) == {table.loc[table["jump"] == "joint", "ridge"].item()}


def test_gaps_and_ridges_of_zero_can_be_drawn(tmp_path):
    write_summary(tmp_path, variants=("exact",), n_levels=4)
    table = read_frame(tmp_path / "jumps.parquet")
    table.loc[:1, ["gap", "ridge"]] = 0.0
    write_frame(tmp_path / "jumps.parquet", table)
    for axes in make_figure("fits", tmp_path, MODEL, SEED, "exact").axes:
        low, high = axes.get_ylim()
        assert axes.get_yscale() == "symlog"
        assert low < 0 < high
    table[["gap", "ridge"]] = 0.0
    write_frame(tmp_path / "jumps.parquet", table)
    plot_figure("fits", tmp_path, MODEL, SEED, "exact", tmp_path / "fits.svg")


def test_fits_on_the_divergence_show_its_course(tmp_path):
    write_summary(tmp_path, variants=("paper",), n_levels=3)
    table = read_frame(tmp_path / "curves.parquet").assign(validation_kl=lambda t: 3 + t["gap"], gap=np.nan)
    write_frame(tmp_path / "curves.parquet", table)
    jumps = read_frame(tmp_path / "jumps.parquet").assign(gap=np.nan)  # as of fits with gates
    write_frame(tmp_path / "jumps.parquet", jumps)
    left, right, *_ = make_figure("fits", tmp_path, MODEL, SEED, "paper").axes
    kept = table.groupby("jump")["validation_kl"].min()
    assert lines(left)["one jump per level"][1].tolist() == [kept[str(level)] for level in range(3)]
    assert set(lines(left)["Joint jump"][1]) == {kept["joint"]}
    joint = table[table["jump"] == "joint"]
    assert np.array_equal(lines(right)["Joint jump"], joint[["step", "validation_kl"]].T)
    assert right.get_ylabel() == "validation KL (nats)"


def test_dynamic_exit_shows_each_curve_and_what_plain_checks_cost(summary):
    table, few = rows(summary, "dynamic_exit"), rows(summary, "few_checks")
    left, right = make_figure("dynamic_exit", summary, MODEL, SEED, "paper").axes
    rings = [[line for line in axes.get_lines() if line.get_markerfacecolor() == "none"] for axes in (left, right)]
    drawn, plain = lines(left), [line for line in right.get_lines() if line.get_linestyle() == ":"]
    for method in ("token_table", "identity", "n_njtc", "ojfa", "joint"):
        part, look = table[table["method"] == method], METHOD_STYLES[method]
        assert np.array_equal(drawn[look.name], part[["blocks", "agreement"]].T)
        assert corners(part["blocks"], part["agreement_low"], part["agreement_high"]) in [
            band & corners(part["blocks"], part["agreement_low"], part["agreement_high"]) for band in bands(left)
        ]
        (chosen,) = part[part["chosen"]].to_dict("records")
        costs = chosen["plain_cost" if method == "identity" else "fused_cost"]
        for ring, x in zip(rings, (chosen["blocks"], costs), strict=True):
            (own,) = [line for line in ring if line.get_color() == look.colour]
            assert (own.get_xdata()[0], own.get_ydata()[0]) == (x, chosen["agreement"])
        own = few[few["method"] == method]
        for axes, x in ((left, "blocks"), (right, "cost")):
            (dots,) = [line for line in axes.get_lines() if (line.get_color(), line.get_marker()) == (look.colour, ".")]
            assert np.array_equal(dots.get_data(), own[[x, "agreement"]].T)
        (dotted,) = [line for line in plain if line.get_color() == look.colour]
        np.testing.assert_array_equal(dotted.get_data(), part[["plain_cost", "agreement"]].T)
        if method == "identity":
            assert look.name not in lines(right)  # it has no low rank to fuse
        else:
            assert np.array_equal(lines(right)[look.name], part[["fused_cost", "agreement"]].T)


def test_plain_exit_checks_that_cost_too_much_leave_the_panel_and_are_told(tmp_path):
    write_summary(tmp_path, variants=("paper",), n_levels=3)
    table = read_frame(tmp_path / "dynamic_exit.parquet")
    for factor in (1.0, 6.0):
        write_frame(tmp_path / "dynamic_exit.parquet", table.assign(plain_cost=table["plain_cost"] * factor))
        right = make_figure("dynamic_exit", tmp_path, MODEL, SEED, "paper").axes[1]
        highest = table["plain_cost"].max() * factor
        assert right.get_xlim()[1] == pytest.approx(1.05 * highest if factor == 1 else 2)
        assert [text.get_text() for text in right.texts] == ([] if factor == 1 else [f"plain: up to {highest:.1f} →"])


def test_rank_curves_mark_the_variants_rank(summary):
    table, own = rows(summary, "ranks", "exact"), rows(summary, "jumps", "exact")["rank"].iloc[0]
    for metric, axes in zip(
        ("precision", "surprisal"), make_figure("ranks", summary, MODEL, SEED, "exact").axes, strict=True
    ):
        drawn = lines(axes)
        for method in ("n_njtc", "ojfa", "joint"):
            part = table[table["method"] == method]
            assert np.array_equal(drawn[METHOD_STYLES[method].name], part[["rank", metric]].T)
        assert set(drawn[f"the variant's rank, {own}"][0]) == {own}
        assert axes.get_xscale() == "log"
        assert {own, 1, table["rank"].max()} <= set(axes.get_xticks())


def test_the_sensitivity_matrix_frames_the_verdicts_that_flip(tmp_path):
    names = ("paper", "exact", "third")
    write_summary(tmp_path, variants=names, n_levels=4, seeds=(0, 1))
    table = read_frame(tmp_path / "claims.parquet")
    flipped = (table["variant"] == "third") & (table["claim"] == "C3")
    assert not (table.loc[flipped, "claim_verdict"] == "supported").any()
    table.loc[flipped, "claim_verdict"] = "supported"
    write_frame(tmp_path / "claims.parquet", table)
    left, right = make_figure("sensitivity", tmp_path, MODEL, None, None).axes
    marks = {(round(text.get_position()[0]), text.get_position()[1]): text.get_text() for text in left.texts}
    shown = (table["model"] == MODEL) & (table["positions"] == "all") & (table["seed"] == 0)
    whole = table[shown].drop_duplicates(["variant", "claim"])
    wide = whole.pivot(index="variant", columns="claim", values="claim_verdict").loc[list(names)]
    for y, x in np.ndindex(wide.shape):
        assert marks[x, y] == VERDICT_STYLES[wide.iloc[y, x]].mark
    framed = [patch for patch in left.patches if patch.get_linewidth() > 0]
    assert [(round(p.get_x() + 0.46), round(p.get_y() + 0.42)) for p in framed] == [(2, 2)]
    methods = read_frame(tmp_path / "methods.parquet")
    means = methods.groupby(["method", "variant"])["precision"].mean()
    for method in ("identity", "arbitrary", "n_njtc", "joint", "ojfa"):
        x, y = lines(right)[METHOD_STYLES[method].name]
        assert np.allclose(x, means[method].loc[list(names)])
        assert list(y) == [0, 1, 2]
    scores = read_frame(tmp_path / "scores.parquet").query("ojfa and variant == 'third'")
    jumps = ", ".join(dict.fromkeys(scores["jump"].astype(str)))
    assert left.get_yticklabels()[2].get_text() == f"third (jump {jumps})"


def test_variants_are_compared_on_the_seeds_and_sentences_that_all_have(tmp_path):
    """`third` has one seed, and no first tokens."""
    write_summary(tmp_path, variants=("paper", "third"), n_levels=4, seeds=(0, 1))
    for name in ("claims", "methods", "by_position"):
        table = read_frame(tmp_path / f"{name}.parquet")
        table = table[~((table["variant"] == "third") & (table["seed"] == 1))]
        if name == "by_position":
            table = table[~((table["variant"] == "third") & (table["position"] == "0"))]
            table.loc[table["position"] == "1+", "precision"] += 0.01
        if name == "claims":  # seeds of `paper` disagree, and so do positions
            kept = (table["variant"] == "paper") & (table["claim"] == "C3")
            table.loc[kept, "claim_verdict"] = "contradicted"
            table.loc[kept & (table["seed"] == 0) & (table["positions"] == "1+"), "claim_verdict"] = "supported"
        write_frame(tmp_path / f"{name}.parquet", table)
    found = Comparison.of(tmp_path, MODEL)
    assert (found.seeds, found.positions) == ((0,), "1+")
    assert found.verdicts().loc["paper", "C3"] == "supported"
    whole = read_frame(tmp_path / "by_position.parquet").query("variant == 'paper' and seed == 0 and position == '1+'")
    whole = whole[whole["level"].isna()].set_index("method")["precision"]
    means = found.means().query("variant == 'paper'").set_index("method")["precision"]
    assert {"identity", "joint", "n_njtc"} <= set(means.index)
    assert np.allclose(means, whole[means.index])
    left, right = make_figure("sensitivity", tmp_path, MODEL, None, None).axes
    assert left.get_title(loc="left") == "Verdicts, without first tokens"
    assert np.allclose(lines(right)[METHOD_STYLES["joint"].name][0][0], whole["joint"])
    table = read_frame(tmp_path / "by_position.parquet")
    write_frame(tmp_path / "by_position.parquet", table[(table["variant"] == "third") == (table["seed"] == 0)])
    assert Comparison.of(tmp_path, MODEL).seeds == (0, 1)  # none is common


@pytest.mark.parametrize("n_levels", [2, 3, 126])
def test_ticks_are_whole_and_few(tmp_path, n_levels):
    write_summary(tmp_path, variants=("paper",), n_levels=n_levels)
    heat = make_figure("transfer", tmp_path, MODEL, SEED, "paper").axes[0]
    for axis in (heat.xaxis, heat.yaxis):
        ticks = axis.get_ticklocs()
        shown = ticks[(ticks >= 0) & (ticks < n_levels)]
        assert 2 <= len(shown) <= 9
        assert (shown == shown.round()).all()


def test_methods_are_told_apart_by_colour_and_marker():
    assert len({(look.colour, look.line) for look in METHOD_STYLES.values()}) == len(METHOD_STYLES)
    marked = [look for look in METHOD_STYLES.values() if look.marker]
    assert len({look.colour for look in marked}) == len({look.marker for look in marked}) == len(marked) == 15


def test_bad_input_is_refused_in_one_line(summary, tmp_path):
    def refusal(kind="scores", folder=summary, variant="paper"):
        with pytest.raises(OnejumpError) as error:
            plot_figure(kind, folder, MODEL, SEED, variant, tmp_path / "figure.svg")
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "'pie'" in refusal("pie")
    assert "scores.parquet" in refusal(folder=tmp_path)
    assert "variant other" in refusal(variant="other")
    table = read_frame(summary / "scores.parquet")
    write_frame(tmp_path / "scores.parquet", table.drop(columns=["score", "softmax"]))
    assert "scores.parquet: has no column score, softmax" in refusal(folder=tmp_path)
    (tmp_path / "scores.parquet").write_bytes(b"")
    assert "scores.parquet: damaged" in refusal(folder=tmp_path)
    write_frame(tmp_path / "scores.parquet", table.assign(ojfa=False))
    assert "scores.parquet: marks 0 jumps" in refusal(folder=tmp_path)
    assert not (tmp_path / "figure.svg").exists()


def test_joint_jumps_that_differ_in_rank_alone_are_a_series(tmp_path):
    """Variants a2, a9 and a4 differ in rank alone, b in its gate besides; c and d in what jumps do not say."""
    of = {"a2": (2, "level"), "a9": (9, "level"), "a4": (4, "level"), "b": (2, "none")}
    of |= {"c": (2, "shared"), "d": (2, "shared")}
    keys = [{"model": "m", "seed": 0, "variant": name} for name in of]
    alike = {"fit": "kl", "target": "post_norm", "scales": "none", "inputs": "states"}
    jumps = [
        key | alike | {"jump": jump, "rank": rank, "gate": gate}
        for key, (rank, gate) in zip(keys, of.values(), strict=True)
        for jump in ("0", "joint")
    ]
    write_frame(tmp_path / "jumps.parquet", pd.DataFrame(jumps))
    means = pd.DataFrame({"variant": list(of), "shown": "one_jump", "check": [2, 9, 4, 1, 2, 2]})
    means = pd.concat([means, means.assign(shown="joint_shortlist")])
    found = [(part["shown"].iloc[0], *part["variant"]) for part in _series(means, tmp_path, "m")]
    series = [("a2", "a4", "a9"), ("b",), ("c",), ("d",)]
    assert found == [(shown, *variants) for shown in ("one_jump", "joint_shortlist") for variants in series]


@pytest.mark.parametrize(
    ("y", "heights"),
    [
        ([5, 1], [0.5, 0.1]),
        ([5, 5, 5], [0.445, 0.5, 0.555]),  # around their points
        ([0, 0.1, 9.9, 10], [0, 0.055, 0.945, 1]),  # not below or above the panel
    ],
)
def test_names_at_the_right_lie_as_near_to_their_points_as_they_can(y, heights):
    axes = Figure().subplots()
    axes.set_ylim(0, 10)
    names = [f"name {i}" for i in range(len(y))]
    _name_at_right(axes, [1] * len(y), y, names)
    assert [text.xy for text in axes.texts] == [(1, height) for height in sorted(y)]
    assert sorted(text.get_text() for text in axes.texts) == names
    np.testing.assert_allclose([text.xyann[1] for text in axes.texts], sorted(heights))


def test_a_surprisal_of_several_methods_that_leaves_the_panel_is_written_into_it():
    table = pd.DataFrame({"method": ["identity", "arbitrary", "arbitrary", "ojfa"], "surprisal": [30, 9, 20, 8]})
    axes = Figure().subplots()
    axes.set_ylim(0, 30)
    cut_surprisal(axes, table.assign(surprisal_high=table["surprisal"] + 1), ("identity", "arbitrary", "middle"))
    assert axes.get_ylim() == (0, 1.2 * 9)
    assert [text.get_text() for text in axes.texts] == ["Identity: up to 30.0 ↑", "Arbitrary jumps: up to 20.0 ↑"]
    cut_surprisal(second := Figure().subplots(), table[2:].assign(surprisal_high=15), ("arbitrary",))
    assert list(second.texts) == []
