"""One joint jump against other variants' jumps: statements against a naive bootstrap, and planted verdicts."""

import numpy as np
import pytest
from claim_grids import CORRECT, SURPRISAL, K, N, planted, random_grids
from naive_bootstrap import naive_rows

from onejump.analysis import claims
from onejump.analysis.one_jump import claims_against, one_jump_table
from onejump.study.variants import VARIANT_DEFAULTS

EVERY = ["G1", "G2", "G3", "G6", "G5"]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(claims, "RESAMPLES", 400)


def naive_statistics(one: dict, other: dict) -> dict:
    """From rows that are there as often as drawn: methods[name][metric, level, row], by plain loops."""
    found = {}
    for metric, m, sign in (("precision", CORRECT, 1), ("surprisal", SURPRISAL, -1)):
        whole = {name: float(np.mean([np.mean(values[m, k]) for k in range(K)])) for name, values in other.items()}
        own = float(np.mean([np.mean(one["joint"][m, k]) for k in range(K)]))
        floor = float(np.mean([np.mean(one["constant_by_position"][m, k]) for k in range(K)]))
        found["G1", "difference", metric] = own - whole["ojfa"]
        found["G2", "difference", metric] = own - whole["n_njtc"]
        above = sign * (whole["n_njtc"] - floor)
        found["G5", "kept_above_floor", metric] = sign * (own - floor) / above if above > 0 else np.nan
        if metric == "precision":
            found["G6", "share", metric] = own / whole["jtc"]
            if "tuned_lens" in whole:
                found["G6", "share_of_tuned_lens", metric] = own / whole["tuned_lens"]
            found["G3", "smallest_difference", metric] = [
                float(np.mean(one["joint"][m, k]) - np.mean(one["identity"][m, k])) for k in range(K)
            ]
    return found


@pytest.mark.parametrize("without", [(), ("tuned_lens",)])
def test_every_statement_is_that_of_a_bootstrap_that_copies_rows(without):
    one, other = random_grids(0, precision=0.4), random_grids(1, precision=0.4)
    for lens in without:
        del other.methods[lens]
    one.methods["constant_by_position"][CORRECT] *= np.arange(N) % 2  # a floor that is below N-NJTC in every resample
    one.methods["constant_by_position"][SURPRISAL] += 5
    documents = np.random.default_rng(3).integers(30, size=N)
    positions = np.random.default_rng(0).integers(3, size=N)
    for grids in (one, other):
        grids.documents, grids.positions = documents, positions
    tables = one_jump_table(one, other, EVERY, seed=7)
    assert set(tables["claim"]) == set(EVERY)
    for group, kept in (("all", positions >= 0), ("1+", positions >= 1)):
        table, part = tables[tables["positions"] == group], kept.nonzero()[0]
        of_group = [{name: values[:, :, part] for name, values in grids.methods.items()} for grids in (one, other)]
        resampled = [
            naive_statistics(*({name: values[:, :, rows] for name, values in some.items()} for some in of_group))
            for rows in naive_rows(documents[part], 7, 400)
        ]
        estimates = naive_statistics(*of_group)
        reported = table.drop_duplicates(["claim", "statistic", "metric"])
        assert len(reported) == len(estimates)
        for found in reported.itertuples():
            key = (found.claim, found.statistic, found.metric)
            values, estimate = np.array([one_of[key] for one_of in resampled]), estimates[key]
            if found.claim == "G3":
                errors = values.std(0)
                reach = np.percentile((np.abs(values - estimate) / errors).max(1), 95) * errors
                expected = [min(estimate), min(estimate - reach), min(estimate + reach)]
            else:
                expected = [estimate, *(np.percentile(values, [2.5, 97.5]))]
            assert [found.estimate, found.low, found.high] == pytest.approx(expected, rel=1e-9, abs=1e-12), key


def verdicts(one, other) -> dict[str, str]:
    table = one_jump_table(one, other, EVERY, seed=0)
    table = table[table["positions"] == "all"]
    return dict(zip(table["claim"], table["claim_verdict"], strict=True))


def grids_with(joint: float, n_njtc: float, ojfa: float = 0.2):
    """Flat precisions at six levels, above a floor of .1 and identity at .15."""
    flat = {"identity": 0.15, "constant_by_position": 0.1, "jtc": 0.6, "ojfa": ojfa, "joint": joint, "n_njtc": n_njtc}
    grids = planted(**{method: [value] * 6 for method, value in flat.items()})
    return grids, grids


