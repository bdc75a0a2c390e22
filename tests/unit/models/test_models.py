"""Models are fetched, converted, loaded and identified, and what cannot be used is refused."""

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
    FAMILIES,
    MAX_POSITIONS,
    VOCABULARY,
    save_tiny_model,
    tiny_model,
    tiny_tokenizer,
)
from torch import nn

from onejump.files.atomic import OnejumpError, write_json
from onejump.files.digests import check_sha256, sha256_of_file
from onejump.files.downloads import fetch_wheel_member
from onejump.models.devices import resolve_device
from onejump.models.gguf import convert_gguf
from onejump.models.sources import ModelSource


def random_ids(shape, seed=0):
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------------------------------------- devices


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


# -------------------------------------------------------------------------------------------------------------- loading


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


# ------------------------------------------------------------------------------------------------------------- identity


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


# ---------------------------------------------------------------------------------------------------- fetch and convert


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
