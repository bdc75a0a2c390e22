"""Models load as requested and are identified by their content; what cannot be loaded is refused by name."""

import json
import time

import pytest
import torch
import transformers
from refusals import error_of
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, MAX_POSITIONS, save_tiny_model

from onejump.files.atomic import OnejumpError
from onejump.models.sources import ModelSource

# ------------------------------------------------------------------------------------------------------------ loading


@pytest.mark.parametrize("location", ["/no/such/folder", "./folder", "models/of/mine"])
def test_a_missing_folder_is_refused_without_asking_the_hub(location):
    started = time.monotonic()
    message = error_of(lambda: ModelSource(location).load_model())
    assert message == f"model {location}: no such folder; correct the path, or give a hub id as 'owner/name'"
    assert time.monotonic() - started < 1


def test_an_empty_folder_is_refused(tmp_path):
    assert str(tmp_path) in error_of(lambda: ModelSource(str(tmp_path)).load_model())


def with_weights_in(file, folder):
    """A tiny model whose weights are in a file of either format."""
    source = save_tiny_model("llama", folder)
    if file == "pytorch_model.bin":
        torch.save(source.load_model().state_dict(), folder / file)
        (folder / "model.safetensors").unlink()
    return source


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 135\n"
DAMAGE = {
    "cut short": (lambda content: content[: len(content) // 2], ""),
    "garbage": (lambda content: b"garbage" * 20, ""),
    "empty": (lambda content: b"", "; {} is empty: download it again"),
    "pointer": (
        lambda content: POINTER,
        "; {} is a Git LFS pointer, not the file itself: run git lfs pull in its folder",
    ),
}


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_model_whose_weights_are_damaged_is_refused_by_name(tmp_path, file, damage):
    source = with_weights_in(file, tmp_path)
    source.load_model()
    change, hint = DAMAGE[damage]
    (tmp_path / file).write_bytes(change((tmp_path / file).read_bytes()))
    message = error_of(source.load_model)
    assert message.startswith(f"model {tmp_path}: cannot be loaded as CausalLM")
    assert message.endswith(hint.format(file) or ")")


def test_a_tokenizer_that_is_a_pointer_is_called_one(tmp_path):
    source = save_tiny_model("llama", tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(POINTER)
    assert "; tokenizer.json is a Git LFS pointer" in error_of(source.load_tokenizer)


def test_a_pointer_beside_a_model_that_loads_does_no_harm(tmp_path):
    source = save_tiny_model("llama", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(POINTER)
    source.load_model()


def test_a_config_that_does_not_fit_its_weights_is_refused_by_name(tmp_path):
    source = save_tiny_model("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 98}))
    assert "lacks lm_head.weight of shape (98, 32) (has (97, 32)), model.embed_tokens" in error_of(source.load_model)


@pytest.mark.parametrize("settings", [{"hidden_act": "no such"}, {"num_attention_heads": 0}, {"hidden_size": "32"}])
def test_a_config_that_makes_no_model_is_refused(tmp_path, settings):
    source = save_tiny_model("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    assert error_of(source.load_model).startswith(f"model {tmp_path}: cannot be loaded as CausalLM")


@pytest.mark.parametrize("lost", ["model.norm.weight", "lm_head.weight"])
def test_a_model_that_lacks_a_weight_is_refused_and_not_given_a_random_one(tmp_path, lost):
    source = save_tiny_model("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert lost in error_of(source.load_model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_is_loaded_in_the_dtype_asked_for_and_in_evaluation_mode(tmp_path, dtype):
    source = save_tiny_model("gpt2", tmp_path)
    model = source.load_model(dtype)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{dtype}"}
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_input_is_read_off_the_config(tmp_path, family):
    FAMILIES[family].save_pretrained(tmp_path)
    assert ModelSource(str(tmp_path)).load_max_positions() == MAX_POSITIONS


def test_a_model_without_a_longest_input_has_none(tmp_path):
    transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3).save_pretrained(tmp_path)
    assert ModelSource(str(tmp_path)).load_max_positions() is None


def folder_with_custom_code(folder):
    """A model whose code writes a file beside itself when it is imported."""
    save_tiny_model("llama", folder)
    ran = folder / "ran"
    (folder / "strange.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n")
    names = {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "strange", "auto_map": names}))
    return ran


@pytest.mark.parametrize("load", ["load_model", "load_max_positions"])
def test_code_that_comes_with_a_model_is_refused_and_does_not_run(tmp_path, load):
    ran = folder_with_custom_code(tmp_path)
    message = error_of(getattr(ModelSource(str(tmp_path)), load))
    assert "custom code" in message
    assert not ran.exists()


def test_code_that_comes_with_a_model_runs_where_it_is_trusted(tmp_path, monkeypatch):
    """This shows that the test above would have noticed."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    folder.mkdir()
    ran = folder_with_custom_code(folder)
    with pytest.raises(OnejumpError):
        ModelSource(str(folder), trust_remote_code=True).load_model()
    assert ran.exists()


# ----------------------------------------------------------------------------------------------------------- identity


def identity(folder):
    return ModelSource(str(folder)).identity()


def test_a_folder_is_identified_by_its_name_config_and_weights(tmp_path):
    save_tiny_model("llama", tmp_path / "here")
    save_tiny_model("llama", tmp_path / "there")
    name, revision = identity(tmp_path / "here")
    assert name == "here"
    assert identity(tmp_path / "here") == identity(f"{tmp_path}/there/../here/") == (name, revision)
    assert identity(tmp_path / "there") == ("there", revision)


def test_the_identity_changes_with_a_single_weight(tmp_path):
    save_tiny_model("llama", tmp_path)
    before = identity(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"][3, 4] += 1e-6
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert identity(tmp_path) != before


def test_the_identity_changes_with_a_single_weight_of_an_old_checkpoint(tmp_path):
    model = save_tiny_model("llama", tmp_path).load_model()
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    before = identity(tmp_path)
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 1
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert identity(tmp_path) != before


def test_the_identity_changes_with_the_config_but_not_with_a_readme(tmp_path):
    save_tiny_model("llama", tmp_path)
    before = identity(tmp_path)
    (tmp_path / "README.md").write_text("hello")
    assert identity(tmp_path) == before
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert identity(tmp_path) != before


@pytest.mark.parametrize(("revision", "expected"), [("v1", "v1"), (None, "unknown")])
def test_a_hub_model_without_a_cache_is_identified_by_the_revision_asked_for(revision, expected):
    source = ModelSource("owner-of-nothing/no-such-model", revision)
    assert source.identity() == ("owner-of-nothing/no-such-model", expected)
