"""The saved unembedding gives the model's own logits, and what cannot be right is refused."""

import pytest
import torch
import transformers
from levels_by_hand import LLAMA_LIKE, PLACES, random_ids, relative_error, run_with_hooks
from refusals import error_of
from tiny_models import (
    ALL_FAMILIES,
    FAMILIES,
    HIDDEN_SIZE,
    N_BLOCKS,
    model_from,
    save_tiny_model,
    save_unembedding,
    tiny_model,
)
from torch import nn

from onejump.files.tensors import TensorFile, write_tensors
from onejump.models.sources import ModelSource
from onejump.models.unembedding import Unembedding, extract_unembedding

FACTS = {"model": "m", "revision": "r", "dtype": "bfloat16", "n_blocks": 3, "parameters": 12}
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


@pytest.mark.parametrize("eps", [1e-2, 1e-5, 1e-8])
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
    assert (metadata["model"], metadata["revision"]) == source.identity(model)
    assert (metadata["dtype"], metadata["n_blocks"]) == ("float32", 3)
    assert metadata["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_wrong_number_of_blocks_is_refused_with_the_right_one(tmp_path):
    source = save_tiny_model("llama", tmp_path / "model")
    message = error_of(lambda: save_unembedding(source, "float32", tmp_path / "h", blocks=4))
    assert message.endswith("has 3 blocks, the config says 4; set blocks: 3")
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize("settings", [{"word_embed_proj_dim": 32}, {"word_embed_proj_dim": 16}])
def test_opt_350m_with_its_norms_after_the_blocks_is_refused_by_name(settings):
    config = transformers.OPTConfig(**SIZES, hidden_size=32, ffn_dim=64, do_layer_norm_before=False, **settings)
    message = error_of(lambda: extract_unembedding(model_from(config)))
    assert message.startswith("OPTForCausalLM is not supported: looked for one final norm")


def test_a_projection_between_final_norm_and_output_head_is_refused_by_name():
    config = transformers.OPTConfig(**SIZES, hidden_size=32, ffn_dim=64, word_embed_proj_dim=16)
    assert error_of(lambda: extract_unembedding(model_from(config))).startswith("OPTForCausalLM is not supported")


def test_bert_is_refused_because_it_sees_what_comes_later():
    config = transformers.BertConfig(**SIZES, hidden_size=32, intermediate_size=64)
    assert error_of(lambda: extract_unembedding(model_from(config))).startswith("BertLMHeadModel is not causal")


def test_t5_is_refused_because_it_is_no_causal_language_model(tmp_path):
    config = transformers.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    message = error_of(lambda: ModelSource(str(tmp_path / "t5")).load_model())
    assert message.startswith(f"model {tmp_path / 't5'}: cannot be loaded as CausalLM")


def test_a_norm_without_weight_is_refused_by_name():
    config = transformers.OlmoConfig(**SIZES, hidden_size=32, intermediate_size=64)
    message = error_of(lambda: extract_unembedding(model_from(config)))
    assert message.startswith("OlmoForCausalLM is not supported: its final norm OlmoLayerNorm")


def double_before_head(model):
    model.lm_head.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def cap_after_head(model):
    model.lm_head.register_forward_hook(lambda module, args, logits: logits.tanh())


def shift_after_norm(model):
    """A module in the same place, which a probe of the final norm alone does not see."""
    model.model.register_forward_hook(
        lambda module, args, output: type(output)(last_hidden_state=output.last_hidden_state + 0.1)
    )


@pytest.mark.parametrize("meddle", [double_before_head, cap_after_head, shift_after_norm])
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
    assert (
        message
        == "LlamaForCausalLM is not supported: its final norm LlamaRMSNorm is neither RMSNorm (with w or "
        + ("1 + w) nor LayerNorm")
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["lm_head.weight", "model.norm.weight"])
def test_a_head_that_is_not_finite_is_refused(place, value):
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter(place).view(-1)[5] = value
    assert error_of(lambda: extract_unembedding(model)).startswith("LlamaForCausalLM")
