"""A made-up study of two models, two variants and two seeds, and the report on it."""

import itertools
import shutil

import pytest
from report_pages import ALL_VARIANTS, MODELS, SEEDS, VARIANTS, Page, branches, figure, kinds, rendered
from summary_tables import plot_figures, write_summary

from onejump.files.sealed import seal_svg
from onejump.study.layout import FIGURES, MODEL_FIGURES


def write_stand_in(path):
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><path d="M0 0H1"/></svg>')
    seal_svg(path)


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Two models, three variants, two seeds; two branches have the same real figures, the others stand-ins."""
    base = tmp_path_factory.mktemp("study") / "demo"
    write_summary(base / "summary", MODELS, ALL_VARIANTS, n_levels=4, seeds=SEEDS)
    write_summary(base / "one", MODELS[:1], VARIANTS[:1], n_levels=2)
    plot_figures(base / "one", base / "drawn")
    (base / "figures").mkdir()
    for branch in branches(ALL_VARIANTS):
        for kind in kinds(branch):
            path = figure(base, branch, kind)
            if branch[:2] == branches()[0][:2] and kind in FIGURES:
                shutil.copy(base / "drawn" / f"{MODELS[0]}.seed-0.paper.{kind}.svg", path)
            else:
                write_stand_in(path)
    for model, kind in itertools.product(MODELS, MODEL_FIGURES):
        write_stand_in(base / "figures" / f"{model}.{kind}.svg")
    return base


@pytest.fixture(scope="session")
def page(study):
    return Page(rendered(study))
