"""The report is whole, stands alone, and says what was run and what came out."""

import itertools
import re
import shutil

import pandas as pd
import pytest
import yaml
from report_pages import (
    ALL_VARIANTS,
    MODELS,
    SEEDS,
    VARIANTS,
    VERSIONS,
    Page,
    branches,
    figure,
    kinds,
    rendered,
    row_of,
)
from summary_tables import N_TEST, N_TRAIN, TRANSFER_SENTENCES, config, hardware, read_frame, timings

from onejump import study_stages
from onejump.files.atomic import OnejumpError
from onejump.files.sealed import write_sealed_json
from onejump.files.tables import write_frame
from onejump.report.branch import KEY_METHODS
from onejump.report.style import METHOD_STYLES, VERDICT_STYLES
from onejump.study.layout import MODEL_FIGURES


def test_nothing_is_fetched(study, page):
    text = rendered(study)
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


def test_every_figure_is_there_with_a_label_and_a_caption(page):
    for model, seed, variant in branches(ALL_VARIANTS):
        for kind in kinds((model, seed, variant)):
            (drawing,) = page.find("div", data_branch=f"{model}.seed-{seed}.{variant}", data_kind=kind)
            attributes = page.elements[drawing][1]
            assert attributes["role"] == "img"
            assert f"{model}, variant {variant}, seed {seed}" in attributes["aria-label"]
            assert len(page.find("svg", inside=drawing)) == 1
            assert page.find("path", inside=drawing)
    n = dict.fromkeys(("methods", "joint_jump", "dynamic_exit"), N_TEST) | dict.fromkeys(("overview", "check_cost"), 0)
    n |= dict.fromkeys(("single_jumps", "transfer", "ranks", "sensitivity"), TRANSFER_SENTENCES)
    for element in page.find("figure"):
        (caption,) = page.find("figcaption", inside=element)
        (drawing,) = page.find("div", inside=element, role="img")
        kind = page.elements[drawing][1]["data-kind"]
        assert "Look " in page.text(caption)
        where = "|".join(MODELS) if kind in MODEL_FIGURES else r"variant \w+, seed \d"
        assert re.search(rf"({where})\. SVG PDF( \w+\.csv)+$", page.text(caption))
        assert not n.get(kind, N_TRAIN) or f"{n.get(kind, N_TRAIN):,}" in page.text(caption)


def test_the_key_table_has_a_row_for_each_branch_and_the_better_equal_jump_in_bold(study, page):
    (table,) = page.find("table", id="key-table")
    heads = [page.text(head) for head in page.find("th", inside=table, scope="col")]
    for row, branch in zip(page.find("tr", inside=table)[1:], branches(), strict=True):
        cells = dict(zip(heads, page.find("th", inside=row) + page.find("td", inside=row), strict=True))
        assert (page.text(cells["Model"]), page.text(cells["Seed"]), page.text(cells["Variant"])) == (
            branch[0],
            str(branch[1]),
            branch[2],
        )
        chosen = row_of(study, "scores", branch, ojfa=True)
        assert page.text(cells["Jump m"]) == str(chosen["jump"])
        written = {}
        for method in KEY_METHODS:
            look, expected = METHOD_STYLES[method], row_of(study, "methods", branch, method=method)
            found = float(page.elements[cells[look.name]][1]["data-value"])
            assert found == pytest.approx(expected["precision"], rel=1e-5)
            written[method] = f"{expected['precision']:.3f}"
            assert page.text(cells[look.name]).startswith(written[method])
        best = max(written["ojfa"], written["joint"])
        bold = {
            method for method in KEY_METHODS if "best" in page.elements[cells[METHOD_STYLES[method].name]][1]["class"]
        }
        assert bold == {method for method in ("ojfa", "joint") if written[method] == best}


