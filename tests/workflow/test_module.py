"""Another workflow takes this one in as a module, with its own config and prefix."""

import shutil
import subprocess

import pytest
import yaml
from studies import ROOT, environment

pytestmark = pytest.mark.xdist_group("cache")

OUTER = f"""
configfile: "outer.yaml"

module onejump:
    snakefile: "{ROOT}/Snakefile"
    config: config["exits"]
    prefix: "exits"

use rule * from onejump as onejump_*

rule conclude:
    default_target: True
    input:
        "exits/results/test/tiny-gpt2/seed-0/exact/selection.json",
    output:
        "conclusion.txt",
    shell:
        "grep -o ojfa {{input}} > {{output}}"
"""


def test_another_workflow_runs_this_one_below_its_own_folder(tiny_folder, tmp_path):
    config = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    config["models"] = {"tiny-gpt2": config["models"]["tiny-gpt2"]}
    config["variants"] = {"exact": {"fit": "exact"}}
    (tmp_path / "Snakefile").write_text(OUTER)
    (tmp_path / "outer.yaml").write_text(yaml.safe_dump({"exits": config}))
    for name in ("models", "texts"):
        shutil.copytree(tiny_folder / name, tmp_path / name)

    def snakemake(*args: str) -> str:
        done = subprocess.run(
            ["snakemake", "--cores", "2", *args],
            cwd=tmp_path,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    assert "onejump_render_report" in snakemake("-n", "exits/reports/test.html")
    snakemake()
    assert (tmp_path / "conclusion.txt").read_text() == "ojfa\n"
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {".snakemake", "Snakefile", "outer.yaml", "models", "texts", "exits", "conclusion.txt"}
    assert (tmp_path / "exits" / "results" / "test" / "tiny-gpt2" / "unembedding.safetensors").exists()
