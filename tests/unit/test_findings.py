"""docs/findings.md: it is what its template and docs/results give, and no number in it was written by hand."""

import itertools
import re
import runpy

import pandas as pd
import pytest
from studies import ROOT

DOCS = ROOT / "docs"
# Digits with a point: what was measured. Whole numbers also count sentences, seeds and the like; names of models and
# links have points too.
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?!\w|\.\d)")


ONE_JUMP = ("joint", "joint_shortlist")


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(DOCS / "describe_results.py"))


def test_the_page_is_what_the_results_give(script):
    assert script["page"]() == (DOCS / "findings.md").read_text()


def test_no_measured_number_stands_in_the_template(script):
    template = re.sub(r"\{[{%].*?[%}]\}", "", script["TEMPLATE"].read_text(), flags=re.DOTALL)
    assert len(DECIMAL.findall((DOCS / "findings.md").read_text())) > 500
    assert DECIMAL.findall(template) == []


@pytest.mark.parametrize("where", [{"method": "joint"}, {"method": "jiont"}])
def test_a_number_without_one_row_is_refused(script, where):
    with pytest.raises(ValueError, match=r"models/methods: (no|\d+) rows? ha"):
        script["number"]("models/methods", "precision", **where)


def test_every_study_says_what_made_it(script):
    folders = [path for path in script["RESULTS"].iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        assert re.search(r"at commit [0-9a-f]{40}", (folder / "made-by.txt").read_text()), folder.name


def test_the_readme_tells_the_demos_results(script):
    """Each row of its table, with as many digits as the README gives: Adam's last ones differ between machines."""
    methods = {"constant": "constant", "table": "token_table", "identity": "identity", "arbitrary": "arbitrary"}
    methods |= {
        "one": "constant_by_position",
        "jump": "middle",
        "OJFA": "ojfa",
        "joint": "joint",
        "N-NJTC,": "n_njtc",
        "JTC,": "jtc",
    }
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| method | parameters |") :].split("\n\n")[0].replace("**", "").splitlines()[2:]
    assert len(table) == len(methods)
    for line in table:
        label, _, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for variant, cell in zip(("paper", "exact"), cells, strict=True):
            digits = len(cell.split()[0]) - 2
            where = {"variant": variant, "method": methods[label.split()[0]]}
            assert cell == script["estimate"]("demo/methods", "precision", digits, **where), line
    one = [script["estimate"]("demo/methods", "precision", 2, variant="one-jump", method=name) for name in ONE_JUMP]
    fits = script["rows"]("demo/jumps", variant="paper")
    falling = f"Of the {len(fits)} fits of `paper`, {(~fits['converged'].astype(bool)).sum()} have not converged"
    assert falling in " ".join(text.split())
    below = text[text.index("**One jump does better") :]
    assert re.findall(r"\*\*(0\.\d\d)\*\* (\[[^]]+\])", below) == [tuple(value.split(" ", 1)) for value in one]
    cost = script["row"]("demo/methods", variant="one-jump", method="joint_shortlist")["check_cost"]
    agreement = script["row"]("demo/shortlist", chosen=True)["test_agreement"]
    told = f"it costs {100 * cost:.1f} %, predicts the same at {100 * agreement:.0f} of 100 exits"
    assert told in " ".join(below.split())


def test_the_readme_tells_what_three_models_say_of_one_jump(script):
    C5 = {"variant": "exact", "claim": "C5", "statistic": "kept", "metric": "precision", "rule": "> 0.9"}
    G5 = {"variant": "one-jump", "claim": "G5", "statistic": "kept_above_floor", "metric": "precision"}
    kept = script["extremes"]("models/one_jump", "estimate", 2, **G5, positions="all")
    models = list(script["rows"]("models/models")["model"])
    text = " ".join((ROOT / "README.md").read_text().split())
    ojfa = script["extremes"]("models/claims", "estimate", 2, **C5, positions="all")
    assert f"the jump that D_m chooses keeps {ojfa} of the precision of one jump a level" in text
    best = script["rows"]("models/methods", variant="exact", method=["n_njtc", "token_table"])
    best = best.pivot(index="model", columns="method", values="precision")
    one = script["rows"]("models/methods", variant="one-jump", method="joint").set_index("model")["precision"]
    assert (best["n_njtc"] < best["token_table"]).all() and (best["token_table"] < one.loc[best.index]).all()
    assert f"at the paper's sample sizes it keeps {kept} of what" in text and len(models) == 3
    shares = [
        [script["share_of_gain"]("models", null, model, position) for null in ("bias", "shuffled") for model in models]
        for position in (None, "1+")
    ]
    told = [f"{min(values)} to {max(values)}" for values in shares]
    assert f"have {told[0]} of it, and {told[1]} without the first tokens" in text


def test_what_other_sentences_and_fits_say(script):
    """README and findings: the one jump against the token table and the paper's jumps, and the verdicts G1 to G3."""
    methods = script["rows"]("seeds/methods").pivot(index="seed", columns=["variant", "method"], values="precision")
    one = methods.xs("joint", axis=1, level="method").filter(like="one-jump")
    others = pd.concat([methods.xs("n_njtc", axis=1, level="method"), methods["exact"][["token_table"]]], axis=1)
    assert one.shape == (5, 3) and others.shape == (5, 5) and (one.min(axis=1) > others.max(axis=1)).all()
    verdicts = script["rows"]("seeds/one_jump", against="exact", decides=True)
    said = verdicts.groupby(["claim", "positions", "seed"])["verdict"].unique().map(list)
    assert all(one == ["supported"] for one in said[["G1", "G2"]])
    assert list(said["G3", "all"]) == [["inconclusive"]] * 5
    assert sorted(said["G3", "1+"]) == [["contradicted"], *[["inconclusive"]] * 4]


def test_the_readme_tells_what_scales_give(script):
    where = {"against": "gated", "claim": "G5", "positions": "all", "decides": True}
    kept = {
        (study, name): script["estimate"](f"{study}/one_jump", "estimate", 2, variant=name, **where)
        for study, name in itertools.product(("one-jump", "scales"), ("scaled", "one-jump"))
    }
    text = " ".join((ROOT / "README.md").read_text().split())
    told = f"it keeps {kept['one-jump', 'scaled']} on the demo's model and sentences, where without them it keeps"
    told += f" {kept['one-jump', 'one-jump']}; on Gemma, with six, {kept['scales', 'scaled']} rather than"
    assert f"(`scales: level`), at the same cost, {told} {kept['scales', 'one-jump']}." in text


def test_one_verdict_changes_behind_a_bos_token(script):
    own = script["rows"]("bos/one_jump", claim=["G1", "G2", "G3"], decides=True)
    both = pd.concat([script["rows"]("bos/verdicts"), own])
    both = both.fillna({"metric": ""}).pivot(index=["claim", "metric", "positions"], columns="model", values="verdict")
    changed = both[both["smollm2-135m"] != both["smollm2-135m-bos"]]
    assert set(both.index.get_level_values("claim")) == {f"C{i}" for i in range(1, 7)} | {"G1", "G2", "G3"}
    assert [(claim, *verdicts) for (claim, *_), verdicts in zip(changed.index, changed.to_numpy(), strict=True)] == [
        ("C4", "inconclusive", "supported")
    ] * 2


def test_counts_with_gaps_keep_all_their_digits():
    counts = runpy.run_path(str(DOCS / "keep_results.py"))["_counts"]
    column = pd.Series([1462272.0, None, 3.0])
    assert counts(column).to_csv(index=False, header=False, float_format="%.6g") == '1462272\n""\n3\n'
    assert counts(pd.Series([1462272.5, None])).dtype == "float64"