def test_the_table_of_shared_jumps_sets_each_beside_the_floor_and_its_cost(study, page):
    (table,) = page.find("table", id="shared-jumps-table")
    rows = [[page.text(cell) for cell in page.find("td", inside=row)] for row in page.find("tr", inside=table)[1:]]
    names = [page.text(page.find("th", inside=row)[0]) for row in page.find("tr", inside=table)[1:]]
    expected = []
    for model, seed in itertools.product(MODELS, SEEDS):
        for variant in ALL_VARIANTS:
            methods = ["joint", "joint_shortlist"] if variant == "alone" else ["ojfa", "joint"]
            methods = ["token_table", "identity", *methods] if variant == VARIANTS[0] else methods
            expected += [(model, seed, variant, method) for method in methods]
    for row, name, (*branch, method) in zip(rows, names, expected, strict=True):
        model, seed, variant = branch
        shown = "one_jump" if (variant, method) == ("alone", "joint") else method
        assert name == METHOD_STYLES[shown].name
        assert row[:3] == [model, str(seed), variant if method in ("ojfa", "joint", "joint_shortlist") else "–"]
        found = row_of(study, "methods", tuple(branch), method=method)
        later = read_frame(study / "summary" / "by_position.parquet").query(
            "model == @model and seed == @seed and variant == @variant and method == @method and position == '1+'"
        )
        later = later[later["level"].isna()].iloc[0]
        assert row[3].startswith(f"{found['precision']:.3f} [")
        assert row[4].startswith(f"{later['precision']:.3f} [")
        cost = f"{100 * found['check_cost']:.2g}% of the model"
        assert row[7] == f"{found['check']:,} {cost}"


def test_the_table_of_gains_has_each_statement_with_its_verdicts(page):
    (table,) = page.find("table", id="gains-table")
    rows = [[page.text(cell) for cell in page.find("td", inside=row)] for row in page.find("tr", inside=table)[1:]]
    names = [page.text(page.find("th", inside=row)[0]) for row in page.find("tr", inside=table)[1:]]
    claims = [
        "G1 better than OJFA",
        "G6 share of JTC and of the tuned lens",
        "G4 no null explains its gain over identity",
    ]
    assert names == claims * len(MODELS)  # with several seeds, of all of them together
    verdict = f"{VERDICT_STYLES['supported'].mark} supported"
    assert rows[0] == [MODELS[0], "alone", "paper", "precision", "0.120 [0.100, 0.140]", "> 0", verdict, verdict]
    assert rows[1][5:] == ["–", "–", "–"]


@pytest.mark.parametrize(("whole", "later"), [(0.93, 0.93), (0.6, 0.95), (0.93, 0.6), (0.6, 0.5)])
def test_the_first_paragraph_says_where_a_null_explains_the_gain(study, tmp_path, whole, later):
    base = tmp_path / "demo"
    shutil.copytree(study, base)
    table = read_frame(base / "summary" / "one_jump_spread.parquet")
    for positions, share in (("all", whole), ("1+", later)):
        table.loc[(table["claim"] == "G4") & (table["positions"] == positions), "mean"] = share
    write_frame(base / "summary" / "one_jump_spread.parquet", table)
    page = Page(rendered(base))
    (found,) = page.find("p", id="nulls")
    text = page.text(found)
    assert f"{whole:.0%}, and {later:.0%} without first tokens ({MODELS[0]}, bias against alone)" in text
    told = f"as with {', '.join(f'{model}, bias' for model in MODELS)}, the gain is not the jump’s."
    assert (told in text, "No null has nine tenths of it." in text) == (
        max(whole, later) >= 0.9,
        max(whole, later) < 0.9,
    )


def test_a_jump_without_a_gain_over_identity_has_no_share_of_it(study, tmp_path):
    base = tmp_path / "demo"
    shutil.copytree(study, base)
    table = read_frame(base / "summary" / "one_jump_spread.parquet")
    table.loc[table["claim"] == "G4", ["mean", "low", "high"]] = float("nan")
    write_frame(base / "summary" / "one_jump_spread.parquet", table)
    page = Page(rendered(base))
    assert page.find("p", id="nulls") == []
    (found,) = page.find("table", id="gains-table")
    assert "G4 no null explains its gain over identityalonebiasprecision– < 0.9" in page.text(found)


def test_with_one_seed_gains_are_those_of_the_seed(study):
    page = Page(rendered(study, config=config(MODELS, ALL_VARIANTS, SEEDS[1:])))
    (table,) = page.find("table", id="gains-table")
    rows = [[page.text(cell) for cell in page.find("td", inside=row)] for row in page.find("tr", inside=table)[1:]]
    assert len(rows) == 3 * len(MODELS) * len(SEEDS)  # the tables hold more seeds than the study has
    assert {row[4] for row in rows} == {"0.120 [0.100, 0.140]", "0.930 [0.910, 0.950]"}


def test_a_variant_with_the_joint_jump_alone_has_a_section_without_a_choice(page):
    (section,) = page.find("section", aria_labelledby=f"{MODELS[0]}.seed-0.alone")
    text = page.text(section)
    assert "the joint jump alone: fit kl" in text and "divergence on the validation slice from 3.50 to" in text
    assert "OJFA" not in text and "Selected jump" not in text


