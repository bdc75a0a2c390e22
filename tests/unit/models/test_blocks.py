"""Blocks come out of the files as they come out of a model loaded whole; what cannot come alone is refused by name."""

import json
import math

import pytest
import torch
from refusals import error_of
from safetensors import safe_open
from tiny_architectures import TRIED, tiny_architecture
from tiny_models import save_tiny_model, tiny_model

from onejump.models.anatomy import find_anatomy
from onejump.models.architecture import LARGEST_WHOLE, by_blocks
from onejump.models.blocks import Blocks, load_model
from onejump.models.devices import free_bytes
from onejump.models.sources import ModelSource
from onejump.models.unembedding import extract_unembedding
from onejump.models.weights import Weights

CPU = torch.device("cpu")


def blocks_of(source: ModelSource, dtype: str = "float32") -> Blocks:
    return Blocks(source, Weights(source.find_weights()), dtype)


@pytest.mark.parametrize("model_type", TRIED)
def test_each_block_has_the_weights_buffers_and_dtypes_of_the_whole_model(model_type, tmp_path):
    tiny_architecture(model_type).save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path))
    whole, path = source.load_model("bfloat16"), find_anatomy(source.load_model()).paths["blocks"]
    blocks = Blocks(source, Weights(source.find_weights()), "bfloat16", path=path)
    expected, found = whole.state_dict(), {}
    for k in range(len(blocks)):
        with blocks.loaded(k):
            found |= {name: tensor for name, tensor in blocks.model.state_dict().items() if not tensor.is_meta}
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    own = dict(blocks.model.named_buffers())  # also those that no file holds
    with blocks.loaded(0):
        assert all(torch.equal(buffer, own[name]) for name, buffer in whole.named_buffers() if not own[name].is_meta)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "granite", "opt"])
def test_an_unembedding_is_taken_out_without_the_whole_model(family, tmp_path):
    source = save_tiny_model(family, tmp_path)
    expected, anatomy = extract_unembedding(source.load_model())
    blocks, loads = blocks_of(source), []
    load = blocks._load

    def counted(k: int) -> None:
        loads.append(k)
        load(k)

    blocks._load = counted
    with blocks.on_demand():
        found, same = extract_unembedding(blocks.model)
    assert loads == list(range(len(blocks)))  # a single pass
    assert same.paths == anatomy.paths
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.norm_weight, expected.norm_weight)
    assert (found.eps, found.scale, found.softcap) == (expected.eps, expected.scale, expected.softcap)
    assert all(parameter.is_meta for parameter in same.blocks.parameters())


def test_a_tensor_that_is_read_lies_in_its_cache_line_as_in_the_file(tmp_path):
    """Some products differ in their last bits otherwise, as they would from those of a model loaded whole."""
    source = in_parts(tmp_path)
    weights, places = Weights(source.find_weights()), set()
    for file in source.find_weights():
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dict
                mapped, found = opened.get_tensor(name), weights.read(name)
                assert torch.equal(found, mapped)
                assert found.data_ptr() % 64 == mapped.data_ptr() % 64
                places.add(found.data_ptr() % 64)
    assert len(places) > 1


def test_weights_that_several_blocks_share_stay_loaded(tmp_path):
    tiny_architecture("zamba2").save_pretrained(tmp_path)
    blocks = blocks_of(ModelSource(str(tmp_path)))
    places = {}
    for name, parameter in blocks.model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    shared = [names for names in places.values() if len(names) > 1 and "layers" in names[0]]
    assert shared
    assert not any(blocks.model.get_parameter(name).is_meta for names in shared for name in names)


# ---------------------------------------------------------------------------------------------------------- which way


def test_auto_is_whole_up_to_a_size_and_where_there_is_room_or_there_are_more_gpus():
    assert not by_blocks("auto", LARGEST_WHOLE)
    assert by_blocks("auto", LARGEST_WHOLE + 1)
    assert by_blocks("auto", 1e9, free=1.9e9)
    assert not by_blocks("auto", 1e9, free=2.1e9)
    assert not by_blocks("auto", 1e12, gpus=2)
    assert by_blocks("blocks", 1.0) and not by_blocks("whole", 1e12)


def test_the_free_memory_of_the_host_is_a_number_below_all_of_it():
    with open("/proc/meminfo") as info:
        total = 1024 * int(info.readline().split()[1])
    assert 0 < free_bytes(CPU) < total


def test_auto_goes_by_the_memory_that_is_free(tmp_path, monkeypatch):
    source = save_tiny_model("llama", tmp_path)
    assert load_model(source, "auto", "float32")[1] is None
    needed = sum(parameter.numel() for parameter in source.load_model().parameters()) * 4
    for free, held_in_blocks in ((2 * needed - 1, True), (2 * needed, False), (math.inf, False)):
        monkeypatch.setattr("onejump.models.blocks.free_bytes", lambda _, free=free: free)
        assert (load_model(source, "auto", "float32")[1] is not None) is held_in_blocks
    assert load_model(source, "blocks", "float32")[1] is not None


