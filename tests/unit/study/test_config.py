"""A study's config: its defaults, and what is refused."""

import pytest
import yaml
from refusals import error_of

from onejump.files.atomic import OnejumpError
from onejump.study.config import complete_config, load_config

CONFIG = {
    "study": "s",
    "corpus": {"source": {"hub": {"id": "a/b", "revision": "c"}}, "train": 10, "test": 400},
    "models": {"m": {"source": {"path": "m"}, "blocks": 2}},
}


def test_defaults_are_filled_in_at_every_depth_behind_the_users_keys():
    complete = complete_config(CONFIG)
    assert complete["seeds"] == [0]
    assert complete["evaluation"] == {"transfer_sentences": 300}
    assert complete["corpus"]["source"]["hub"]["split"] == "train"
    assert complete["models"]["m"]["shards"] == {"train": 1, "test": 1}
    assert complete["variants"]["exact"]["fit"] == "exact"
    assert complete["variants"]["paper"]["rank"] is None
    assert list(complete)[:3] == list(CONFIG)
    assert "seeds" not in CONFIG


def test_a_file_is_read_as_yaml_is(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(CONFIG).replace("study: s", 'study: "s"  # mine'))
    assert load_config(file) == complete_config(CONFIG)
    file.write_text("study: [")
    assert "c.yaml: not valid YAML" in error_of(lambda: load_config(file))


@pytest.mark.parametrize("config", [None, 7, "text", []])
def test_what_is_no_mapping_is_refused(config):
    assert error_of(lambda: complete_config(config)) == f"config: the top level: {config!r} is not of type 'object'"


def test_an_old_key_is_refused_with_its_new_name():
    message = error_of(lambda: complete_config(CONFIG | {"reference": {}}))
    assert message == "config: the top level: 'reference' is now called 'published'; rename it"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0, 1], "variants": {"a": {"seeds": [0]}}}, "seeds has 1, which no variant uses"),
        ({"seeds": [1.0]}, "seeds.0: 1.0 is not of type 'integer'"),
        ({"seeds": [10**23]}, "seeds.0: 100000000000000000000000 is greater than the maximum of 4294967295"),
        ({"seeds": [-1, "x"]}, "seeds.0: -1 is less than the minimum of 0"),
        ({"variants": {1e5: {}}}, "variants: the name 100000.0 is no text; put it in quotes"),
        ({"variants": {"a": {None: 1}}}, "variants.a: the name None is no text; put it in quotes"),
        (
            {"models": {"m": {"source": {"path": "m"}, "blocks": 2, "shards": {"train": 11}}}},
            "models.m.shards.train is 11, expected at most corpus.train = 10",
        ),
        (
            {"published": {"typo": {"source": "paper"}}},
            "published has typo, which is none of the study's models: m",
        ),
    ],
)
def test_what_would_fail_after_hours_is_refused_at_once(change, message):
    with pytest.raises(OnejumpError) as caught:
        complete_config(CONFIG | change)
    assert str(caught.value).splitlines()[0].startswith(f"config: {message}")


def test_a_numeric_name_in_quotes_is_a_name():
    config = CONFIG | {"models": {"007": CONFIG["models"]["m"]}, "variants": {"1e5": {}}}
    assert list(complete_config(config)["models"]) == ["007"]


def test_an_unknown_language_is_refused_with_the_known_ones():
    config = CONFIG | {"corpus": CONFIG["corpus"] | {"language": "english"}}
    assert "corpus.language: 'english' is not one of ['af', 'am', 'ar', " in error_of(lambda: complete_config(config))
    assert complete_config(CONFIG | {"corpus": CONFIG["corpus"] | {"language": "zh"}})["corpus"]["language"] == "zh"
