"""Random weights in files are a model, and its tokenizer knows its words."""

import json
import shutil

import pytest
import torch
from refusals import error_of
from safetensors.torch import load_file

from onejump.models.anatomy import find_anatomy
from onejump.models.random_weights import save_random_model
from onejump.models.sources import ModelSource
from onejump.models.unembedding import extract_unembedding

LLAMA = {"model_type": "llama", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3}
LLAMA |= {"num_attention_heads": 4, "intermediate_size": 64}
MIXTURE = {"model_type": "mixtral", "num_local_experts": 4, "num_key_value_heads": 4}


@pytest.mark.parametrize("more", [{}, {"tie_word_embeddings": True}, MIXTURE], ids=["plain", "tied", "mixture"])
def test_it_loads_as_any_model_and_no_two_of_its_matrices_are_alike(tmp_path, more):
    folder = tmp_path / "model"
    save_random_model(LLAMA | more, "bfloat16", ["one", "two"], folder)
    source = ModelSource(str(folder))
    model = source.load_model()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    starts = {tuple(matrix[0, :8].tolist()) for matrix in matrices}
    assert len(starts) == len(matrices) > 10
    first = find_anatomy(model).blocks[0].self_attn.q_proj.weight
    assert torch.linalg.matrix_rank(first) == 32 and first.std().item() == pytest.approx(0.02, rel=0.1)
    logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert logits.isfinite().all() and logits.std() > 0
    extract_unembedding(model)  # the saved unembedding gives this model's own logits
    assert source.load_tokenizer()("two one three")["input_ids"] == [2, 1, 0]


def test_its_files_hold_a_block_each_in_the_dtype_that_is_asked_for(tmp_path):
    save_random_model(LLAMA | MIXTURE, "float16", [], tmp_path / "model")
    files = [load_file(file) for file in sorted((tmp_path / "model").glob("*.safetensors"))]
    places = [{name.split(".")[2] if "layers" in name else name for name in file} for file in files]
    assert places == [{"model.embed_tokens.weight"}, {"0"}, {"1"}, {"2"}, {"model.norm.weight"}, {"lm_head.weight"}]
    assert {tensor.dtype for file in files for tensor in file.values()} == {torch.float16}
    assert any("experts.3" in name for name in files[1])  # names as published models have them
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architectures"] == ["MixtralForCausalLM"]


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    assert "GB free; make room" in error_of(lambda: save_random_model(LLAMA, "float32", [], tmp_path / "model"))
    assert not list(tmp_path.iterdir())
