"""Which variants share their jumps."""

import pytest

from onejump.study.variants import joint_of, jumps_of

DEFAULTS = {"fit": "adam", "target": "pre_norm", "positions": "all", "score_levels": "1..K", "rank": None}
DEFAULTS |= {"joint_batches": "mixed", "gate": "none", "inputs": "states", "jumps": "all"}


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
        ({"inputs": "none"}, "other", "other"),
        ({"jumps": "joint"}, "other", "paper"),
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
