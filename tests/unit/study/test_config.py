"""A study's config: its defaults, and what is refused."""

import copy
import functools
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusals import error_of
from studies import ROOT

from onejump.files.atomic import OnejumpError
from onejump.study.config import _schema, complete_config, load_config

CONFIG = {
    "study": "s",
    "corpus": {"source": {"hub": {"id": "a/b", "revision": "c"}}, "train": 10, "test": 400},
    "models": {"m": {"source": {"path": "m"}, "blocks": 2}},
}


def test_defaults_are_filled_in_at_every_depth_behind_the_users_keys():
    complete = complete_config(CONFIG)
    assert complete["seeds"] == [0]
    assert complete["evaluation"] == {"transfer_sentences": 300, "lenses": {"jtc": {"seeds": None}}}
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
        (lambda c: c["corpus"].update(trian=5), "config: corpus: unknown key 'trian'; did you mean 'train'?"),
        (lambda c: c.update(colour="red"), "config: the top level: unknown key 'colour'; known: ["),
        (lambda c: c["corpus"].update(train="many"), "config: corpus.train: 'many' is not of type 'integer'"),
        (lambda c: c["corpus"].update(test=0), "config: corpus.test: 0 is less than the minimum of 1"),
        (
            lambda c: c["models"].update({"a/b": c["models"]["tiny-gpt2"]}),
            "config: models: 'a/b' does not match ^[a-z0-9]",
        ),
        (lambda c: c["models"]["tiny-gpt2"].pop("blocks"), "config: models.tiny-gpt2: 'blocks' is a required property"),
        (
            lambda c: c["models"]["tiny-gpt2"].update(dtype="float8"),
            "config: models.tiny-gpt2.dtype: 'float8' is not one of",
        ),
        (lambda c: c["variants"]["paper"].update(fit="sgd"), "config: variants.paper.fit: 'sgd' is not one of"),
        (
            lambda c: c["variants"]["paper"].update(ranks=3),
            "config: variants.paper: unknown key 'ranks'; did you mean 'rank'?",
        ),
        (
            lambda c: c["evaluation"].update(transfer_sentences=21),
            "config: evaluation.transfer_sentences is 21, expected at",
        ),
        (
            lambda c: c["variants"]["paper"].update(seeds=[0, 5]),
            "config: variants.paper.seeds has 5, expected some of the study's [0]",
        ),
        (lambda c: c.pop("study"), "config: the top level: 'study' is a required property"),
    ],
)
def test_a_wrong_config_is_refused_by_its_key(change, message):
    config = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    change(config)
    assert error_of(lambda: complete_config(config)).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0, 1], "variants": {"a": {"seeds": [0]}}}, "seeds has 1, which no variant uses"),
        (
            {"evaluation": {"lenses": {"tuned-lens": {}}}},
            "evaluation.lenses: 'tuned-lens' is not one of ['jtc', 'tuned_lens', 'lora_lens', 'jacobian_lens', "
            "'jacobian_lens_low_rank', 'jacobian_lens_mean', 'imported_tuned_lens', 'imported_jacobian_lens']",
        ),
        (
            {"evaluation": {"lenses": {"imported_tuned_lens": {}}}},
            "evaluation.lenses.imported_tuned_lens has no sources; say where it is: sources: {MODEL: PATH}",
        ),
        (
            {"evaluation": {"lenses": {"jtc": {"sources": {"m": "a"}}}}},
            "evaluation.lenses.jtc has sources, expected none; name it imported_tuned_lens or imported_jacobian_lens",
        ),
        (
            {"evaluation": {"lenses": {"imported_tuned_lens": {"sources": {"m": "a", "n": "b"}}}}},
            "evaluation.lenses.imported_tuned_lens.sources has n, which is none of the study's models: m",
        ),
        (
            {"evaluation": {"lenses": {"jtc": {"seeds": [7]}}}},
            "evaluation.lenses.jtc.seeds has 7, expected some of the study's [0]",
        ),
        (
            {
                "evaluation": {"lenses": {"jacobian_lens": {}}},
                "models": {"m": {"source": {"path": "m"}, "blocks": 2, "load": "blocks"}},
            },
            "evaluation.lenses has jacobian_lens, which needs a whole model, but models.m.load is blocks",
        ),
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
            {"variants": {"a": {"fit": "adam", "target": "post_norm", "gate": "level"}}},
            "variants.a.gate is level with fit adam and target post_norm, expected fit exact or kl and target",
        ),
        (
            {"variants": {"a": {"fit": "exact", "jumps": "joint", "scales": "level"}}},
            "variants.a.scales are level with fit exact and jumps joint, expected fit kl and jumps joint",
        ),
        (
            {"variants": {"a": {"fit": "kl", "scales": "level"}}},
            "variants.a.scales are level with fit kl and jumps all, expected fit kl and jumps joint",
        ),
        (
            {"variants": {"a": {"inputs": "shuffled"}}},
            "variants.a.inputs are shuffled with fit adam, expected fit exact or kl",
        ),
        (
            {"variants": {"a": {"fit": "kl", "inputs": "none", "rank": 5}}},
            "variants.a.rank is 5 with inputs none, expected 1, since all that is left of the jump is a bias",
        ),
        (
            {"variants": {"a": {"jumps": "joint"}}},
            "variants has jumps: joint only, but the paper's claims are about jumps: all; add paper: {}",
        ),
        (
            {"variants": {"a": {"fit": "kl", "gate": "level"}}},
            "variants.a.gate is level with fit kl and target pre_norm, expected fit exact or kl and target post_norm",
        ),
        (
            {"variants": {"a": {"train_on": "both"}}},
            "variants.a.train_on is both, but models write no text; add generated: {} to the corpus",
        ),
        (
            {"corpus": CONFIG["corpus"] | {"generated": {"tokens": 0}}},
            "corpus.generated.tokens: 0 is less than the minimum of 1",
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


@pytest.fixture(scope="module")
def one_schema():
    """The schema is read once, which takes longer than to check a config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onejump.study.config._schema", functools.cache(_schema))
        yield


def lines_of_refusal(file: Path) -> list[str]:
    """What the config in a file is refused with; no lines if it is accepted."""
    try:
        load_config(file)
    except OnejumpError as error:
        return str(error).split("\n")
    return []


def paths_in(value: object, path: tuple = ()) -> list[tuple]:
    """Where the values of a nested mapping are."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in paths_in(item, (*path, key)))]


FULL = complete_config(CONFIG | {"published": {"m": {"source": "a paper", "ojfa": 1}}})
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3), st.dates(),
    st.datetimes(), st.sampled_from(["..", "a/b", "1..K", "é" * 300, 10**30, -1, 1.0]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=5
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(paths_in(FULL)), st.none() | SCALARS, VALUES), min_size=1, max_size=3))
def test_whatever_a_config_holds_it_is_completed_or_refused_in_a_line_for_each_error(
    tmp_path_factory, one_schema, changes
):
    """Values anywhere in a good config are replaced, or keys of any kind are added beside them."""
    config = copy.deepcopy(FULL)
    for path, key, value in changes:
        owner = config
        for part in path[:-1]:
            owner = owner[part] if isinstance(owner, dict) and part in owner else {}
        if isinstance(owner, dict) and path:
            owner[path[-1] if key is None else key] = value
    file = tmp_path_factory.mktemp("config") / "c.yaml"
    file.write_text(yaml.dump(config, allow_unicode=True), encoding="utf-8")
    for line in lines_of_refusal(file):
        assert line.startswith((f"{file}: ", "config: "))
        assert len(line) < 2000
    file.write_text(json.dumps(config, default=str, skipkeys=True))
    for line in lines_of_refusal(file):
        assert line.startswith((f"{file}: ", "config: "))


YAML = st.lists(st.sampled_from([*"&*!|>%@-?:,[]{}#'\"\n\t ", "a", "0b", "1:6", "2001-99-99", "!!int", "<<", "..."]))


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("latin-1")), YAML.map("".join)))
@example("study: 2001-99-99")
@example("&a {x: *a}")
@example("&a [*a]")
@example("models: &a {m: *a}")
@example("seeds: [0b]")
@example("study: !!int x")
@example("!!int")
@example("study: !!timestamp 3")
@example("[" * 5000)
@example("{a: " * 300)
@example("study: " + "9" * 5000)
@example('study: "\\ud800"')
@example('"a\\nb": 1')
def test_any_text_as_a_config_is_refused_in_a_line_for_each_error(tmp_path_factory, one_schema, text):
    file = tmp_path_factory.mktemp("config") / "c.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    lines = lines_of_refusal(file)
    assert lines
    assert all(line.startswith((f"{file}: ", "config: ")) for line in lines)
