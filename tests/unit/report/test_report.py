"""The report is whole, stands alone, and says what the tables say."""

import itertools
import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest
import yaml
from summary_tables import (
    N_TEST,
    N_TRAIN,
    TRANSFER_SENTENCES,
    config,
    hardware,
    plot_figures,
    timings,
    write_summary,
)

from onejump.files.atomic import OnejumpError
from onejump.report.figures import EXACT_FIGURES, FIGURES, MODEL_FIGURES
from onejump.report.page import render
from onejump.report.style import METHOD_STYLES, VERDICT_STYLES

MODELS, VARIANTS, SEEDS = ("smollm2-135m", "gpt2-xl"), ("paper", "exact"), (0, 3)
VERSIONS = {"onejump": "0.1.0", "torch": "2.13.0"}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A page as a list of elements in order: [tag, attributes, text, parent, index after the last descendant]."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {[self.elements[i][0] for i in self._open]}"

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attributes):
        parent = self._open[-1] if self._open else None
        self.elements.append([tag, dict(attributes), "", parent, len(self.elements) + 1])

    def handle_endtag(self, tag):
        closed = self.elements[self._open.pop()]
        assert closed[0] == tag, f"</{tag}> closes <{closed[0]}>"
        closed[4] = len(self.elements)

    def handle_data(self, data):
        for index in self._open:
            self.elements[index][2] += data

    def find(self, tag, inside=None, **attributes):
        """Indices of the elements of a tag with these attributes, anywhere inside the element `inside`."""
        wanted = {key.replace("_", "-"): value for key, value in attributes.items()}.items()
        first, last = (0, len(self.elements)) if inside is None else (inside + 1, self.elements[inside][4])
        return [i for i in range(first, last) if self.elements[i][0] == tag and wanted <= self.elements[i][1].items()]

    def text(self, index):
        return " ".join(self.elements[index][2].split())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two models, two variants, two seeds; two branches have the same real figures, the others stand-ins."""
    base = tmp_path_factory.mktemp("study")
    write_summary(base / "summary", MODELS, VARIANTS, n_levels=4, seeds=SEEDS)
    write_summary(base / "one", MODELS[:1], VARIANTS[:1], n_levels=2)
    plot_figures(base / "one", base / "drawn")
    (base / "figures").mkdir()
    stand_in = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><path d="M0 0H1"/></svg>'
    for branch in branches():
        for kind in kinds(branch):
            path = figure(base, branch, kind)
            if branch[:2] == branches()[0][:2] and kind in FIGURES:
                shutil.copy(base / "drawn" / f"{MODELS[0]}.seed-0.paper.{kind}.svg", path)
            else:
                path.write_text(stand_in)
    for model, kind in itertools.product(MODELS, MODEL_FIGURES):
        (base / "figures" / f"{model}.{kind}.svg").write_text(stand_in)
    return base


@pytest.fixture(scope="module")
def page(study):
    return Page(rendered(study))


def branches():
    return [(model, seed, variant) for model in MODELS for seed in SEEDS for variant in VARIANTS]


def kinds(branch):
    return FIGURES | (EXACT_FIGURES if branch[2] == "exact" else {})


def figure(base, branch, kind):
    model, seed, variant = branch
    return base / "figures" / f"{model}.seed-{seed}.{variant}.{kind}.svg"


def rendered(base, **changes):
    arguments = {"config": config(MODELS, VARIANTS, SEEDS), "versions": VERSIONS} | changes
    arguments = {"timings": timings(), "hardware": hardware()} | arguments
    render("demo", base / "summary", base / "figures", path=base / "report.html", **arguments)
    return (base / "report.html").read_text(encoding="utf-8")


def row_of(base, name, branch, **conditions):
    table = pd.read_csv(base / "summary" / f"{name}.csv")
    for column, value in {**dict(zip(("model", "seed", "variant"), branch, strict=True)), **conditions}.items():
        table = table[table[column] == value]
    return table.iloc[0]


def general(value):
    """Three digits, with powers of ten as print sets them."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return mantissa + (
        f"×10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}" if exponent else ""
    )


