"""The saved head gives the model's own logits, h^k is what enters block k, and what cannot be right is refused."""

import json
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from refusals import error_of
from safetensors.torch import load_file, save_file
from tiny_models import (
    ALL_FAMILIES,
    FAMILIES,
    HIDDEN_SIZE,
    MAX_POSITIONS,
    N_BLOCKS,
    VOCABULARY,
    model_from,
    save_tiny_model,
    tiny_model,
    tiny_tokenizer,
)
from torch import nn

from onejump.files.atomic import OnejumpError, write_json
from onejump.files.digests import check_sha256, sha256_of_file
from onejump.files.downloads import fetch_wheel_member
from onejump.files.tensors import write_tensors
from onejump.models.anatomy import find_anatomy
from onejump.models.devices import resolve_device
from onejump.models.gguf import convert_gguf
from onejump.models.sources import ModelSource
from onejump.models.unembedding import Unembedding, extract_unembedding, save_unembedding

# Where each architecture keeps its blocks and its final norm, written down by hand from its source.
PLACES = {
    "gpt2": ("transformer.h", "transformer.ln_f"),
    "gptj": ("transformer.h", "transformer.ln_f"),
    "gpt_neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    "opt": ("model.decoder.layers", "model.decoder.final_layer_norm"),
    "phi": ("model.layers", "model.final_layernorm"),
}
LLAMA_LIKE = ("model.layers", "model.norm")
FACTS = {"model": "m", "revision": "r", "dtype": "bfloat16", "n_blocks": 3, "parameters": 12}
SIZES = {"vocab_size": 97, "max_position_embeddings": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


def random_ids(shape, seed=0):
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found, expected):
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def run_with_hooks(model, family, ids):
    """What enters each block and the final norm, by hooks of the test's own, and the model's own logits."""
    blocks, norm = PLACES.get(family, LLAMA_LIKE)
    modules = [*model.get_submodule(blocks), model.get_submodule(norm)]
    entered, handles = {}, []
    for level, module in enumerate(modules):

        def keep(module, args, kwargs, level=level):
            entered[level] = args[0] if args else kwargs["hidden_states"]

        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.inference_mode():
        output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return entered, output


# --------------------------------------------------------------------------------------------------------------- head


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2), ("float16", 3e-3)])
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
    "family, kind, norm_bias, bias, scale, softcap",
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
    assert str(path) in error_of(lambda: Unembedding.load(path))


def test_the_head_file_tells_model_revision_dtype_blocks_and_parameters(tmp_path):
    source = save_tiny_model("llama", tmp_path / "model")
    save_unembedding(source, "float32", tmp_path / "h", blocks=3)
    model = source.load_model()
    metadata = Unembedding.load(tmp_path / "h").metadata
    assert (metadata["model"], metadata["revision"]) == source.identity(model)
    assert (metadata["dtype"], metadata["n_blocks"]) == ("float32", 3)
    assert metadata["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_wrong_number_of_blocks_is_refused_with_the_right_one(tmp_path):
    source = save_tiny_model("llama", tmp_path / "model")
    message = error_of(lambda: save_unembedding(source, "float32", tmp_path / "h", blocks=4))
    assert message.endswith("has 3 blocks, the config says 4; set blocks: 3")
    assert not (tmp_path / "h").exists()


# ------------------------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_levels_are_what_enters_each_block_and_the_final_norm(family):
    model, ids, captured = tiny_model(family), random_ids((2, 9)), {}
    anatomy = find_anatomy(model)
    with torch.inference_mode(), anatomy.capture(captured.__setitem__):
        anatomy.backbone(input_ids=ids, use_cache=False)
    entered, output = run_with_hooks(model, family, ids)
    assert captured.keys() == entered.keys() == set(range(N_BLOCKS + 1))
    assert all(torch.equal(captured[level], entered[level]) for level in entered)
    states = output.hidden_states
    assert len(states) == N_BLOCKS + 1
    assert all(torch.equal(captured[level], states[level]) for level in range(N_BLOCKS))


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_transformers_last_hidden_state_is_the_norm_of_the_final_representation_and_not_it(family):
    model = tiny_model(family)
    unembedding, _ = extract_unembedding(model)
    entered, output = run_with_hooks(model, family, random_ids((2, 9)))
    final = entered[N_BLOCKS]
    assert relative_error(unembedding.normalise(final), output.hidden_states[-1]) < 1e-5
    assert relative_error(final, output.hidden_states[-1]) > 0.1


def test_level_0_is_the_embedding_with_what_the_architecture_adds_to_it():
    ids = random_ids((1, 7))
    llama, gpt2, gemma = (tiny_model(family) for family in ("llama", "gpt2", "gemma2"))
    with torch.inference_mode():
        expected = {
            "llama": llama.model.embed_tokens.weight[ids],
            "gpt2": gpt2.transformer.wte.weight[ids] + gpt2.transformer.wpe.weight[:7],
            "gemma2": gemma.model.embed_tokens.weight[ids] * HIDDEN_SIZE**0.5,
        }
    for model, (_, level_0) in zip((llama, gpt2, gemma), expected.items(), strict=True):
        captured = {}
        anatomy = find_anatomy(model)
        with torch.inference_mode(), anatomy.capture(captured.__setitem__):
            anatomy.backbone(input_ids=ids)
        assert torch.allclose(captured[0], level_0, rtol=1e-6)


def test_hooks_are_gone_after_a_capture_even_when_the_pass_raises():
    model, taken = tiny_model("llama"), []
    anatomy = find_anatomy(model)
    with pytest.raises(ZeroDivisionError), anatomy.capture(lambda level, h: taken.append(1 / level)):
        model(input_ids=random_ids((1, 4)))
    model(input_ids=random_ids((1, 4)))
    assert taken == []


# ----------------------------------------------------------------------------------------------------------- refusals


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


def test_an_output_head_that_is_not_linear_is_refused_by_name():
    model = tiny_model("llama")
    model.lm_head = nn.Sequential(nn.Linear(HIDDEN_SIZE, VOCABULARY))
    message = error_of(lambda: find_anatomy(model))
    assert message.endswith("looked for a torch.nn.Linear as output head, found Sequential")


@pytest.mark.parametrize("n_lists", [0, 2])
def test_blocks_that_are_not_found_or_found_twice_are_refused_by_name(n_lists):
    model = tiny_model("llama")
    model.model.more = nn.ModuleList([nn.Identity()] * 3)
    if n_lists == 0:
        model.config.num_hidden_layers = 5
    message = error_of(lambda: find_anatomy(model))
    assert message.startswith("LlamaForCausalLM is not supported") and message.endswith(f"found {n_lists}")


def test_two_final_norms_are_refused_by_name():
    model = tiny_model("llama")
    model.model.ln_f = nn.LayerNorm(HIDDEN_SIZE)
    assert error_of(lambda: find_anatomy(model)).endswith("found 2")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["lm_head.weight", "model.norm.weight"])