def test_the_verdicts_table_has_a_row_for_each_model_and_variant(study, page):
    (table,) = page.find("table", id="verdicts-table")
    verdicts = read_frame(study / "summary" / "verdicts.parquet")
    rows = page.find("tr", inside=table)[1:]
    for row, (model, variant) in zip(rows, [(m, v) for m in MODELS for v in VARIANTS], strict=True):
        found = [page.text(cell) for tag in ("th", "td") for cell in page.find(tag, inside=row)]
        chosen = verdicts[(verdicts["model"] == model) & (verdicts["variant"] == variant)]
        chosen = chosen[chosen["positions"] == "all"]
        verdicts_of = [f"{VERDICT_STYLES[name].mark} {name}" for name in chosen.sort_values("claim")["verdict"]]
        assert found == [model, variant, *verdicts_of]


def test_verdicts_that_are_others_without_position_0_are_told(study, page, tmp_path):
    text = page.text(page.find("main")[0])
    for model, variant in [(m, v) for m in MODELS for v in VARIANTS]:
        assert f"{model}, {variant} has C2 inconclusive;" in text
    assert "all others are the same." in text
    shutil.copytree(study, tmp_path / "demo")
    path = tmp_path / "demo" / "summary" / "verdicts.parquet"
    table = read_frame(path)
    same = table[table["positions"] == "all"]
    write_frame(path, pd.concat([same, same.assign(positions="1+")]))
    told = Page(rendered(tmp_path / "demo"))
    assert "which is a case of its own, all of them are the same." in told.text(told.find("main")[0])


def test_fits_that_have_not_converged_are_told_and_closed_forms_never_are(study, page, tmp_path):
    (note,) = page.find("p", id="unconverged")
    told = page.text(note)
    jumps = read_frame(study / "summary" / "jumps.parquet")
    assert "exact, " not in told and jumps.loc[jumps["fit"] == "exact", "converged"].isna().all()
    adam = jumps[(jumps["model"] == MODELS[0]) & (jumps["variant"] == "paper")]
    far = adam[adam["gap"] > 0.01]
    gap = f"{100 * far['gap'].median():.2g}%"
    assert 0 < len(far) < len(adam)
    assert f"{MODELS[0]}, paper, {len(far)} of {len(adam)} jumps (median gap to the optimum {gap}, expected" in told
    shutil.copytree(study, tmp_path / "demo")
    path = tmp_path / "demo" / "summary" / "jumps.parquet"
    write_frame(path, jumps.assign(fit="kl", converged=jumps["gap"] > 0.01))
    assert "jumps (the divergence was still falling)" in rendered(tmp_path / "demo")
    write_frame(path, jumps.assign(converged=True))
    assert "unconverged" not in rendered(tmp_path / "demo")


def test_the_tables_of_one_model_do_not_name_it_in_each_row(study):
    page = Page(rendered(study, config=config(MODELS[:1], VARIANTS, SEEDS)))
    for name in ("verdicts-table", "key-table"):
        (table,) = page.find("table", id=name)
        heads = [page.text(head) for head in page.find("th", inside=table, scope="col")]
        assert "Model" not in heads
        assert "Variant" in heads
        rows = page.find("tr", inside=table)[1:]
        assert {page.text(page.find("th", inside=row)[0]) for row in rows} == set(VARIANTS)
        assert {len(page.find("td", inside=row)) for row in rows} == {len(heads) - 1}


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
    for words in (
        f"{N_TRAIN:,} training and {N_TEST:,} test",
        "the best epoch of Adam fits; the ridge of exact fits; the best",
    ):
        assert words in methods
    assert "fits weighted by the output head" not in methods
    (code,) = [index for index in page.find("code") if page.elements[index][2].startswith("study: demo")]
    assert yaml.safe_load(page.elements[code][2]) == config(MODELS, ALL_VARIANTS, SEEDS)


