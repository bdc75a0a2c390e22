"""The saved unembedding gives the model's own logits, and what cannot be right is refused."""

import pytest
import torch
import transformers
from levels_by_hand import LLAMA_LIKE, PLACES, random_ids, relative_error, run_with_hooks
from refusals import error_of
from tiny_architectures import tiny_architecture, tiny_config
from tiny_models import (
    ALL_FAMILIES,
    FAMILIES,
    HIDDEN_SIZE,
    N_BLOCKS,
    VOCABULARY,
    model_from,
    save_tiny_model,
    save_unembedding,
    tiny_model,
)
from torch import nn

from onejump.files.tensors import TensorFile, write_tensors
from onejump.models.sources import ModelSource
from onejump.models.unembedding import Unembedding, extract_unembedding

FACTS = {"model": "m", "revision": "r", "dtype": "bfloat16", "n_blocks": 3, "parameters": 12, "anatomy": {}}
SIZES = {"vocab_size": 97, "max_position_embeddings": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2), ("float16", 3e-3)])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_saved_head_gives_the_models_own_logits(tmp_path, family, dtype, tolerance):
    model = tiny_model(family, dtype=dtype)
    extract_unembedding(model)[0].save(tmp_path / "h", FACTS)
    entered, output = run_with_hooks(model, family, random_ids((3, 10)))
    assert relative_error(Unembedding.load(tmp_path / "h").logits(entered[N_BLOCKS]), output.logits) < tolerance


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4], ids=["tiny h", "usual h", "massive h"])
def test_the_heads_norm_is_the_models_norm_at_every_size_of_hidden_state(family, size):
    """At a tiny h the norm's eps decides, at a massive one the accuracy of the mean square."""
    model = tiny_model(family)
    h = size * (torch.randn(5, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0)) + 0.3)
    h[0, 3] = 1e4 * size  # a massive activation
    norm = model.get_submodule(PLACES.get(family, LLAMA_LIKE)[1])
    with torch.inference_mode():
        assert relative_error(extract_unembedding(model)[0].normalise(h), norm(h)) < 1e-5


@pytest.mark.parametrize("eps", [1e-2, 9.999999747378752e-06, 1e-8])
def test_eps_is_the_models_own(eps):
    config = transformers.LlamaConfig(**FAMILIES["llama"].to_dict() | {"rms_norm_eps": eps})
    assert extract_unembedding(model_from(config))[0].eps == eps


@pytest.mark.parametrize(
    ("family", "kind", "norm_bias", "bias", "scale", "softcap"),
    [
        ("llama", "rms", False, False, 1.0, None),
        ("gemma2", "rms", False, False, 1.0, 3.0),
        ("gemma3", "rms", False, False, 1.0, None),
        ("gpt2", "layer", True, False, 1.0, None),
        ("opt", "layer", True, False, 1.0, None),
        ("cohere", "layer", False, False, 0.25, None),
        ("granite", "rms", False, False, 0.25, None),
        ("phi", "layer", True, True, 1.0, None),
        ("gptj", "layer", True, True, 1.0, None),
    ],
)
def test_what_each_family_adds_is_read_off_the_model(family, kind, norm_bias, bias, scale, softcap):
    unembedding, _ = extract_unembedding(tiny_model(family))
    found = (
        unembedding.norm_kind,
        unembedding.norm_bias is not None,
        unembedding.bias is not None,
        unembedding.scale,
        unembedding.softcap,
    )
    assert found == (kind, norm_bias, bias, scale, softcap)


def test_the_soft_cap_of_gemma2_matters_here_and_bounds_the_logits():
    model = tiny_model("gemma2")
    unembedding, _ = extract_unembedding(model)
    entered, output = run_with_hooks(model, "gemma2", random_ids((2, 8)))
    raw = nn.functional.linear(unembedding.normalise(entered[N_BLOCKS]), unembedding.weight)
    assert raw.abs().max() > 3.0
    assert output.logits.abs().max() <= 3.0
    assert unembedding.logits(entered[N_BLOCKS]).abs().max() <= 3.0


def test_gemmas_norm_weight_is_kept_as_1_plus_w():
    model = tiny_model("gemma3")
    assert torch.equal(extract_unembedding(model)[0].norm_weight, 1 + model.model.norm.weight)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi", "cohere"])