def test_a_jump_that_is_better_everywhere_has_every_claim_and_one_that_is_worse_none():
    found = verdicts(*grids_with(joint=0.5, n_njtc=0.4))
    assert [found[claim] for claim in ("G1", "G2", "G3", "G5")] == ["supported"] * 4
    found = verdicts(*grids_with(joint=0.12, n_njtc=0.4))
    assert [found[claim] for claim in ("G1", "G2", "G3", "G5")] == ["contradicted"] * 4


def test_nine_tenths_are_counted_above_the_floor():
    """.37 is more than nine tenths of .4, but only .27 of the .3 that are above the floor."""
    assert verdicts(*grids_with(joint=0.385, n_njtc=0.4))["G5"] == "supported"
    assert verdicts(*grids_with(joint=0.363, n_njtc=0.4))["G5"] == "contradicted"


def test_one_level_where_identity_is_better_falsifies_g3():
    one = planted(
        identity=[0.1] * 5 + [0.5], joint=[0.3] * 6, ojfa=[0.2] * 6, n_njtc=[0.2] * 6, constant_by_position=[0.1] * 6
    )
    assert verdicts(one, one)["G3"] == "contradicted"


def test_g4_is_the_nulls_share_of_the_gain_over_identity():
    one, null = random_grids(0, precision=0.5), random_grids(1, precision=0.3)
    null.methods = {name: null.methods[name] for name in ("joint", "identity")}
    null.methods["identity"] = one.methods["identity"] * 0
    one.methods["identity"] = null.methods["identity"]
    for grids in (one, null):
        grids.documents, grids.positions = np.arange(N) // 3, np.ones(N, int)
    table = one_jump_table(one, null, ["G4"], seed=7)
    (row,) = table[table["positions"] == "all"].itertuples()

    def share(rows) -> float:
        hits, gain = (grids.methods["joint"][CORRECT][:, rows].sum() for grids in (null, one))
        return hits / gain

    resampled = [share(rows) for rows in naive_rows(np.arange(N) // 3, 7, 400)]
    expected = [share(slice(None)), *np.percentile(resampled, [2.5, 97.5])]
    assert [row.estimate, row.low, row.high] == pytest.approx(expected, rel=1e-9)
    assert (row.claim, row.statistic, row.rule, row.claim_verdict) == ("G4", "share_of_gain", "< 0.9", "supported")
    null.methods["joint"] = one.methods["joint"]
    assert set(one_jump_table(one, null, ["G4"], seed=7)["claim_verdict"]) == {"contradicted"}


def test_a_claim_is_made_only_against_variants_that_it_is_about():
    def choices(**given):
        return VARIANT_DEFAULTS | given

    own = choices(jumps="joint", fit="kl", target="post_norm", gate="level")
    assert claims_against(own, choices()) == ["G1", "G2", "G3", "G6"]
    assert claims_against(own, choices(fit="kl", target="post_norm", gate="level")) == ["G5"]
    assert claims_against(own | {"scales": "level"}, choices(fit="kl", target="post_norm", gate="level")) == ["G5"]
    assert claims_against(own, choices(fit="kl", target="post_norm", gate="level", rank=9)) == []
    assert claims_against(own, choices(fit="exact", target="post_norm", gate="level")) == []
    assert claims_against(own, choices(positions="not_first")) == []
    assert claims_against(own, choices(train_on="generated")) == []
    assert claims_against(own, choices(fit="exact", target="post_norm", inputs="shuffled")) == []
    assert claims_against(own, own) == []
    assert claims_against(own, own | {"inputs": "shuffled"}) == ["G4"]
    assert claims_against(own | {"scales": "level"}, own | {"inputs": "shuffled"}) == []
    assert claims_against(own | {"rank": 9}, own | {"inputs": "none", "rank": 1}) == ["G4"]
    assert claims_against(own | {"rank": 9}, own | {"inputs": "shuffled"}) == []
    assert claims_against(own | {"inputs": "none"}, own | {"inputs": "shuffled"}) == []
    assert claims_against(own, own | {"inputs": "none", "gate": "shared"}) == []
    assert claims_against(own, own | {"inputs": "none", "train_on": "generated"}) == []
    assert claims_against(choices(fit="exact", jumps="joint"), choices(fit="exact"))[-1] == "G5"