def test_published_values_stand_beside_the_measured_ones(study):
    published = {"gpt2-xl": {"source": "arXiv 2504.13984", "ojfa": 26, "jump_parameters": 57600.0}}
    settings = config(MODELS, VARIANTS, SEEDS) | {"published": published}
    page = Page(rendered(study, config=settings))
    (table,) = page.find("table", **{"class": "sortable published"})
    rows = [page.find("td", inside=row) for row in page.find("tr", inside=table)[1:]]
    assert len(rows) == len(VARIANTS) * len(SEEDS)  # of the one model with published values
    methods = read_frame(study / "summary" / "methods.parquet").set_index(["model", "seed", "variant", "method"])
    scores = read_frame(study / "summary" / "scores.parquet").set_index(["model", "seed", "variant"])
    for cells, (seed, variant) in zip(rows, ((s, v) for s in SEEDS for v in VARIANTS), strict=True):
        chosen = scores.loc[("gpt2-xl", seed, variant)].query("ojfa")["jump"].item()
        one, every = (methods.loc[("gpt2-xl", seed, variant, m), "parameters"] for m in ("ojfa", "n_njtc"))
        assert page.text(cells[1]) == f"{chosen} published: 26"
        assert page.text(cells[2]) == f"{one:,.0f} published: 57,600"
        assert page.text(cells[3]) == f"{every:,.0f} published: –"


def test_without_published_values_there_is_no_such_table(page):
    assert not page.find("table", **{"class": "sortable published"})


def test_the_structure_serves_readers_without_a_mouse_or_eyes(page):
    (html,) = page.find("html")
    assert page.elements[html][1]["lang"] == "en"
    assert len(page.find("h1")) == 1
    levels = [int(tag[1]) for tag, *_ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for table in page.find("table"):
        heads = page.find("th", inside=table, scope="col")
        assert heads
        if "sortable" in (page.elements[table][1].get("class") or ""):
            assert all(page.find("button", inside=head) for head in heads)
            container = page.elements[page.elements[table][3]][1]
            assert "scroll" in container["class"]
            assert container["tabindex"] == "0"


def test_a_missing_table_or_figure_is_named(study, tmp_path):
    base = tmp_path / "demo"
    shutil.copytree(study, base)
    for path in (base / "summary" / "jumps.parquet", figure(base, branches()[1], "fits")):
        kept = path.read_bytes()
        path.unlink()
        with pytest.raises(OnejumpError, match=re.escape(path.name)) as error:
            rendered(base)
        assert "\n" not in str(error.value)
        path.write_bytes(kept)
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.6", 1))
    with pytest.raises(OnejumpError, match=f"{re.escape(path.name)}: damaged"):
        rendered(base)


def test_a_model_seed_or_variant_without_rows_is_refused(study):
    for changed in (
        config(("third", *MODELS), VARIANTS, SEEDS),
        config(MODELS, VARIANTS, (4, *SEEDS)),
        config(MODELS, ("new", *VARIANTS), SEEDS),
    ):
        with pytest.raises(OnejumpError, match=r"third|seed 4|variant new"):
            rendered(study, config=changed)


def test_names_are_escaped_and_missing_numbers_are_dashes(study, tmp_path):
    base = tmp_path / "demo"
    shutil.copytree(study, base)
    table = read_frame(base / "summary" / "models.parquet").assign(name="<b>&co", revision=None)
    write_frame(base / "summary" / "models.parquet", table)
    methods = read_frame(base / "summary" / "methods.parquet")
    methods.loc[methods["method"] == "arbitrary", ["precision_at_5", "worst_level"]] = float("nan")
    write_frame(base / "summary" / "methods.parquet", methods)
    text = rendered(base, config=config(MODELS[:1], VARIANTS[:1], SEEDS[:1]), timings=timings().iloc[:0])
    assert "&lt;b&gt;&amp;co" in text
    assert "<b>&co" not in text
    assert '<code class="digest">–</code>' in text
    assert '<td class="n" data-value="">–</td>' in text
    assert "No stage times were recorded." in text
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.S).lower().replace("isnan", "")


def test_the_stage_takes_timings_and_hardware_as_tables_and_links_to_the_study(study, tmp_path):
    write_sealed_json(tmp_path / "config.json", config(MODELS, VARIANTS, SEEDS))
    write_frame(tmp_path / "timings.parquet", timings())
    write_frame(tmp_path / "hardware.parquet", hardware())
    out = study.parent / "reports" / "demo.html"
    files = (tmp_path / "config.json", tmp_path / "timings.parquet", tmp_path / "hardware.parquet")
    study_stages.render_report(study, *files, out)
    text = out.read_text(encoding="utf-8")
    assert 'href="../demo/summary/levels.csv"' in text
    assert "NVIDIA H100 80GB HBM3" in text
    assert "2 h 02 min" in text
    out.unlink()
    write_frame(tmp_path / "hardware.parquet", hardware().drop(columns="jobs"))
    with pytest.raises(OnejumpError, match=r"hardware.parquet: has no column jobs, only device"):
        study_stages.render_report(study, *files, out)
    assert not out.exists()
