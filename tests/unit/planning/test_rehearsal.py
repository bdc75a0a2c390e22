"""Rehearsals: random weights in one memory are a model, and the stages at a true width need what was planned."""

import json

import pytest
import torch

from onejump.files.atomic import read_json
from onejump.files.tensors import TensorFile
from onejump.models.anatomy import find_anatomy
from onejump.models.unembedding import extract_unembedding
from onejump.planning.architecture import ARCHITECTURES
from onejump.planning.machines import read_machine
from onejump.planning.rehearsal import RandomSource, Rehearsal


@pytest.fixture
def small(tmp_path):
    """Phi-3-mini with all its widths, but two blocks."""
    config = json.loads((ARCHITECTURES / "phi-3-mini.json").read_text())
    file = tmp_path / "small.json"
    file.write_text(json.dumps(config | {"num_hidden_layers": 2}))
    return file


def test_matrices_share_one_memory_and_are_different_all_the_same(tmp_path):
    config = {"model_type": "llama", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3}
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(config | {"num_attention_heads": 4, "intermediate_size": 64}))
    model = RandomSource(f"random:{file}").load_model()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    assert len({matrix.untyped_storage().data_ptr() for matrix in matrices}) == 1
    blocks = find_anatomy(model).blocks
    first, second = (block.self_attn.q_proj.weight for block in blocks[:2])
    assert not torch.equal(first, second) and torch.linalg.matrix_rank(first) == 32
    assert not torch.equal(first, blocks[0].self_attn.k_proj.weight)
    logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert logits.isfinite().all() and logits.std() > 0
    extract_unembedding(model)  # the saved head gives this model's own logits


def test_every_stage_runs_at_full_width_in_the_memory_and_disk_that_were_planned(small, tmp_path):
    rehearsal = Rehearsal(str(small), tmp_path / "out" / "small", "bfloat16", 80, 12, 1, 2, 4)
    rows = []
    rehearsal.run(rows.append)
    stages = [row.cost.rule for row in rows]
    assert stages[:5] == ["choose_positions", "extract_unembedding", *["dump_activations"] * 3]
    assert stages[5:] == ["fit_jump"] * 2 + ["fit_joint_jump", "score_jumps", "select_jump", "evaluate_jumps"]
    for row in rows:
        assert row.peak_bytes == pytest.approx(row.predicted_bytes, rel=0.15), row.cost.rule
        if row.disk_bytes > 1e6:
            assert row.disk_bytes == pytest.approx(row.cost.written, rel=0.15), row.cost.rule
    out = tmp_path / "out" / "small"
    jump = TensorFile(out / "jumps" / "adam" / "level-00.safetensors").tensors()
    assert jump["A"].shape == (3072, 30)
    assert len(read_json(out / "rehearsal.json")) == len(rows)
    assert read_machine(tmp_path / "out" / "machine.json").efficiency.keys() == set(stages)
    assert "sum, or largest" in rehearsal.footing()
