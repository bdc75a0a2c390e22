"""A bit that flips in a file that a stage reads is noticed in one line, or makes no difference."""

import os
import shutil

import pytest
from flips import flip, readers

pytestmark = pytest.mark.xdist_group("study")
FLIPS = int(os.environ.get("ONEJUMP_TEST_FLIPS", "2"))  # of each kind


def test_flipped_bits_are_noticed_or_make_no_difference(finished_study, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(finished_study.folder, tmp_path / "study", ignore=shutil.ignore_patterns(".snakemake"))
    kinds, table, faults = readers(tmp_path / "study", tmp_path / "out"), [], []
    for number, (kind, (path, stage, action)) in enumerate(kinds.items()):
        refused, wrong = flip(path, action, tmp_path / "out", FLIPS, seed=number)
        faults += [f"{kind}: {fault}" for fault in wrong]
        table.append((kind, stage, FLIPS, refused, FLIPS - refused - len(wrong), len(wrong)))
    print("| file | read by | flips | refused in one line | output identical | wrong |\n|---|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(map(str, row))} |" for row in table))
    assert faults == []
    assert len(kinds) >= 35
    assert sum(row[3] for row in table) > FLIPS * len(kinds) / 2
