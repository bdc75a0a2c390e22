"""A bit that flips in a file that a stage reads is noticed in one line, or makes no difference."""

import os
import shutil

import pytest
from flips import flip, output_of, readers

pytestmark = pytest.mark.xdist_group("copies")
FLIPS = int(os.environ.get("ONEJUMP_TEST_FLIPS", "1"))  # of each kind


def test_flipped_bits_are_noticed_or_make_no_difference(finished_study, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(finished_study.folder, tmp_path / "study", ignore=shutil.ignore_patterns(".snakemake"))
    out = tmp_path / "out"
    kinds, table, faults = readers(tmp_path / "study", out), [], []
    expected = {action: output_of(action, out) for action in dict.fromkeys(action for _, _, action in kinds.values())}
    for number, (kind, (path, stage, action)) in enumerate(kinds.items()):
        refused, wrong = flip(path, action, out, expected[action], FLIPS, seed=number)
        faults += [f"{kind}: {fault}" for fault in wrong]
        table.append((kind, stage, FLIPS, refused, FLIPS - refused - len(wrong), len(wrong)))
    print("| file | read by | flips | refused in one line | output identical | wrong |\n|---|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(map(str, row))} |" for row in table))
    assert faults == []
    assert len(kinds) >= 35
    assert sum(row[3] for row in table) > FLIPS * len(kinds) / 2