def test_nothing_is_fetched(study, page):
    text = (study / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)  # only clip paths, inside the page
    for tag, attributes, *_ in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            # A link is followed by who reads it; files beside the page are all that links lead to.
            beside = tag == "a" and re.fullmatch(r"(summary|figures)/[\w.-]+", attributes.get(name, ""))
            assert attributes.get(name, "#").startswith(("#", "data:")) or beside, (tag, attributes)
    for script in page.find("script"):
        assert not re.search(r"fetch|XMLHttpRequest|import|http", page.elements[script][2])
    (policy,) = page.find("meta", http_equiv="Content-Security-Policy")
    assert page.elements[policy][1]["content"].startswith("default-src 'none'")


def test_no_id_is_used_twice_and_no_reference_dangles(page):
    ids = [attributes["id"] for _, attributes, *_ in page.elements if "id" in attributes]
    known = set(ids)
    assert len(ids) == len(known)
    for _, attributes, *_ in page.elements:
        for name, value in attributes.items():
            targets = re.findall(r"url\(#([^)]+)\)", value or "")
            targets += [value[1:]] if name == "href" and value.startswith("#") else []
            targets += value.split() if name == "aria-labelledby" else []
            assert set(targets) <= known, (name, value)


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
        table = pd.read_csv(study / "summary" / "dynamic_exit.csv")
        for column, value in zip(("model", "seed", "variant"), branch, strict=True):
            table = table[table[column] == value]
        for row, method in zip(
            page.find("tr", inside=dynamic)[1:], ("identity", "n_njtc", "ojfa", "joint"), strict=True
        ):
            enough = table[(table["method"] == method) & (table["agreement"] >= 0.9)]
            expected = enough.sort_values("blocks").iloc[0]
            cells = [page.text(cell) for cell in page.find("td", inside=row)]
            assert cells[1:4] == [
                f"{expected['agreement']:.3f}",
                f"{expected['blocks']:.0%}",
                f"{expected['checks']:.2f}",
            ]
            fused = "–" if method == "identity" else f"{expected['fused_cost']:.0%}"
            assert cells[4:] == [fused, f"{expected['plain_cost']:.0%}"]


def test_every_figure_is_there_with_a_label_and_a_caption(page):
    for model, seed, variant in branches():
        for kind in kinds((model, seed, variant)):
            found = page.find("div", data_branch=f"{model}.seed-{seed}.{variant}", data_kind=kind)
            on_first_screen = kind == "methods" and variant == VARIANTS[0]
            assert len(found) == (2 if on_first_screen else 1)
            for drawing in found:
                attributes = page.elements[drawing][1]
                assert attributes["role"] == "img"
                assert f"{model}, variant {variant}, seed {seed}" in attributes["aria-label"]
                assert len(page.find("svg", inside=drawing)) == 1
                assert page.find("path", inside=drawing)
    n = {"methods": N_TEST, "dynamic_exit": N_TEST}
    n |= dict.fromkeys(("single_jumps", "transfer", "ranks", "sensitivity"), TRANSFER_SENTENCES)
    for element in page.find("figure"):
        (caption,) = page.find("figcaption", inside=element)
        (drawing,) = page.find("div", inside=element, role="img")
        kind = page.elements[drawing][1]["data-kind"]
        assert "Look " in page.text(caption)
        where = "|".join(MODELS) if kind in MODEL_FIGURES else r"variant \w+, seed \d"
        assert re.search(rf"({where})\. SVG PDF( \w+\.csv)+$", page.text(caption))
        assert f"{n.get(kind, N_TRAIN):,}" in page.text(caption)


