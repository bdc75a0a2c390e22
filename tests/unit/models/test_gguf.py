"""A GGUF file becomes a folder that loads as the same model; a file that is refused leaves no folder."""

import json
import os
import stat

import gguf
import numpy as np
import pytest
import torch
from levels_by_hand import random_ids
from refusals import OTHER_SHA256, error_of, files_under
from safetensors.torch import load_file
from tiny_gguf import write_tiny_gguf
from tiny_models import tiny_tokenizer

from onejump.files.atomic import OnejumpError
from onejump.files.digests import sha256_of_file
from onejump.files.sealed import read_sealed_json, write_sealed_json
from onejump.models.gguf import convert_gguf
from onejump.models.sources import ModelSource
from onejump.models.weights import WeightsWriter


@pytest.fixture
def path(tmp_path):
    """Where a test's GGUF file lies, alone in its folder."""
    return tmp_path / "tiny.gguf"


def refusal(path):
    """The message when a file is converted, which must leave nothing behind."""
    message = error_of(lambda: convert_gguf(path, path.parent / "out"))
    assert files_under(path.parent) == [path.name] * path.exists()
    return message


def test_a_gguf_model_becomes_a_folder_that_loads_as_the_same_model(path, tmp_path, capsys):
    model = write_tiny_gguf(path)
    convert_gguf(path, tmp_path / "out", sha256_of_file(path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "tiny.gguf"]
    source = ModelSource(str(tmp_path / "out"))
    found = source.load_model()
    assert source.identity() == ("tiny.gguf", sha256_of_file(path))
    ids = random_ids((2, 5))
    with torch.inference_mode():
        assert torch.equal(found(input_ids=ids).logits, model(input_ids=ids).logits)
    assert source.load_tokenizer()("bab dek")["input_ids"] == tiny_tokenizer()("bab dek")["input_ids"]
    assert "onejump:" not in capsys.readouterr().err


@pytest.mark.parametrize("family", ["llama", "qwen3moe"])
def test_one_block_at_a_time_is_converted(path, tmp_path, monkeypatch, family):
    """Between two files of weights, no more tensors are unpacked than those of a block, or one of none."""
    unpacked, groups, dequantize, add = [], [], gguf.dequantize, WeightsWriter.add
    monkeypatch.setattr(gguf, "dequantize", lambda *args: unpacked.append(args) or dequantize(*args))

    def counted(self, tensors) -> None:
        groups.append((len(unpacked), {name.split(".")[2] if "layers" in name else name for name in tensors}))
        unpacked.clear()
        add(self, tensors)

    monkeypatch.setattr(WeightsWriter, "add", counted)
    model = write_tiny_gguf(path, family=family)
    convert_gguf(path, tmp_path / "out")
    rest = [name for name in model.state_dict() if "layers" not in name]
    blocks = [*map(str, range(model.config.num_hidden_layers)), *rest]
    assert sorted(groups[0][1]) == ["0"] and sorted(name for _, names in groups for name in names) == sorted(blocks)
    assert max(number for number, _ in groups) < 14
    files = [load_file(file) for file in (tmp_path / "out").glob("*.safetensors")]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) == len(blocks) and index["weight_map"].keys() == {name for file in files for name in file}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for file in files for tensor in file.values())


def test_the_library_is_left_as_it_was(path, tmp_path):
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    write_tiny_gguf(path)
    convert_gguf(path, tmp_path / "out")
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_a_second_conversion_replaces_the_first_and_what_a_killed_one_left(path, tmp_path):
    write_tiny_gguf(path)
    convert_gguf(path, tmp_path / "out")
    expected = {name: sha256_of_file(tmp_path / "out" / name) for name in files_under(tmp_path / "out")}
    (tmp_path / "out" / "old").touch()
    (tmp_path / ".out.01234567.tmp").mkdir()
    (tmp_path / ".out.01234567.tmp" / "model.safetensors").touch()
    convert_gguf(path, tmp_path / "out")
    assert {name: sha256_of_file(tmp_path / "out" / name) for name in files_under(tmp_path / "out")} == expected
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "tiny.gguf"]


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_all_files_of_the_folder_follow_the_umask(path, tmp_path, umask):
    write_tiny_gguf(path)
    before = os.umask(umask)
    try:
        convert_gguf(path, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)


def test_an_interrupted_conversion_leaves_nothing(path, tmp_path, monkeypatch):
    write_tiny_gguf(path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("onejump.models.gguf.write_sealed_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(path, tmp_path / "out")
    assert files_under(tmp_path) == ["tiny.gguf"]


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("token_embd.weight", "model.embed_tokens.weight"),
    ],
)
def test_a_file_that_lacks_a_tensor_is_refused_and_not_given_random_weights(path, lost, named):
    write_tiny_gguf(path, lambda tensors: tensors.pop(lost))
    assert refusal(path).startswith(f"{path}: lacks {named}; ")


