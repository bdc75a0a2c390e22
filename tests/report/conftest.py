"""A report on made-up tables with real figures, open in a real browser; without one the tests fail in CI."""

from pathlib import Path

import pytest
from browser import NoBrowserError, chromium
from missing import do_without
from summary_tables import config, hardware, plot_figures, timings, write_summary

from onejump.files.atomic import write_text
from onejump.report.page import render_report
from onejump.study.layout import Layout


@pytest.fixture(scope="session")
def browser():
    try:
        with chromium() as browser:
            yield browser
    except NoBrowserError as error:
        do_without(str(error))


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Path:
    """A study's folder with summary, figures and report, of two variants with 30 levels."""
    folder = tmp_path_factory.mktemp("study")
    results = folder / "results" / "demo"
    write_summary(results / "summary")
    plot_figures(results / "summary", results / "figures")
    report = folder / "reports" / "demo.html"
    versions = {"onejump": "0.1.0", "torch": "2.13.0"}
    links = {name: f"../results/demo/{name}" for name in ("summary", "figures")}
    layout = Layout(config(), results.parent)
    write_text(report, render_report(layout, versions, timings(), hardware(), links))
    return folder


@pytest.fixture(scope="session")
def report(study) -> Path:
    return study / "reports" / "demo.html"


@pytest.fixture
def page(browser, report):
    """The report on a desktop; a message of the console or an error of a script fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri())
    yield page
    context.close()
    assert not complaints