def test_every_number_of_the_methods_tables_is_the_tables(study, page):
    for branch in branches():
        model, seed, variant = branch
        (table,) = page.find(
            "table", data_branch=f"{model}.seed-{seed}.{variant}", **{"class": "sortable stacked methods"}
        )
        for method, look in METHOD_STYLES.items():
            (row,) = page.find("tr", inside=table, data_method=method)
            expected = row_of(study, "methods", branch, method=method)
            (unembedding,) = page.find("th", inside=row)
            assert page.text(unembedding) == look.name
            ratio = expected["parameters"] / row_of(study, "methods", branch, method="ojfa")["parameters"]
            cells = page.find("td", inside=row)
            values = [expected["parameters"], ratio, *expected[["precision", "surprisal", "precision_at_5"]]]
            values += [expected["worst_precision"], expected["worst_level"]]
            found = [float(page.elements[cell][1]["data-value"]) for cell in cells]
            assert found == pytest.approx([float(value) for value in values], rel=1e-5)
            texts = [page.text(cell) for cell in cells]
            assert texts[0] == f"{expected['parameters']:,}"
            assert texts[1] == f"{ratio:,.0f}×"
            for text, metric, digits in ((texts[2], "precision", 3), (texts[3], "surprisal", 2)):
                low, high = expected[f"{metric}_low"], expected[f"{metric}_high"]
                assert text == f"{expected[metric]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
            assert texts[4] == f"{expected['precision_at_5']:.3f}"
            assert texts[5] == f"{expected['worst_precision']:.3f}"
            assert texts[6] == f"{expected['worst_level']}"


def test_the_key_table_has_a_row_for_each_branch_and_the_better_equal_jump_in_bold(study, page):
    (table,) = page.find("table", id="key-table")
    unembeddings = [page.text(unembedding) for unembedding in page.find("th", inside=table, scope="col")]
    for row, branch in zip(page.find("tr", inside=table)[1:], branches(), strict=True):
        cells = dict(zip(unembeddings, page.find("th", inside=row) + page.find("td", inside=row), strict=True))
        assert (page.text(cells["Model"]), page.text(cells["Seed"]), page.text(cells["Variant"])) == (
            branch[0],
            str(branch[1]),
            branch[2],
        )
        chosen = row_of(study, "scores", branch, ojfa=True)
        assert page.text(cells["Jump m"]) == str(chosen["jump"])
        written = {}
        for method, look in METHOD_STYLES.items():
            expected = row_of(study, "methods", branch, method=method)
            found = float(page.elements[cells[look.name]][1]["data-value"])
            assert found == pytest.approx(expected["precision"], rel=1e-5)
            written[method] = f"{expected['precision']:.3f}"
            assert page.text(cells[look.name]).startswith(written[method])
        best = max(written["ojfa"], written["joint"])
        bold = {
            method for method, look in METHOD_STYLES.items() if "best" in page.elements[cells[look.name]][1]["class"]
        }
        assert bold == {method for method in ("ojfa", "joint") if written[method] == best}


def test_the_claims_tables_are_the_tables(study, page):
    claims = pd.read_csv(study / "summary" / "claims.csv")
    for model, seed, variant in branches():
        (table,) = page.find("table", data_branch=f"{model}.seed-{seed}.{variant}", **{"class": "sortable claims"})
        chosen = claims.query("model == @model and seed == @seed and variant == @variant").dropna(subset="rule")
        for row, expected in zip(page.find("tr", inside=table)[1:], chosen.itertuples(), strict=True):
            assert page.text(page.find("th", inside=row)[0]).startswith(expected.claim)
            texts = [page.text(cell) for cell in page.find("td", inside=row)]
            interval = "" if pd.isna(expected.low) else f" [{expected.low:.3f}, {expected.high:.3f}]"
            estimate = f"{expected.estimate:.3f}{interval}".replace("-", "−")
            verdict = f"{VERDICT_STYLES[expected.verdict].mark} {expected.verdict}"
            assert texts[2:] == [estimate, expected.rule, verdict]