def test_every_missing_tensor_is_named(path):
    def alter(tensors):
        for block in range(3):
            del tensors[f"blk.{block}.attn_v.weight"]

    write_tiny_gguf(path, alter)
    message = refusal(path)
    assert all(f"model.layers.{block}.self_attn.v_proj.weight" in message for block in range(3))


@pytest.mark.parametrize("lost", ["blk.1.ffn_up_exps.weight", "blk.1.ffn_gate_exps.weight"])
def test_a_file_that_lacks_half_of_the_experts_is_refused_and_not_given_zeros(path, lost):
    """Transformers puts the two tensors into one, and leaves zeros where there is none."""
    write_tiny_gguf(path, lambda tensors: tensors.pop(lost), family="qwen3moe")
    assert refusal(path).startswith(
        f"{path}: lacks model.layers.1.mlp.experts.gate_up_proj (98304 of 196608 numbers); "
    )


def test_a_whole_mixture_of_experts_is_converted(path, tmp_path, capsys):
    model = write_tiny_gguf(path, family="qwen3moe")
    convert_gguf(path, tmp_path / "out")
    ids = random_ids((2, 5))
    with torch.inference_mode():
        found = ModelSource(str(tmp_path / "out")).load_model()(input_ids=ids).logits
        assert torch.allclose(found, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert "onejump:" not in capsys.readouterr().err


def test_a_tensor_of_another_shape_is_refused_by_name(path):
    write_tiny_gguf(path, lambda tensors: tensors.update({"output_norm.weight": np.ones(16, np.float32)}))
    assert refusal(path).startswith(f"{path}: lacks model.norm.weight (16 of 32 numbers); ")


def test_tensors_that_the_model_has_no_place_for_are_named(path, tmp_path, capsys):
    write_tiny_gguf(path, lambda tensors: tensors.update({"rope_freqs.weight": np.ones(4, np.float32)}))
    convert_gguf(path, tmp_path / "out")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onejump:")]
    assert lines == [f"onejump: {path}: the model has no place for rope_freqs.weight; left out"]


@pytest.mark.parametrize(
    "content", [b"", b"nonsense" * 100, b"GGUF" + b"\0" * 100, b"GGUF\3\0\0\0" + b"\0" * 16], ids=repr
)
def test_a_file_that_is_no_gguf_model_is_refused_and_leaves_no_folder(path, content):
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: not a GGUF model")


def test_a_file_that_is_cut_short_is_refused_wherever_it_is_cut(path):
    write_tiny_gguf(path)
    whole = path.read_bytes()
    for size in [*range(1, 200, 7), *range(200, 6000, 400), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert refusal(path).startswith(f"{path}: not a GGUF model"), size


def outcome(path):
    """The message of the refusal, or None where the file was converted."""
    try:
        convert_gguf(path, path.parent / "out")
    except OnejumpError as error:
        return str(error)


def test_flipped_bytes_in_the_header_are_refused_or_converted_but_never_end_in_a_trace(path):
    write_tiny_gguf(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    messages = []
    for place in rng.integers(0, 1500, 60):
        content = bytearray(whole)
        content[place] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        messages.append(outcome(path))
    assert sum(message is not None for message in messages) > 20
    assert not any("\n" in message for message in messages if message is not None)


def test_a_pointer_to_a_gguf_file_is_called_a_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n")
    assert "tiny.gguf is a Git LFS pointer" in refusal(path)


def test_a_gguf_file_with_another_digest_is_refused_and_leaves_no_folder(path, tmp_path):
    path.write_bytes(b"GGUF")
    assert "its sha256 is" in error_of(lambda: convert_gguf(path, tmp_path / "out", OTHER_SHA256))
    assert files_under(tmp_path) == ["tiny.gguf"]


def test_a_missing_gguf_file_is_refused(path):
    assert "no such file" in refusal(path)


# ------------------------------------------------------------------------------------------------------------- identity


@pytest.fixture
def converted(path, tmp_path):
    """A folder that was converted from a GGUF file."""
    write_tiny_gguf(path)
    convert_gguf(path, tmp_path / "out")
    return tmp_path / "out"


def flip_a_weight(folder):
    weights = sorted(folder.glob("*.safetensors"))[-1]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def change_the_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))


def forget_the_digest(folder):
    provenance = read_sealed_json(folder / "onejump.json")
    write_sealed_json(folder / "onejump.json", {key: provenance[key] for key in ("model", "revision")})


@pytest.mark.parametrize("change", [flip_a_weight, change_the_config, forget_the_digest])
def test_a_converted_folder_that_was_changed_is_refused(converted, change):
    change(converted)
    source = ModelSource(str(converted))
    message = error_of(lambda: source.identity())
    assert message.startswith(f"model {converted}: is not as it was converted from tiny.gguf; ")


def test_without_its_provenance_a_changed_folder_is_a_model_of_its_own(converted):
    flip_a_weight(converted)
    (converted / "onejump.json").unlink()
    source = ModelSource(str(converted))
    assert source.identity()[0] == "out"