def test_a_head_that_is_not_finite_is_refused(place, value):
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter(place).view(-1)[5] = value
    assert error_of(lambda: extract_unembedding(model)).startswith("LlamaForCausalLM")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta"])
def test_an_unknown_device_is_refused_with_the_known_ones(name):
    message = error_of(lambda: resolve_device(name))
    assert message.startswith(f"device {name!r} cannot be used here")
    assert message.endswith("use auto, cpu, cuda or mps")


def test_a_device_that_is_not_here_is_refused():
    assert error_of(lambda: resolve_device("cuda:99")).startswith("device 'cuda:99' cannot be used here")


def test_auto_is_the_best_device_here():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto").type == best
    assert resolve_device("cpu") == torch.device("cpu")


# ------------------------------------------------------------------------------------------------------------ loading


@pytest.mark.parametrize("location", ["/no/such/folder", "./folder", "models/of/mine"])
def test_a_missing_folder_is_refused_without_asking_the_hub(location):
    started = time.monotonic()
    message = error_of(lambda: ModelSource(location).load_model())
    assert message == f"model {location}: no such folder; correct the path, or name a hub id as 'owner/name'"
    assert time.monotonic() - started < 1


def test_an_empty_folder_is_refused(tmp_path):
    assert str(tmp_path) in error_of(lambda: ModelSource(str(tmp_path)).load_model())


