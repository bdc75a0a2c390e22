"""A rehearsal at a true width needs the memory and disk that were planned."""

import json

import pytest

from onejump.files.atomic import read_json
from onejump.files.tensors import TensorFile
from onejump.models.architecture import ARCHITECTURES, load_architecture
from onejump.planning.machines import read_machine
from onejump.planning.rehearsal import HEADING, as_line, rehearse
from onejump.planning.work import Sizes


def test_every_stage_runs_at_full_width_in_the_memory_and_disk_that_were_planned(tmp_path):
    config = json.loads((ARCHITECTURES / "phi-3-mini.json").read_text())
    config["onejump"]["n_blocks"] = config["num_hidden_layers"] = 2  # all its widths, but two blocks
    (tmp_path / "small.json").write_text(json.dumps(config))
    shards, architecture = {"train": 2, "test": 1}, load_architecture(tmp_path / "small.json")
    sizes = Sizes(architecture, "bfloat16", 80, 12, shards, 12, load="blocks")
    rows = list(rehearse(sizes, tmp_path / "out" / "small", levels=1, threads=2, longest=4))
    stages = [row["stage"] for row in rows]
    assert stages[:4] == ["choose_positions", "extract_unembedding", *["dump_activations"] * 2]
    assert stages[4:] == ["fit_jump"] * 2 + ["fit_joint_jump", "score_jumps", "select_jump", "evaluate_jumps"]
    for row in rows:
        (_, memory, disk), (_, peak, written) = row["planned"], row["measured"]
        assert peak == pytest.approx(memory, rel=0.25), row["stage"]
        if written > 1e6:
            assert written == pytest.approx(disk, rel=0.15), row["stage"]
        assert as_line(row).startswith(row["stage"])
        assert len(as_line(row)) == len(HEADING)
    assert not (tmp_path / "out" / "small" / "model").exists()
    jump = TensorFile(tmp_path / "out/small/jumps/level-00.safetensors").tensors()
    assert jump["A"].shape == (3072, 30)
    assert read_json(tmp_path / "out/small/rehearsal.json", list) == json.loads(json.dumps(rows))
    passes = read_machine(tmp_path / "out/machine.json").passes
    assert passes["adam"] == next(row["passes"] for row in rows if row["kind"] == "adam")
