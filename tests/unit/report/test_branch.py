"""The section on a model, seed and variant says what the tables say."""

import shutil

import pandas as pd
import pytest
from report_pages import ALL_VARIANTS, Page, branches, rendered, row_of
from summary_tables import read_frame

from onejump.exits.columns import FLOOR_METHODS, JOINT_METHODS
from onejump.files.atomic import OnejumpError
from onejump.files.tables import write_frame
from onejump.report.branch import METHOD_ORDER
from onejump.report.formats import FORMATS
from onejump.report.style import METHOD_STYLES, VERDICT_STYLES
from onejump.study.lenses import LENSES


def general(value):
    """Three digits, with powers of ten as print sets them."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return mantissa + (
        f"×10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}" if exponent else ""
    )


def test_shared_jumps_and_dynamic_exits_are_the_tables(study, page):
    for branch in branches():
        model, seed, variant = branch
        region = f"{model}.seed-{seed}.{variant}"
        (section,) = page.find("section", aria_labelledby=region)
        (shared,) = page.find("table", inside=section, **{"class": "sortable shared"})
        for row, method in zip(page.find("tr", inside=shared)[1:], ("ojfa", "joint"), strict=True):
            expected = row_of(study, "shared_jumps", branch, method=method)
            cells = [page.text(cell) for cell in page.find("td", inside=row)]
            assert cells[:2] == [general(expected["mse"]), f"{expected['explained']:.3f}"]
            assert cells[3:] == [f"{expected['precision']:.3f}", f"{expected['surprisal']:.2f}"]
        (dynamic,) = page.find("table", inside=section, **{"class": "sortable dynamic"})
        table = read_frame(study / "summary" / "dynamic_exit.parquet")
        for column, value in zip(("model", "seed", "variant"), branch, strict=True):
            table = table[table[column] == value]
        methods = ("token_table", "identity", "n_njtc", "ojfa", "joint")
        for row, method in zip(page.find("tr", inside=dynamic)[1:], methods, strict=True):
            (expected,) = table[(table["method"] == method) & table["chosen"]].to_dict("records")
            cells = [page.text(cell) for cell in page.find("td", inside=row)]
            low, high = expected["agreement_low"], expected["agreement_high"]
            assert cells[:5] == [
                f"{expected['threshold']:.3f}",
                f"{expected['held_out_agreement']:.3f}",
                f"{expected['agreement']:.3f} [{low:.3f}, {high:.3f}]",
                f"{expected['blocks']:.0%}",
                f"{expected['checks']:.2f}",
            ]
            fused = "–" if method == "identity" else f"{expected['fused_cost']:.0%}"
            plain = "–" if method == "token_table" else f"{expected['plain_cost']:.0%}"
            assert cells[5:] == [fused, plain]
        (few,) = page.find("table", data_branch=region, **{"class": "sortable few-checks"})
        rows = [[page.text(cell) for cell in page.find("td", inside=row)] for row in page.find("tr", inside=few)[1:]]
        assert len(rows) == 1 + 4 * 2
        assert rows[0] == ["1", "0", "0.900 [0.880, 0.920]", "90%", "0.90", "85%", "0.700"]
        assert [row[:2] for row in rows[1:3]] == [["1", "0"], ["4", "all"]]


def test_every_number_of_the_methods_tables_is_the_tables(study, page):
    for branch in branches(ALL_VARIANTS):
        model, seed, variant = branch
        (table,) = page.find(
            "table", data_branch=f"{model}.seed-{seed}.{variant}", **{"class": "sortable stacked methods"}
        )
        alone = variant == "alone"
        left_out = {"joint_shortlist"} | (set() if variant == "exact" else set(LENSES) - {"jtc"})
        methods = [method for method in METHOD_ORDER if (method in JOINT_METHODS if alone else method not in left_out)]
        assert len(page.find("tr", inside=table)) == 1 + len(methods)
        for method in methods:
            look = METHOD_STYLES[method]
            (row,) = page.find("tr", inside=table, data_method=method)
            expected = row_of(study, "methods", branch, method=method)
            (head,) = page.find("th", inside=row)
            assert page.text(head) == look.name
            unit = row_of(study, "methods", branch, method="joint" if alone else "ojfa")
            ratio = expected["parameters"] / unit["parameters"]
            cells = page.find("td", inside=row)
            values = [expected["parameters"], ratio, expected["fit_cost"], expected["check"]]
            values += [*expected[["precision", "surprisal", "precision_at_5"]]]
            values += [expected["worst_precision"], expected["worst_level"]]
            texts = [page.text(cell) for cell in cells]
            if method == "token_table":  # which has no number of parameters
                assert texts[:2] == ["–", "–"]
            else:
                assert texts[0] == f"{int(expected['parameters']):,}"
                assert texts[1] == FORMATS["ratio"](ratio)
            assert texts[2] == ("–" if pd.isna(expected["fit_cost"]) else FORMATS["general"](expected["fit_cost"]))
            assert texts[3] == FORMATS["general"](expected["check"])
            known = [pair for pair in zip(cells, values, strict=True) if pd.notna(pair[1])]
            cells, values = zip(*known, strict=True)
            texts = texts[4:]
            found = [float(page.elements[cell][1]["data-value"]) for cell in cells]
            assert found == pytest.approx([float(value) for value in values], rel=1e-5)
            for text, metric, digits in ((texts[0], "precision", 3), (texts[1], "surprisal", 2)):
                low, high = expected[f"{metric}_low"], expected[f"{metric}_high"]
                assert text == f"{expected[metric]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
            assert texts[2] == f"{expected['precision_at_5']:.3f}"
            assert texts[3] == f"{expected['worst_precision']:.3f}"
            assert texts[4] == f"{expected['worst_level']}"


def test_the_claims_tables_are_the_tables(study, page):
    claims = read_frame(study / "summary" / "claims.parquet")
    for model, seed, variant in branches():
        (table,) = page.find("table", data_branch=f"{model}.seed-{seed}.{variant}", **{"class": "sortable claims"})
        found = claims.query("model == @model and seed == @seed and variant == @variant").dropna(subset="rule")
        found = found[~found["statistic"].str.contains("_quarter|_half") & ~found["rule"].isin(["> 0.8", "> 0.95"])]
        chosen, later = (found[found["positions"] == positions].itertuples() for positions in ("all", "1+"))
        for row, expected, other in zip(page.find("tr", inside=table)[1:], chosen, later, strict=True):
            assert page.text(page.find("th", inside=row)[0]).startswith(expected.claim)
            texts = [page.text(cell) for cell in page.find("td", inside=row)]
            assert texts[:2] == [expected.statistic.replace("_", " "), expected.metric]
            assert texts[2:4] == [expected.rule.replace(">=", "≥"), "yes" if expected.decides else "–"]
            interval = "" if pd.isna(expected.low) else f" [{expected.low:.3f}, {expected.high:.3f}]"
            estimate = f"{expected.estimate:.3f}{interval}".replace("-", "−")
            verdict = f"{VERDICT_STYLES[expected.verdict].mark} {expected.verdict}"
            assert texts[4:] == [estimate, verdict, other.verdict]


def test_the_selection_and_fits_are_the_tables(study, page):
    for branch in branches():
        model, seed, variant = branch
        section = page.elements[page.find("h3", id=f"{model}.seed-{seed}.{variant}")[0]][3]
        facts = page.text(page.find("dl", inside=section)[0])
        chosen = row_of(study, "scores", branch, ojfa=True)
        assert f"jump {chosen['jump']}, Dm = {chosen['score']:.5f}" in facts
        assert f"softmax share {chosen['softmax']:.3f}" in facts
        assert f"selected in {chosen['bootstrap_share']:.0%} of bootstrap draws" in facts
        rank = row_of(study, "claims", branch, positions="all", statistic="rank")["estimate"]
        assert f"{rank:.0f} of 4 single jumps" in facts

        jumps = read_frame(study / "summary" / "jumps.parquet").query("model == @model and seed == @seed")
        jumps = jumps[jumps["variant"] == variant]
        single, joint = jumps[jumps["jump"] != "joint"], jumps[jumps["jump"] == "joint"].iloc[0]
        (table,) = page.find("table", inside=section, **{"class": "sortable fits"})
        (singles,) = page.find("tr", inside=table, data_jumps="single")
        texts = [page.text(cell) for cell in page.find("td", inside=singles)]
        assert texts[1] == general(single["gap"].median())
        worst = single.loc[single["gap"].idxmax()]
        assert texts[2] == f"{general(worst['gap'])} jump {worst['jump']}"
        last = "ridge" if variant == "exact" else "best_epoch"
        assert texts[5].startswith(f"{single[last].median():.3g} [")
        (joints,) = page.find("tr", inside=table, data_jumps="joint")
        texts = [page.text(cell) for cell in page.find("td", inside=joints)]
        assert (texts[1], texts[5]) == (general(joint["gap"]), f"{joint[last]:.3g}")


@pytest.mark.parametrize(
    ("rank", "crossing", "words"),
    [
        (1, 0, "identity is at least as precise from the first level on"),
        (3, 2, "in precision, from level 2 on"),
        (4, 4, "in precision, at no exit level"),
    ],
)
def test_rank_and_crossing_are_those_of_the_claims(study, tmp_path, rank, crossing, words):
    """Not computed anew from rounded means, where ties could be decided otherwise."""
    shutil.copytree(study, tmp_path / "demo")
    table = read_frame(study / "summary" / "claims.parquet")
    for statistic, value in (("rank", rank), ("crossing_level", crossing)):
        table.loc[table["statistic"] == statistic, "estimate"] = value
    write_frame(tmp_path / "demo" / "summary" / "claims.parquet", table)
    page = Page(rendered(tmp_path / "demo"))
    text = page.text(page.find("main")[0])
    assert text.count(f"{rank} of 4 single jumps") == len(branches())
    assert text.count(words) == len(branches())
    assert ("the best is jump" in text) == (rank > 1)


def test_claims_without_the_rank_are_refused(study, tmp_path):
    shutil.copytree(study, tmp_path / "demo")
    table = read_frame(study / "summary" / "claims.parquet")
    write_frame(tmp_path / "demo" / "summary" / "claims.parquet", table[table["statistic"] != "rank"])
    with pytest.raises(
        OnejumpError, match=r"claims.parquet: has 0 rows of rank, expected one, for model .*; rerun summarise"
    ):
        rendered(tmp_path / "demo")


def test_the_full_table_has_every_level_of_every_method(study, page):
    for model, seed, variant in branches():
        (table,) = page.find("table", data_branch=f"{model}.seed-{seed}.{variant}", **{"class": "sortable levels"})
        levels = read_frame(study / "summary" / "levels.parquet").query("model == @model and seed == @seed")
        levels = levels[~levels["method"].isin([*FLOOR_METHODS, *(set(LENSES) - {"jtc", "tuned_lens"})])]
        expected = sorted(levels.loc[levels["variant"] == variant, "kl"])
        rows = [page.find("td", inside=row) for row in page.find("tr", inside=table)[1:]]
        found = sorted((page.elements[cells[5]][1]["data-value"] for cells in rows), key=float)
        assert found == [f"{value:.4g}" for value in expected]


def test_the_note_on_the_largest_rows_says_what_the_table_does(study, page):
    for branch in branches():
        (section,) = page.find("section", aria_labelledby=f"{branch[0]}.seed-{branch[1]}.{branch[2]}")
        (note,) = [text for tag in page.find("p", inside=section) if "after the final norm" in (text := page.text(tag))]
        assert "the largest 1% of the rows (30) hold 60% at level 1, where that is most, 50% at level" in note
        assert "At position 0 are 2, 2 and 2 of them. All rows at position 0 hold 70%" in note
