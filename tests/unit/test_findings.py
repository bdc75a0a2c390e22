"""docs/findings.md: its tables are those of docs/results, and every number in its text stands in one of them."""

import re
import runpy

import pytest
from studies import ROOT

DOCS = ROOT / "docs"
# Digits with a point: what was measured. Whole numbers also count sentences, seeds and the like.
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(DOCS / "describe_results.py"))


def test_the_tables_of_the_findings_are_those_of_the_results(script):
    assert script["page"]() == (DOCS / "findings.md").read_text()
    used = set(script["TABLE"].findall((DOCS / "findings.md").read_text()))
    assert {name for _, name, _ in used} == set(script["MAKERS"])


def test_every_number_in_the_findings_stands_in_a_table_of_the_page(script):
    text = (DOCS / "findings.md").read_text()
    prose = script["TABLE"].sub("", text)
    tables = "".join(found[0] for found in script["TABLE"].finditer(text))
    known = set(DECIMAL.findall(tables))
    found = DECIMAL.findall(prose)
    assert len(found) > 20
    assert [number for number in found if number not in known] == []


def test_the_results_say_what_made_them(script):
    made = (script["RESULTS"] / "made-by.txt").read_text()
    assert re.search(r"^make study, at commit [0-9a-f]{40}", made, re.M)
    assert re.search(r"^torch==2\.13\.0", made, re.M)
