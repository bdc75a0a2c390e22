"""Studies of two tiny models for the tests of the workflow and of the cluster."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest
import yaml
from studies import ROOT, Study, write_texts
from tiny_models import save_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """models/ and texts/ as config/test.yaml expects them."""
    folder = tmp_path_factory.mktemp("tiny")
    for family in ("llama", "gpt2"):
        save_tiny_model(family, folder / "models" / f"tiny-{family}")
    write_texts(folder / "texts")
    return folder


@pytest.fixture
def tiny_study(tiny_folder, tmp_path) -> Study:
    """config/test.yaml in a folder of its own."""
    for name in ("models", "texts"):
        (tmp_path / name).symlink_to(tiny_folder / name)
    return Study(tmp_path, yaml.safe_load((ROOT / "config" / "test.yaml").read_text()))


@pytest.fixture(scope="session")
def finished_study(tiny_folder, tmp_path_factory) -> Study:
    """config/test.yaml, run to its end; of several workers, the first one runs it, and each has a copy."""
    config = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    folder = tmp_path_factory.getbasetemp()
    kept = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "finished"
    with open(kept.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            Study(tiny_folder, config).snakemake("--set-scatter", "levels=1")
            shutil.copytree(tiny_folder, kept.with_suffix(".part"))
            kept.with_suffix(".part").rename(kept)
    return Study(shutil.copytree(kept, folder / "study"), config)