def test_a_head_reads_back_as_saved(tmp_path, family):
    unembedding, _ = extract_unembedding(tiny_model(family, dtype="bfloat16"))
    digest = unembedding.save(tmp_path / "h", FACTS)
    found = Unembedding.load(tmp_path / "h")
    assert found.metadata == FACTS | {"sha256": digest}
    for name in ("norm_kind", "eps", "scale", "softcap", "hidden_size"):
        assert getattr(found, name) == getattr(unembedding, name)
    for name in ("norm_weight", "norm_bias", "weight", "bias"):
        expected = getattr(unembedding, name)
        if expected is None:
            assert getattr(found, name) is None
        else:
            assert getattr(found, name).dtype == expected.dtype
            assert torch.equal(getattr(found, name), expected)


def test_a_head_on_a_device_computes_in_float32_and_leaves_the_original_alone():
    unembedding, _ = extract_unembedding(tiny_model("phi", dtype="bfloat16"))
    h = torch.randn(4, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    moved = unembedding.to("cpu")
    assert moved.weight.dtype == torch.float32
    assert unembedding.weight.dtype == torch.bfloat16
    assert torch.equal(moved.logits(h), unembedding.logits(h))


def test_a_file_that_is_no_head_is_refused_by_name(tmp_path):
    path = tmp_path / "joint.safetensors"
    write_tensors(path, {"A": torch.ones(2)}, {"kind": "jump"})
    for read in (Unembedding.load, Unembedding.read_facts):
        assert error_of(lambda read=read: read(path)) == f"{path}: holds jump, expected an unembedding"


def test_facts_are_read_without_a_tensor(tmp_path, monkeypatch):
    extract_unembedding(tiny_model("llama"))[0].save(tmp_path / "h", FACTS)
    monkeypatch.setattr(TensorFile, "tensor", lambda *_: pytest.fail("a tensor was read"))
    assert Unembedding.read_facts(tmp_path / "h")["n_blocks"] == FACTS["n_blocks"]


def test_the_head_file_tells_model_revision_dtype_blocks_and_parameters(tmp_path):
    source = save_tiny_model("llama", tmp_path / "model")
    save_unembedding(source, "float32", tmp_path / "h", blocks=3)
    model = source.load_model()
    metadata = Unembedding.read_facts(tmp_path / "h")
    assert metadata == Unembedding.load(tmp_path / "h").metadata
    assert (metadata["model"], metadata["revision"]) == source.identity()
    assert (metadata["dtype"], metadata["n_blocks"]) == ("float32", 3)
    assert metadata["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_wrong_number_of_blocks_is_refused_with_the_right_one(tmp_path):
    source = save_tiny_model("llama", tmp_path / "model")
    message = error_of(lambda: save_unembedding(source, "float32", tmp_path / "h", blocks=4))
    assert message.endswith("has 3 blocks, the config says 4; set blocks: 3")
    assert not (tmp_path / "h").exists()


def own_logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def logits_from(unembedding, anatomy, ids):
    captured = {}
    with torch.inference_mode():
        anatomy.run(ids, captured.__setitem__)
    return unembedding.logits(captured[len(anatomy.blocks)])


@pytest.mark.parametrize(
    ("norm_first", "width", "kind"),
    [(False, 16, "none"), (False, 32, "none"), (True, 16, "layer"), (True, 32, "layer")],
)
def test_the_projection_of_opt_350m_is_part_of_its_output_embedding(norm_first, width, kind):
    """OPT-350m has its norms after the blocks' parts, so no final one, and a smaller output embedding."""
    config = transformers.OPTConfig(
        **SIZES, hidden_size=32, ffn_dim=64, do_layer_norm_before=norm_first, word_embed_proj_dim=width
    )
    model, ids = model_from(config), random_ids((3, 10))
    unembedding, anatomy = extract_unembedding(model)
    assert (unembedding.norm_kind, unembedding.hidden_size) == (kind, 32)
    assert relative_error(logits_from(unembedding, anatomy, ids), own_logits(model, ids)) < 1e-5


def test_biases_of_linear_maps_in_a_row_add_up():
    model, ids = tiny_model("phi"), random_ids((3, 10))
    model.lm_head = nn.Sequential(nn.Linear(HIDDEN_SIZE, 7), nn.Linear(7, VOCABULARY))
    unembedding, anatomy = extract_unembedding(model)
    assert unembedding.bias.abs().max() > 0
    assert relative_error(logits_from(unembedding, anatomy, ids), own_logits(model, ids)) < 1e-5


@pytest.mark.parametrize(
    ("model_type", "kind", "weight"),
    [
        ("olmo", "layer", "1"),
        ("nanochat", "rms", "1"),
        ("nemotron", "layer", "1 + w"),
        ("gemma", "rms", "1 + w"),
        ("lfm2", "rms", "w"),
        ("xglm", "layer", "w"),
        ("ctrl", "layer", "w"),
        ("bart", "none", "1"),
    ],
)
def test_a_norm_is_known_by_what_it_computes(model_type, kind, weight):
    unembedding, anatomy = extract_unembedding(tiny_architecture(model_type))
    ones = torch.ones(anatomy.hidden_size)
    expected = {"1": ones} if weight == "1" else {"w": anatomy.norm.weight, "1 + w": 1 + anatomy.norm.weight}
    assert unembedding.norm_kind == kind
    assert torch.equal(unembedding.norm_weight, expected[weight])


def test_eps_is_found_where_the_module_does_not_tell_it():
    assert extract_unembedding(tiny_architecture("olmo"))[0].eps == pytest.approx(1e-5, rel=1e-5)


FACTORS = {
    "cohere": ({"logit_scale": 0.3}, 0.3),
    "granite": ({"logits_scaling": 7.0}, 1 / 7),
    "falcon_h1": ({"lm_head_multiplier": 0.3}, 0.3),
    "hyperclovax": ({"logits_scaling": 0.3}, 0.3),
    "mpt": ({"logit_scale": 0.3}, 1.0),  # its model does not look at this key
    "minicpm3": ({"dim_model_base": 12}, 12 / 32),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", FACTORS)
def test_a_factor_on_the_logits_is_found_under_any_name(model_type, dtype):
    changes, expected = FACTORS[model_type]
    config = tiny_config(transformers.CONFIG_MAPPING[model_type])
    for key, value in changes.items():
        setattr(config, key, value)
    scale = extract_unembedding(model_from(config, dtype=dtype))[0].scale
    assert scale == pytest.approx(expected, rel=1e-6 if dtype == "float32" else 1e-2)
    assert scale == expected or model_type == "minicpm3"  # its config does not hold the factor itself


@pytest.mark.parametrize("model_type", ["recurrent_gemma", "xlstm", "nanochat", "gemma3_text"])
def test_a_soft_cap_is_found_under_any_name(model_type):
    config = tiny_config(transformers.CONFIG_MAPPING[model_type])
    (key,) = (key for key in config.to_dict() if "cap" in key and "logit" in key and "attn" not in key)
    setattr(config, key, 3.0)
    assert extract_unembedding(model_from(config))[0].softcap == 3.0


def test_logits_that_are_cut_to_a_smaller_vocabulary_cut_the_output_embedding():
    model, ids = tiny_model("phi"), random_ids((3, 10))
    model.lm_head.register_forward_hook(lambda module, args, logits: logits[..., : VOCABULARY - 5])
    unembedding, anatomy = extract_unembedding(model)
    assert unembedding.weight.shape == (VOCABULARY - 5, HIDDEN_SIZE)
    assert relative_error(logits_from(unembedding, anatomy, ids), own_logits(model, ids)) < 1e-5


def test_t5_is_refused_because_it_is_no_causal_language_model(tmp_path):
    config = transformers.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    message = error_of(lambda: ModelSource(str(tmp_path / "t5")).load_model())
    assert message.startswith(f"model {tmp_path / 't5'}: cannot be loaded as CausalLM")


def cap_after_head(model):
    model.lm_head.register_forward_hook(lambda module, args, logits: logits.tanh())


def shift_after_norm(model):
    """A module in the same place, which a probe of the final norm alone does not see."""
    model.model.register_forward_hook(
        lambda module, args, output: type(output)(last_hidden_state=output.last_hidden_state + 0.1)
    )


@pytest.mark.parametrize("meddle", [cap_after_head, shift_after_norm])
def test_a_model_that_does_more_between_norm_and_logits_is_refused_by_name(meddle):
    model = tiny_model("llama")
    meddle(model)
    message = error_of(lambda: extract_unembedding(model))
    assert message.startswith("LlamaForCausalLM is not supported: final norm, output head")


def test_a_norm_of_another_kind_is_refused_by_name(monkeypatch):
    model = tiny_model("llama")
    norm = type(model.model.norm)
    monkeypatch.setattr(norm, "forward", lambda self, h: self.weight * h / h.abs().amax(-1, keepdim=True))
    message = error_of(lambda: extract_unembedding(model))
    assert message == (
        "LlamaForCausalLM is not supported: its final norm LlamaRMSNorm is neither RMSNorm nor LayerNorm "
        "(with w, 1 + w or 1)"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["lm_head.weight", "model.norm.weight"])
def test_a_head_that_is_not_finite_is_refused(place, value):
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter(place).view(-1)[5] = value
    assert error_of(lambda: extract_unembedding(model)).startswith("LlamaForCausalLM")