def test_the_verdicts_table_has_a_row_for_each_model_and_variant(study, page):
    (table,) = page.find("table", id="verdicts-table")
    verdicts = pd.read_csv(study / "summary" / "verdicts.csv")
    rows = page.find("tr", inside=table)[1:]
    for row, (model, variant) in zip(rows, [(m, v) for m in MODELS for v in VARIANTS], strict=True):
        found = [page.text(cell) for tag in ("th", "td") for cell in page.find(tag, inside=row)]
        chosen = verdicts[(verdicts["model"] == model) & (verdicts["variant"] == variant)]
        verdicts_of = [f"{VERDICT_STYLES[name].mark} {name}" for name in chosen.sort_values("claim")["verdict"]]
        assert found == [model, variant, *verdicts_of]


def test_the_selection_and_fits_are_the_tables(study, page):
    for branch in branches():
        model, seed, variant = branch
        section = page.elements[page.find("h3", id=f"{model}.seed-{seed}.{variant}")[0]][3]
        facts = page.text(page.find("dl", inside=section)[0])
        chosen = row_of(study, "scores", branch, ojfa=True)
        assert f"jump {chosen['jump']}, Dm = {chosen['score']:.5f}" in facts
        assert f"softmax share {chosen['softmax']:.3f}" in facts
        assert f"selected in {chosen['bootstrap_share']:.0%} of bootstrap draws" in facts
        grid = pd.read_csv(study / "summary" / "transfer.csv").query("model == @model and seed == @seed")
        means = grid[grid["variant"] == variant].groupby("jump")["precision"].mean()
        assert f"{(means > means[chosen['jump']]).sum() + 1} of {len(means)} single jumps" in facts

        jumps = pd.read_csv(study / "summary" / "jumps.csv").query("model == @model and seed == @seed")
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


def test_the_full_table_has_every_level_of_every_method(study, page):
    for model, seed, variant in branches():
        (table,) = page.find("table", data_branch=f"{model}.seed-{seed}.{variant}", **{"class": "sortable levels"})
        levels = pd.read_csv(study / "summary" / "levels.csv").query("model == @model and seed == @seed")
        expected = sorted(levels.loc[levels["variant"] == variant, "kl"])
        rows = [page.find("td", inside=row) for row in page.find("tr", inside=table)[1:]]
        found = sorted(float(page.elements[cells[6]][1]["data-value"]) for cells in rows)
        assert found == pytest.approx(expected, rel=1e-5)


def test_what_was_run_is_spelled_out(study, page):
    text = page.text(page.find("main")[0])
    assert f"{N_TRAIN:,} for training, {N_TEST:,} for testing, {TRANSFER_SENTENCES} of these" in text
    for words in ("gensim==4.4.0", "Example/Gpt2-Xl", "0123456789abcdef", "49,152", "pre_norm", "floor(H / 100)"):
        assert words in text
    rows = [[page.text(cell) for tag in ("th", "td") for cell in page.find(tag, inside=row)] for row in page.find("tr")]
    names, values = ([page.text(index) for index in page.find(tag)] for tag in ("dt", "dd"))
    assert VERSIONS.items() <= dict(zip(names, values, strict=True)).items()
    assert ["fit_jump", "62", "2 h 02 min", "2 min 41 s", "1,022 MB"] in rows
    assert [value for value in values if "jobs" in value] == [
        "NVIDIA H100 80GB HBM3 64 jobs",
        "Some CPU, 2 threads 2 jobs",
    ]
    methods = page.text(page.find("section", aria_labelledby="how")[0])
    for words in (f"{N_TRAIN:,} training and {N_TEST:,} test", "the best epoch of Adam fits; the ridge of exact fits"):
        assert words in methods
    assert "KL fits" not in methods
    (code,) = [index for index in page.find("code") if page.elements[index][2].startswith("study: demo")]
    assert yaml.safe_load(page.elements[code][2]) == config(MODELS, VARIANTS, SEEDS)


