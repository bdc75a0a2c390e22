"""The page of a trajectory in a real browser: as the report, nothing leaves it, and everyone can read it."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from lens_tables import NAMES, TOKENS, K, lens_table

from onejump.report.lens import MEASURES, render_lens

pytestmark = pytest.mark.xdist_group("browser")  # one worker, one browser

FEW = 4  # blocks, where each cell takes its time
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def pages_of(tmp_path_factory):
    """From a number of blocks to the page of a model with so many."""
    folder = tmp_path_factory.mktemp("lens")
    for n_blocks in (K, FEW):
        page = render_lens(lens_table(n_blocks), NAMES, "SmolLM2-135M")
        (folder / f"{n_blocks}.html").write_text(page, encoding="utf-8")
    return lambda n_blocks: folder / f"{n_blocks}.html"


@pytest.fixture
def open_page(browser, pages_of):
    """A function that opens the page; a request, a message of the console or an error of a script fails the test."""
    complaints, pages = [], []

    def opened(n_blocks=K, **options):
        lens = pages_of(n_blocks)
        page = browser.new_page(**({"viewport": DESKTOP} | options))
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url == lens.as_uri() or complaints.append(request.url))
        page.goto(lens.as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert not complaints


def require_told(page, position: int, level: int) -> None:
    """The readout has the table's numbers of the cell, for all methods."""
    about, *exits, _ = page.locator(".readout").inner_text().split(" · ")
    assert about.endswith(f", level {level}")
    table = lens_table().set_index(["position", "level", "method"])
    for text, method in zip(exits, NAMES, strict=True):
        found = re.fullmatch(rf"{method} “.*” ([\d.]+), KL ([\d.]+), entropy ([\d.]+)", text).groups()
        expected = table.loc[(position, level, method)][["probability", "kl", "entropy"]].tolist()
        assert list(map(float, found)) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("method", NAMES)
def test_a_cell_is_told_to_mouse_and_keyboard(open_page, method):
    page = open_page()
    region = page.locator(f"[data-method={method}]")
    for position, level in ((0, 29), (3, 20), (9, 0)):
        cell = region.locator("tbody tr").nth(K - level).locator("td").nth(position)
        cell.hover()
        require_told(page, position, level)
        assert "at" in cell.get_attribute("class").split()
    region.focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
    require_told(page, 10, 2)
    assert page.locator("td.at").count() == 1
    page.keyboard.press("Tab")
    assert page.locator("td.at").count() == 0


def test_keys_do_not_leave_the_table(open_page):
    page = open_page()
    page.locator("[data-method=jump]").focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
    assert f"After “␣the”, level {K}" in page.locator(".readout").inner_text()


@pytest.mark.parametrize("measure", MEASURES)
def test_cells_are_shaded_by_the_chosen_measure(open_page, measure):
    page = open_page()
    page.locator(f"#by-{measure}").check()
    cells = page.locator("[data-method=jump] tbody tr").nth(3).locator("td")
    found = cells.evaluate_all(
        "(cells, name) => cells.map(cell => [getComputedStyle(cell).backgroundColor,"
        " parseFloat(cell.style.getPropertyValue(name))])",
        f"--{measure}",
    )
    reds = [red_of(colour) for colour, _ in sorted(found, key=lambda pair: pair[1])]
    assert reds == sorted(reds, reverse=True) and len(set(reds)) > 5  # the more, the bluer
    assert page.locator(f".most-{measure}").is_visible() and page.locator(".most:visible").count() == 1


def red_of(colour: str) -> float:
    """The red part of `rgb(...)` or `color(srgb ...)`, the first number in it."""
    return float(colour.split("(")[1].removeprefix("srgb ").replace(",", " ").split()[0])


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_overflows_and_no_one_is_shut_out(open_page, size, scheme, measure):
    page = open_page(viewport=size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page = open_page(FEW, viewport=size, color_scheme=scheme)
    page.locator(f"#by-{measure}").check()
    found = Axe().run(page).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found if rule["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_reading_a_cell_moves_nothing(open_page, size):
    page = open_page(viewport=size)
    before = page.locator("[data-method=jump]").bounding_box()
    for position in range(len(TOKENS)):
        page.locator("[data-method=jump] tbody tr").nth(5).locator("td").nth(position).dispatch_event("pointermove")
        after = page.locator("[data-method=jump]").bounding_box()
        assert after == before