def test_weights_in_another_format_are_held_whole_and_a_line_says_so(tmp_path, capsys):
    source = save_tiny_model("llama", tmp_path)
    torch.save(source.load_model().state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    capsys.readouterr()
    assert load_model(source, "auto", "float32")[1] is None
    assert f"onejump: model {tmp_path}: has no safetensors files, so it is held whole\n" in capsys.readouterr().err
    message = error_of(lambda: load_model(source, "blocks", "float32"))
    reason = "cannot be loaded block by block, since it has no safetensors files; set load: whole"
    assert message == f"model {tmp_path}: {reason}"


# ----------------------------------------------------------------------------------------------------------- bad input


def in_parts(folder) -> ModelSource:
    """A tiny model in several files."""
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    return ModelSource(str(folder))


def test_a_missing_file_of_weights_is_named(tmp_path):
    source = in_parts(tmp_path)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    message = error_of(lambda: load_model(source, "blocks", "float32"))
    assert message == f"{lost}: no such file, but the model's index names it; download the model again"


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda content: content[:-100], "; download it again"),
        (lambda content: content[:20], "; download it again"),
        (lambda content: b"", "; {} is empty: download it again"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\n", "; {} is a Git LFS pointer"),
    ],
)
def test_a_cut_file_of_weights_is_named_before_anything_is_computed(tmp_path, change, hint):
    source = in_parts(tmp_path)
    cut = sorted(tmp_path.glob("*.safetensors"))[2]
    cut.write_bytes(change(cut.read_bytes()))
    message = error_of(lambda: load_model(source, "blocks", "float32"))
    assert message.startswith(f"{cut}: not a whole safetensors file (")
    assert hint.format(cut.name) in message


def test_a_file_that_is_cut_while_it_is_in_use_is_named(tmp_path):
    source = save_tiny_model("llama", tmp_path)
    blocks, file = blocks_of(source), tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert error_of(lambda: blocks.loaded(2).__enter__()).startswith(f"{file}: not a whole safetensors file (")


def test_weights_that_the_files_lack_are_named(tmp_path):
    source = save_tiny_model("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    message = error_of(lambda: load_model(source, "blocks", "float32"))
    assert message.startswith(f"model {tmp_path}: lacks model.layers.3.")
    assert message == error_of(source.load_model)


def test_what_cannot_be_loaded_block_by_block_is_refused_with_what_to_set(tmp_path, monkeypatch):
    source = save_tiny_model("llama", tmp_path)
    refused = f"model {tmp_path}: cannot be loaded block by block, since "
    spread = ModelSource(source.location, gpus=2)
    assert error_of(lambda: load_model(spread, "blocks", "float32")) == f"{refused}gpus is 2; set load: whole"
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value, why in (
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "its weights are quantised"),
        ("transformers_weights", "other.safetensors", "its config names a file of weights"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        assert error_of(lambda: load_model(source, "blocks", "float32")) == f"{refused}{why}; set load: whole"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").rename(tmp_path / "weights")
    message = error_of(lambda: load_model(source, "blocks", "float32"))
    assert message == f"{refused}it has no safetensors files; set load: whole"
    (tmp_path / "weights").rename(tmp_path / "model.safetensors")

    def unbuildable(*_, **__):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors. More follows")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", unbuildable)
    message = error_of(lambda: load_model(source, "blocks", "float32"))
    assert message.startswith(f"{refused}it cannot be built without memory (Tensor")


def test_a_block_whose_weights_are_not_all_among_its_own_tensors_is_refused(tmp_path):
    blocks = blocks_of(save_tiny_model("llama", tmp_path))
    blocks._names[1].remove("model.layers.1.mlp.up_proj.weight")
    message = error_of(lambda: blocks.loaded(1).__enter__())
    assert "the files' tensors of block 1 alone do not give its weight" in message


def test_a_block_that_does_not_fit_on_the_device_is_named(tmp_path, monkeypatch):
    blocks = blocks_of(save_tiny_model("llama", tmp_path))
    assert blocks.largest == max(
        sum(4 * parameter.numel() for parameter in layer.parameters()) for layer in blocks.model.model.layers
    )

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("transformers.core_model_loading.convert_and_load_state_dict_in_model", full)
    message = error_of(lambda: blocks.loaded(0).__enter__())
    assert message == "block 0 does not fit on the device; use one with 0.0 GB for a block, or a smaller dtype"