def damaged_weights(path):
    content = path.read_bytes()
    return {"cut short": content[: len(content) // 2], "garbage": b"garbage" * 20, "empty": b""}


@pytest.mark.parametrize("damage", ["cut short", "garbage", "empty"])
def test_a_model_whose_weights_are_damaged_is_refused_by_name(tmp_path, damage):
    source = save_tiny_model("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged_weights(path)[damage])
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
    """So the test before this one would have noticed."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    folder.mkdir()
    ran = folder_with_custom_code(folder)
    with pytest.raises((OnejumpError, AttributeError, TypeError)):
        ModelSource(str(folder), trust_remote_code=True).load_model()
    assert ran.exists()


# ----------------------------------------------------------------------------------------------------------- identity


def identity(folder):
    return ModelSource(str(folder)).identity(nn.Module())


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


def test_a_converted_model_is_identified_by_the_file_it_was_made_from(tmp_path):
    write_json(tmp_path / "onejump.json", {"model": "smol.gguf", "revision": "0123"})
    assert identity(tmp_path) == ("smol.gguf", "0123")


@pytest.mark.parametrize("revision, expected", [("v1", "v1"), (None, "unknown")])
def test_a_hub_model_without_a_cache_is_identified_by_the_revision_asked_for(revision, expected):
    source = ModelSource("owner-of-nothing/no-such-model", revision)
    assert source.identity(tiny_model("llama")) == ("owner-of-nothing/no-such-model", expected)


# ------------------------------------------------------------------------------------------------- fetch and convert


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


@pytest.fixture
def index(monkeypatch):
    """A package index with one wheel of one member; `pip download` copies it, and every command is kept."""
    commands = []

    def download(command, **options):
        commands.append(command)
        requirement, folder = command[-1], Path(command[command.index("--dest") + 1])
        if requirement != "demo==1.0":
            return subprocess.CompletedProcess(command, 1, "", "notice\nERROR: No matching distribution found\n")
        with zipfile.ZipFile(folder / "demo-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("demo/data.bin", b"the data")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    return commands


OTHER_SHA256 = "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"


def sha_of(tmp_path, content):
    (tmp_path / "content").write_bytes(content)
    digest = sha256_of_file(tmp_path / "content")
    (tmp_path / "content").unlink()
    return digest


def test_a_member_of_a_wheel_is_fetched_and_nothing_else_is_left(tmp_path, index):
    fetch_wheel_member("demo==1.0", "demo/data.bin", sha_of(tmp_path, b"the data"), tmp_path / "in" / "data.bin")
    assert (tmp_path / "in" / "data.bin").read_bytes() == b"the data"
    assert files_under(tmp_path) == ["in", "in/data.bin"]
    assert "--no-deps" in index[0]


@pytest.mark.parametrize(
    "wheel, member, named",
    [
        ("demo==1.0", "demo/data.bin", OTHER_SHA256),
        ("demo==1.0", "demo/other.bin", "has no member 'demo/other.bin'"),
        ("demo==2.0", "demo/data.bin", "cannot be downloaded (ERROR: No matching distribution found)"),
    ],
    ids=["wrong sha256", "missing member", "missing wheel"],
)
def test_a_wheel_that_is_not_as_configured_is_refused_and_nothing_is_left(tmp_path, index, wheel, member, named):
    message = error_of(lambda: fetch_wheel_member(wheel, member, OTHER_SHA256, tmp_path / "data.bin"))
    assert wheel in message and named in message
    assert files_under(tmp_path) == []


def test_a_wheel_cut_short_is_refused_by_name(tmp_path, index, monkeypatch):
    whole = subprocess.run

    def download(command, **options):
        done = whole(command, **options)
        wheel = next(Path(command[command.index("--dest") + 1]).iterdir())
        wheel.write_bytes(wheel.read_bytes()[:40])
        return done

    monkeypatch.setattr(subprocess, "run", download)
    message = error_of(lambda: fetch_wheel_member("demo==1.0", "demo/data.bin", OTHER_SHA256, tmp_path / "data.bin"))
    assert message.startswith("wheel demo==1.0: what came is no whole wheel (")
    assert files_under(tmp_path) == []


def test_a_failed_fetch_leaves_the_file_of_an_earlier_one_alone(tmp_path, index):
    (tmp_path / "data.bin").write_text("earlier")
    error_of(lambda: fetch_wheel_member("demo==1.0", "demo/data.bin", OTHER_SHA256, tmp_path / "data.bin"))
    assert (tmp_path / "data.bin").read_text() == "earlier"


def test_a_file_with_another_digest_is_refused_with_both(tmp_path):
    (tmp_path / "f").write_bytes(b"the data")
    message = error_of(lambda: check_sha256(tmp_path / "f", OTHER_SHA256))
    assert str(tmp_path / "f") in message and OTHER_SHA256 in message and sha256_of_file(tmp_path / "f") in message


@pytest.mark.parametrize(
    "content", [b"", b"nonsense" * 100, b"GGUF" + b"\0" * 100, b"GGUF\3\0\0\0" + b"\0" * 16], ids=repr
)
def test_a_file_that_is_no_gguf_model_is_refused_and_leaves_no_folder(tmp_path, content):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(content)
    assert error_of(lambda: convert_gguf(gguf, tmp_path / "out")).startswith(f"{gguf}: not a GGUF model")
    assert files_under(tmp_path) == ["model.gguf"]


def test_a_gguf_file_with_another_digest_is_refused_and_leaves_no_folder(tmp_path):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    assert "its sha256 is" in error_of(lambda: convert_gguf(gguf, tmp_path / "out", OTHER_SHA256))
    assert files_under(tmp_path) == ["model.gguf"]


def test_a_missing_gguf_file_is_refused(tmp_path):
    assert "no such file" in error_of(lambda: convert_gguf(tmp_path / "model.gguf", tmp_path / "out"))
    assert files_under(tmp_path) == []


def test_a_gguf_model_becomes_a_folder_that_loads_as_the_same_model(tmp_path, monkeypatch):
    """Transformers' own GGUF reader is replaced by the model it would return; what is tested is what comes after."""
    model, gguf = tiny_model("llama"), tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF of the tiny model")
    loaded = tiny_model("llama")
    loaded.config.quantization_config = {"quant_method": "gguf"}
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: loaded)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tiny_tokenizer())
    convert_gguf(gguf, tmp_path / "out", sha256_of_file(gguf))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("out", "tiny.gguf")] == []
    source = ModelSource(str(tmp_path / "out"))
    found = source.load_model()
    assert source.identity(found) == ("tiny.gguf", sha256_of_file(gguf))
    ids = random_ids((2, 5))
    with torch.inference_mode():
        assert torch.equal(found(input_ids=ids).logits, model(input_ids=ids).logits)
    assert source.load_tokenizer()("bab")["input_ids"] == tiny_tokenizer()("bab")["input_ids"]
