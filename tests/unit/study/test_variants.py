"""Which variants share their jumps."""

import pytest

from onejump.study.variants import joint_of, jumps_of, refit_of, seed_of_fit

DEFAULTS = {"fit": "adam", "target": "pre_norm", "positions": "all", "score_levels": "1..K", "rank": None}
DEFAULTS |= {"joint_batches": "mixed", "gate": "none", "scales": "none", "inputs": "states", "jumps": "all"}
DEFAULTS |= {"fit_seed": 0, "train_on": "corpus"}


def variants(**choices: dict) -> dict[str, dict]:
    return {name: DEFAULTS | given for name, given in choices.items()}


@pytest.mark.parametrize(
    ("choice", "jumps", "joint"),
    [
        ({"score_levels": "0..K-1"}, "paper", "paper"),
        ({"joint_batches": "per_level"}, "paper", "other"),
        ({"fit": "exact"}, "other", "other"),
        ({"target": "post_norm"}, "other", "other"),
        ({"positions": "not_first"}, "other", "other"),
        ({"rank": 3}, "other", "other"),
        ({"gate": "level"}, "other", "other"),
        ({"scales": "level"}, "other", "other"),
        ({"inputs": "none"}, "other", "other"),
        ({"jumps": "joint"}, "other", "paper"),
        ({"fit_seed": 1}, "other", "other"),
        ({"train_on": "both"}, "other", "other"),
    ],
)
def test_a_variant_shares_what_does_not_depend_on_its_choice(choice, jumps, joint):
    given = variants(paper={}, other=choice)
    assert (jumps_of("other", given), joint_of("other", given)) == (jumps, joint)
    assert (jumps_of("paper", given), joint_of("paper", given)) == ("paper", "paper")


def test_only_an_adam_fit_depends_on_what_a_batch_holds():
    given = variants(exact={"fit": "exact"}, again={"fit": "exact", "joint_batches": "per_level"})
    assert joint_of("again", given) == "exact"


def test_a_variant_that_is_put_first_does_not_take_over_the_jumps_of_the_canonical_one():
    given = variants(late={"score_levels": "0..K-1"}, per_level={"joint_batches": "per_level"}, paper={})
    assert {jumps_of(name, given) for name in given} == {"paper"}
    assert (joint_of("late", given), joint_of("per_level", given)) == ("paper", "per_level")


def test_only_variants_that_differ_in_nothing_but_the_fits_random_choices_are_refits_of_one():
    given = variants(b={"fit_seed": 1}, a={}, c={"fit_seed": 2}, rank={"rank": 3}, ranks={"rank": 3, "fit_seed": 1})
    assert {name: refit_of(name, given) for name in given} == {
        "a": "b",
        "b": "b",
        "c": "b",
        "rank": "rank",
        "ranks": "rank",
    }


def test_a_fit_has_the_seed_of_its_text_or_one_that_no_other_fit_has():
    assert [seed_of_fit(seed, 0) for seed in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]
    found = {seed_of_fit(seed, number) for seed in range(100) for number in range(5)}
    assert len(found) == 500
    assert 0 <= seed_of_fit(2**32 - 1, 4000) < 2**32
