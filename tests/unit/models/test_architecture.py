"""Dimensions and weights that a plan knows are those of the models themselves."""

import json

import pytest
from refusals import error_of
from tiny_models import ALL_FAMILIES, tiny_model

from onejump.files.atomic import read_json
from onejump.models import architecture
from onejump.models.architecture import ARCHITECTURES, count_parameters, find_architecture, load_architecture

PUBLISHED = {  # parameters as the model cards or Transformers give them
    "gpt2-xl": 1_557_611_200,
    "phi-3-mini": 3_821_079_552,
    "llama-2-7b": 6_738_415_616,
    "llama-3-70b": 70_553_706_496,
    "llama-3-405b": 405_853_388_800,
    "smollm2-135m": 134_515_008,
    "gemma-3-270m": 268_098_176,
    "qwen2.5-coder-1.5b": 1_543_714_304,
}


def test_the_configs_that_come_along_have_the_published_numbers_of_parameters():
    assert {file.stem: load_architecture(file.stem).parameters for file in ARCHITECTURES.glob("*.json")} == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_counts_that_come_along_are_those_of_their_configs(name):
    config = read_json(ARCHITECTURES / f"{name}.json")
    counts = config.pop("onejump")
    assert counts == count_parameters(config)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_weights_of_every_family_are_counted_from_its_config(family):
    model = tiny_model(family)
    counts = count_parameters(json.loads(model.config.to_json_string(use_diff=False)))
    found = architecture.Architecture(family, **counts)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (found.n_blocks, found.hidden_size, found.vocabulary) == (3, 32, 97)


def test_a_config_without_counts_is_counted_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    found = load_architecture(tmp_path / "config.json")
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(architecture, "_count_in_a_process", None)  # would fail if called
    assert load_architecture(tmp_path / "config.json") == found


def test_a_cache_that_cannot_be_written_is_no_trouble(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        architecture, "_count_in_a_process", lambda file: read_json(ARCHITECTURES / "gpt2-xl.json")["onejump"]
    )
    (tmp_path / "config.json").write_text("{}")
    assert load_architecture(tmp_path / "config.json").hidden_size == 1600


def test_a_study_names_its_architecture_or_its_config_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_model("llama").config.save_pretrained(tmp_path)
    here, gone = {"source": {"path": str(tmp_path)}}, {"source": {"path": str(tmp_path / "none")}}
    assert find_architecture("gpt2-xl", here).hidden_size == 32
    assert find_architecture("gpt2-xl", gone).hidden_size == 1600
    assert find_architecture("unheard", gone).name == "llama-2-7b, assumed"
    assert find_architecture("unheard", here | {"architecture": "llama-3-70b"}).n_blocks == 80


def test_a_model_that_needs_code_of_its_own_is_planned_as_another(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text('{"model_type": "nobodys", "auto_map": {}}')
    assert find_architecture("unheard", {"source": {"path": str(tmp_path)}}).name.endswith("assumed")


def test_wrong_names_and_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "name one of gemma-3-270m, gpt2-xl," in error_of(lambda: load_architecture("llama-9"))
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert "give a model's whole config.json" in error_of(lambda: load_architecture(tmp_path / "config.json"))
