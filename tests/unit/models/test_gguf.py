"""A GGUF file becomes a folder that loads as the same model; a file that is refused leaves no folder."""

import pytest
import torch
import transformers
from levels_by_hand import random_ids
from refusals import OTHER_SHA256, error_of, files_under
from tiny_models import tiny_model, tiny_tokenizer

from onejump.files.digests import sha256_of_file
from onejump.models.gguf import convert_gguf
from onejump.models.sources import ModelSource


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
    """Transformers' GGUF reader is replaced by the model it would return: this tests what happens next."""
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
