"""The page of a trajectory says what is in its table, whatever the tokens are."""

import json
import re

import pytest
from lens_tables import NAMES, TOKENS, K, lens_table

from onejump.report.lens import render_lens, visible


@pytest.fixture(scope="module")
def page() -> str:
    return render_lens(lens_table(), NAMES, "SmolLM2-135M")


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_what_is_told_of_each_cell_is_the_tables(page):
    data, table = data_of(page), lens_table().set_index(["position", "level", "method"])
    assert data["levels"] == K and len(data["tokens"]) == len(TOKENS)
    for position in range(len(TOKENS)):
        for method in NAMES:
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
    assert len(shades) == 3 * len(NAMES) * (K + 1) * len(TOKENS)
    assert min(shades) == 0 and max(shades) == 1  # KL beyond the end of the scale


def test_tokens_cannot_end_the_script_or_become_markup(page):
    assert "</script>" in TOKENS and "<b>" in TOKENS
    assert page.count("</script>") == 2 and "<b>" not in page
    assert "&lt;/script&gt;" in page and "␣the" in page and "⏎" in page and "∅" in page
    assert data_of(page)["tokens"][TOKENS.index("</script>")] == "</script>"


def test_the_page_says_what_each_method_is(page):
    headings = re.findall(r"<h2 [^>]*>(.*)</h2>", page)
    assert headings == [
        "One jump for all levels, rank 5, with gates",
        "A jump for each level, rank 5",
        "Identity (logit lens)",
    ]


@pytest.mark.parametrize(
    ("token", "seen"),
    [
        (" the", "␣the"),
        ("\n\n", "⏎⏎"),
        ("\t", "⇥"),
        ("", "∅"),
        ("\x00", "U+0000"),
        ("\r", "U+000D"),
        ("a\u200b", "aU+200B"),
    ],
)
def test_every_letter_of_a_token_can_be_seen(token, seen):
    assert visible(token) == seen


@pytest.mark.parametrize("token", ["é", "中", "🙂", "ж", "&amp;", "$x_1$"])
def test_letters_that_can_be_seen_are_left_alone(token):
    assert visible(token) == token
