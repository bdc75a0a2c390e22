"""A jump is attached to its base model alone, however that is loaded; what differs in another one is named."""

import re

import pytest
import torch
from refusals import error_of
from tiny_models import FAMILIES, model_from, perturbed, tiny_model

import onejump
from onejump.sharing.base_model import config_facts


def refusal(folder, model) -> str:
    """Why a jump is not attached, without the name of the model; a refused one stays as it was."""
    jump = onejump.Jump.from_pretrained(folder)
    said = error_of(lambda: jump.attach(model))
    assert "has no model" in error_of(lambda: jump.logits(torch.zeros(32), 0))
    return said


def changed(family: str = "llama", **config) -> torch.nn.Module:
    return model_from(type(FAMILIES[family])(**FAMILIES[family].to_dict() | config))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05, expected 1e-06"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}, "rope_parameters is"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2, expected 3"),  # a distilled sibling
        (
            {"hidden_size": 16, "intermediate_size": 32},
            "hidden_size is 16, expected 32, intermediate_size is 32, expected 64",
        ),
    ],
)
def test_a_config_that_differs_is_named(folder, config, named):
    said = refusal(folder, changed(**config))
    assert "model LlamaForCausalLM: is not model " in said and "which this jump was fitted for: in its config, " in said
    assert named in said and said.endswith("; load that model")


def test_of_many_differences_some_are_named(folder):
    said = refusal(folder, tiny_model("gpt2"))
    assert re.search(r"there is no attention_bias, expected False, .*, and \d+ more; load that model$", said)


def test_other_weights_of_the_same_config_are_refused(folder):
    assert "its output embedding has other values" in refusal(folder, tiny_model("llama", seed=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sibling_with_the_same_embeddings_is_refused_by_what_it_computes(study, folder, dtype):
    """As one that was fine-tuned with frozen embeddings."""
    model = study.load_model(dtype=dtype)
    with torch.no_grad():
        perturbed(model.model.layers, seed=5)
    said = refusal(folder, model)
    assert re.search(r"config and output embedding are that model's, but what it computes differs by \d+\.\d%", said)
    assert "and if it is, the Transformers that the jump was published with" in said


def test_a_changed_norm_is_refused_by_what_it_computes(study, folder):
    model = study.load_model()
    with torch.no_grad():
        model.model.norm.weight.mul_(1.01)
    assert "what it computes differs by 1.0%, expected at most 0.1%" in refusal(folder, model)


def test_the_commit_of_another_model_is_named(folder):
    """As Transformers notes it in the config of a model that it loaded from the hub."""
    model = tiny_model("llama", seed=1)
    model.config._name_or_path, model.config._commit_hash = "someone/tiny", "0123abc"
    assert refusal(folder, model).startswith("model someone/tiny 0123abc: is not model ")


def test_a_model_in_training_mode_is_refused(study, folder):
    assert refusal(folder, study.load_model().train()).endswith("is in training mode; call model.eval() first")


@pytest.mark.parametrize("model", ["gpt2", None, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(folder, model):
    said = refusal(folder, model)
    assert said == f"attach takes a loaded causal language model of Transformers, found {type(model).__name__}"


def test_what_no_state_depends_on_may_differ(study, folder):
    config = {"use_cache": False, "output_hidden_states": True, "eos_token_id": 5, "architectures": ["Mine"]}
    model = study.load_model()
    model.config.update(config)
    onejump.Jump.from_pretrained(folder).attach(model)


def test_a_newer_transformers_may_add_to_the_config(study, folder):
    model = study.load_model()
    model.config.update({"a_new_key": 3})
    assert config_facts(model.config)["a_new_key"] == 3
    onejump.Jump.from_pretrained(folder).attach(model)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_model_may_be_loaded_with_a_device_map(study, folder, device_map):
    states = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    expected, found = (
        onejump.Jump.from_pretrained(folder).attach(model).logits(states, 1)
        for model in (study.load_model(), study.load_model(device_map=device_map))
    )
    assert torch.equal(found, expected)


def test_blocks_may_be_offloaded_but_not_the_output_head(study, folder, tmp_path):
    parts = [
        "model.embed_tokens",
        *(f"model.layers.{k}" for k in range(3)),
        "model.norm",
        "model.rotary_emb",
        "lm_head",
    ]
    for offloaded, refused in (("model.layers.1", False), ("lm_head", True), ("model.norm", True)):
        device_map = dict.fromkeys(parts, "cpu") | {offloaded: "disk"}
        model = study.load_model(device_map=device_map, offload_folder=tmp_path / offloaded)
        if refused:
            said = refusal(folder, model)
            assert said.endswith(f"{offloaded} is offloaded; give it a device in device_map")
        else:
            onejump.Jump.from_pretrained(folder).attach(model)