def test_published_values_stand_beside_the_measured_ones(study):
    published = {"gpt2-xl": {"source": "arXiv 2504.13984", "ojfa": 26, "jump_parameters": 57600.0}}
    settings = config(MODELS, VARIANTS, SEEDS) | {"reference": published}
    jobs = timings(), hardware()
    render("demo", study / "summary", study / "figures", settings, VERSIONS, *jobs, study / "reference.html")
    page = Page((study / "reference.html").read_text())
    (table,) = page.find("table", **{"class": "sortable reference"})
    rows = [page.find("td", inside=row) for row in page.find("tr", inside=table)[1:]]
    assert len(rows) == len(VARIANTS) * len(SEEDS)  # of the one model with published values
    methods = pd.read_csv(study / "summary" / "methods.csv").set_index(["model", "seed", "variant", "method"])
    scores = pd.read_csv(study / "summary" / "scores.csv").set_index(["model", "seed", "variant"])
    for cells, (seed, variant) in zip(rows, ((s, v) for s in SEEDS for v in VARIANTS), strict=True):
        chosen = scores.loc[("gpt2-xl", seed, variant)].query("ojfa")["jump"].item()
        one, every = (methods.loc[("gpt2-xl", seed, variant, m), "parameters"] for m in ("ojfa", "n_njtc"))
        assert page.text(cells[1]) == f"{chosen} published: 26"
        assert page.text(cells[2]) == f"{one:,.0f} published: 57,600"
        assert page.text(cells[3]) == f"{every:,.0f} published: –"


def test_without_published_values_there_is_no_such_table(page):
    assert not page.find("table", **{"class": "sortable reference"})


def test_the_structure_serves_readers_without_a_mouse_or_eyes(page):
    (html,) = page.find("html")
    assert page.elements[html][1]["lang"] == "en"
    assert len(page.find("h1")) == 1
    levels = [int(tag[1]) for tag, *_ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    for table in page.find("table"):
        unembeddings = page.find("th", inside=table, scope="col")
        assert unembeddings
        if "sortable" in (page.elements[table][1].get("class") or ""):
            assert all(page.find("button", inside=unembedding) for unembedding in unembeddings)
            container = page.elements[page.elements[table][3]][1]
            assert "scroll" in container["class"] and container["tabindex"] == "0"


def test_a_missing_table_or_figure_is_named(study, tmp_path):
    base = tmp_path / "copy"
    shutil.copytree(study, base)
    for path in (base / "summary" / "jumps.csv", figure(base, branches()[1], "fits")):
        kept = path.read_bytes()
        path.unlink()
        (base / "report.html").unlink(missing_ok=True)
        with pytest.raises(OnejumpError, match=re.escape(path.name)) as error:
            rendered(base)
        assert "\n" not in str(error.value)
        assert not (base / "report.html").exists()
        path.write_bytes(kept)
    path.write_text("<svg><g></svg>")
    with pytest.raises(OnejumpError, match=f"{re.escape(path.name)}: not valid SVG"):
        rendered(base)


def test_a_model_seed_or_variant_without_rows_is_refused(study):
    for changed in (
        config(("third", *MODELS), VARIANTS, SEEDS),
        config(MODELS, VARIANTS, (4, *SEEDS)),
        config(MODELS, ("new", *VARIANTS), SEEDS),
    ):
        with pytest.raises(OnejumpError, match="third|seed 4|variant new"):
            rendered(study, config=changed)


def test_names_are_escaped_and_missing_numbers_are_dashes(study, tmp_path):
    base = tmp_path / "copy"
    shutil.copytree(study, base)
    table = pd.read_csv(base / "summary" / "models.csv").assign(name="<b>&co", revision="")
    table.to_csv(base / "summary" / "models.csv", index=False)
    methods = pd.read_csv(base / "summary" / "methods.csv")
    methods.loc[methods["method"] == "arbitrary", ["precision_at_5", "worst_level"]] = float("nan")
    methods.to_csv(base / "summary" / "methods.csv", index=False)
    text = rendered(base, config=config(MODELS[:1], VARIANTS[:1], SEEDS[:1]), timings=timings().iloc[:0])
    assert "&lt;b&gt;&amp;co" in text
    assert "<b>&co" not in text
    assert '<code class="digest">–</code>' in text
    assert '<td class="n" data-value="">–</td>' in text
    assert "No stage times were recorded." in text
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.S).lower().replace("isnan", "")
