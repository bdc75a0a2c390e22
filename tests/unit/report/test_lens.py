"""The page of a trajectory says what is in its table, whatever the tokens are."""

import json
import re

import pytest
from lens_tables import CONFIG, TOKENS, K, lens_table

from onejump.report.lens import render_lens


@pytest.fixture(scope="module")
def page() -> str:
    return render_lens(lens_table(), CONFIG)


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_what_is_told_of_each_cell_is_the_tables(page):
    data, table = data_of(page), lens_table().set_index(["position", "level", "method"])
    assert data["levels"] == K and len(data["tokens"]) == len(TOKENS)
    for position in range(len(TOKENS)):
        for method in ("jump", "identity"):
            for level in range(K):
                row = table.loc[(position, level, method)]
                _, *numbers = data["readings"][method][level][position]
                assert numbers == pytest.approx(row[["probability", "kl", "entropy"]].tolist(), abs=6e-5)
        assert data["readings"]["model"][position][1] == pytest.approx(
            table.loc[(position, K, "model")]["probability"], abs=6e-5
        )


def test_cells_that_agree_with_the_final_prediction_are_marked(page):
    table = lens_table()
    final = table[table["method"] == "model"].set_index("position")["predicted_id"]
    agree = (table["predicted_id"] == table["position"].map(final)) & (table["method"] != "model")
    assert 0 < page.count('<td class="same"') == agree.sum() < len(table)


def test_shades_are_between_none_and_all(page):
    shades = [float(value) for value in re.findall(r"--(?:probability|kl|entropy):([\d.]+)", page)]
    assert len(shades) == 3 * (2 * K + 2) * len(TOKENS)
    assert min(shades) == 0 and max(shades) == 1  # KL beyond the end of the scale


def test_tokens_cannot_end_the_script_or_become_markup(page):
    assert "</script>" in TOKENS and "<b>" in TOKENS
    assert page.count("</script>") == 2 and "<b>" not in page
    assert "&lt;/script&gt;" in page and "␣the" in page and "⏎" in page and "∅" in page
    assert data_of(page)["tokens"][TOKENS.index("</script>")] == "</script>"
