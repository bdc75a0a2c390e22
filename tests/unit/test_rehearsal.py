"""Rehearsals: random weights a block at a time are one model, and the stages at a true width need what was planned."""

import json

import pytest
import torch

from onejump.artifacts import TensorFile, read_json
from onejump.models import extract_head, find_anatomy
from onejump.planning import ARCHITECTURES, read_machine
from onejump.rehearsal import RandomSource, Rehearsal


@pytest.fixture
def small(tmp_path):
    """Phi-3-mini with all its widths, but two blocks."""
    config = json.loads((ARCHITECTURES / "phi-3-mini.json").read_text())
    file = tmp_path / "small.json"
    file.write_text(json.dumps(config | {"num_hidden_layers": 2}))
    return file


def test_blocks_have_weights_only_while_they_run_and_the_same_each_time(tmp_path):
    config = {"model_type": "llama", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3}
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(config | {"num_attention_heads": 4, "intermediate_size": 64}))
    model = RandomSource(f"random:{file}").load_model()
    seen = []
    blocks = find_anatomy(model).blocks
    for block in blocks:
        block.self_attn.register_forward_pre_hook(
            lambda module, args: seen.append(module.q_proj.weight.clone()) or None
        )
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        first, second = (model(input_ids=ids).logits for _ in range(2))
    assert all(p.is_meta for block in blocks for p in block.parameters())
    assert not any(p.is_meta for p in model.lm_head.parameters())
    assert torch.equal(first, second) and first.isfinite().all()
    assert torch.equal(seen[0], seen[3]) and not torch.equal(seen[0], seen[1])
    assert torch.linalg.matrix_rank(seen[0]) == 32
    extract_head(model)  # the saved head gives this model's own logits


def test_every_stage_runs_at_full_width_in_the_memory_and_disk_that_were_planned(small, tmp_path):
    rehearsal = Rehearsal(str(small), tmp_path / "out" / "small", "bfloat16", 80, 12, 1, 2, 4)
    rows = []
    rehearsal.run(rows.append)
    stages = [row.cost.rule for row in rows]
    assert stages[:5] == ["choose_positions", "extract_head", *["dump_activations"] * 3]
    assert stages[5:] == ["train_jump"] * 2 + ["train_joint_jump", "score_jumps", "select_jump", "evaluate_jumps"]
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
