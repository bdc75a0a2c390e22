"""Random weights in one memory are a model."""

import json

import torch

from onejump.models.anatomy import find_anatomy
from onejump.models.random_weights import RandomSource
from onejump.models.unembedding import extract_unembedding


def test_matrices_share_one_memory_and_are_different_all_the_same(tmp_path):
    config = {"model_type": "llama", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3}
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(config | {"num_attention_heads": 4, "intermediate_size": 64}))
    model = RandomSource(f"random:{file}").load_model()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    assert len({matrix.untyped_storage().data_ptr() for matrix in matrices}) == 1
    blocks = find_anatomy(model).blocks
    first, second = (block.self_attn.q_proj.weight for block in blocks[:2])
    assert not torch.equal(first, second)
    assert torch.linalg.matrix_rank(first) == 32
    assert not torch.equal(first, blocks[0].self_attn.k_proj.weight)
    logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert logits.isfinite().all()
    assert logits.std() > 0
    extract_unembedding(model)  # the saved unembedding gives this model's own logits
