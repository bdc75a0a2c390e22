"""All stages run on a device that has no float64 and that no table lists, and compute what the CPU computes there."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import strange_stages
from safetensors.torch import load_file

from onejump.files.tensors import TensorFile


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of all results, and what went wrong in the stages that failed."""
    folder = tmp_path_factory.mktemp("strange")
    done = subprocess.run([sys.executable, strange_stages.__file__, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


STAGES = [
    *(f"fit_jump {fit}" for fit in strange_stages.FITS),
    *(
        "fit_jtc",
        "score_jumps",
        "evaluate_oracle",
        "evaluate_jumps",
        "evaluate_joint_jump",
        "evaluate_references",
        "evaluate_jtc",
        "evaluate_ranks",
    ),
    "evaluate_ranks post_norm",
]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs(run, stage):
    assert run[1].get(stage) is None


def numbers(file: Path) -> dict[str, np.ndarray]:
    """Columns or tensors of numbers."""
    if file.suffix == ".safetensors":
        return {name: tensor.numpy() for name, tensor in load_file(file).items()}
    table = pq.read_table(file).to_pandas().select_dtypes("number")
    return {name: table[name].to_numpy(float, na_value=np.nan) for name in table}


def test_the_results_are_those_of_the_cpu(run):
    folder = run[0]
    files = sorted(file for kind in ("parquet", "safetensors") for file in (folder / "cpu").rglob(f"*.{kind}"))
    assert len(files) == 4 * 4 + 11
    for file in files:
        if file.parent.name == "kl":  # roundings grow over its steps
            curves = [
                json.loads(TensorFile(folder / part / "kl" / file.name).metadata["train_curve"])
                for part in ("cpu", "strange")
            ]
            assert np.isclose(*(curve[0] for curve in curves), rtol=1e-5), file.name
            continue
        found = numbers(folder / "strange" / file.relative_to(folder / "cpu"))
        for name, expected in numbers(file).items():
            assert np.allclose(found[name], expected, rtol=1e-3, atol=1e-3, equal_nan=True), (file.name, name)
