"""What is done again after a change, and what is not, by the lists of jobs that Snakemake plans."""

import re
import shutil
from collections import Counter
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file
from studies import ROOT, Study

from onejump.files.tensors import TensorFile

pytestmark = pytest.mark.xdist_group("study")  # one worker, one finished study

# What follows from any change in a study: about all models, so made anew.
FIGURES = {"plot_figures": 2, "plot_nested_figures": 4, "plot_joint_figures": 2, "plot_model_figures": 2}
SUMMARY = {"all": 1, "summarise": 1, "collect_timings": 1, "render_report": 1} | FIGURES


def planned(study: Study, *args: str, **environment: str) -> Counter:
    """Jobs of a dry run, as (rule, model, variant)."""
    text = study.snakemake("-n", *args, **environment).stdout
    jobs = Counter()
    for block in re.split(r"\n(?=\[|(?:local)?rule )", text):
        if found := re.match(r"(?:local)?rule (\w+):", block):
            values = dict(re.findall(r"(\w+)=([\w.-]+)", (re.findall(r"wildcards: (.*)", block) or [""])[0]))
            jobs[found[1], values.get("model"), values.get("variant")] += 1
    return jobs


def by_rule(jobs: Counter) -> dict[str, int]:
    counts = Counter()
    for (rule, _, _), count in jobs.items():
        counts[rule] += count
    return dict(counts)


def models_of(jobs: Counter) -> set[str]:
    """Models of the jobs that are of one model; figures are of the summary."""
    return {model for rule, model, _ in jobs if model and rule not in FIGURES}


@pytest.fixture
def edited_library(tmp_path):
    """A copy of the library, first on Python's path; `edit(module, old, new)` changes it."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))

    def edit(module: str, old: str, new: str) -> dict[str, str]:
        file = tmp_path / "src" / "onejump" / module
        text = file.read_text()
        assert text.count(old) == 1
        file.write_text(text.replace(old, new))
        return {"PYTHONPATH": str(tmp_path / "src")}

    return edit


def test_comments_and_docstrings_rerun_nothing(finished_study, edited_library):
    edited_library("jumps/exact.py", "import torch\n", "import torch  # tensors\n")
    edited_library("stages.py", '"""Fit the jump of a level', '"""Fit and write the jump of a level')
    environment = edited_library("activations/dump.py", '"""Forward passes', '"""Passes')
    assert planned(finished_study, **environment) == {}


def test_an_edit_of_the_exact_fit_reruns_fits_and_what_follows_but_no_dump(finished_study, edited_library):
    environment = edited_library("jumps/settings.py", "RIDGES = (0.0, ", "RIDGES = (0.0, 1e-9, ")
    assert by_rule(planned(finished_study, **environment)) == SUMMARY | {
        "fit_jump": 18,
        "fit_joint_jump": 8,
        "fit_jtc": 4,
        "score_jumps": 6,
        "evaluate_oracle": 6,
        "select_jump": 6,
        "evaluate_jumps": 6,
        "assess_claims": 6,
        "evaluate_ranks": 4,
        "evaluate_references": 4,
        "evaluate_lens": 4,
        "evaluate_joint_jump": 2,
        "evaluate_shortlist": 2,
        "evaluate_held_out": 8,
    }


def test_an_edit_of_the_dump_reruns_dumps_and_what_follows_but_no_sampling(finished_study, edited_library):
    environment = edited_library("activations/dump.py", '"cuda": 16384', '"cuda": 8192')
    jobs = by_rule(planned(finished_study, **environment))
    assert (jobs["dump_activations"], jobs["fit_jump"]) == (5, 18)
    assert not {"sample_sentences", "extract_unembedding", "choose_positions"} & jobs.keys()


def test_levels_fitted_in_fewer_jobs_are_the_same_files_and_rerun_nothing(finished_study, tmp_path):
    study = deepcopy(finished_study)
    study.folder = tmp_path / "study"
    shutil.copytree(finished_study.folder, study.folder)
    jumps = sorted(study.results("tiny-llama/seed-0").glob("*/jumps/level-*.safetensors"))
    before = {path: path.read_bytes() for path in jumps}
    assert len(before) == 9
    for path in jumps:
        path.unlink()
    files = [str(path.relative_to(study.folder)) for path in jumps]
    output = study.snakemake(*files, "--set-scatter", "levels=2").stdout
    assert len(re.findall("^localrule fit_jump_00:", output, re.M)) == 3
    assert len(re.findall("^localrule fit_jump_01_02:", output, re.M)) == 3
    assert {path: path.read_bytes() for path in jumps} == before
    assert not [rule for rule, *_ in planned(study) if rule.startswith("fit")]


def test_shards_dumped_in_one_job_by_blocks_have_the_same_states_and_rerun_nothing(finished_study, tmp_path):
    models = deepcopy(finished_study.config["models"])
    models["tiny-llama"]["load"] = "blocks"
    study = Study(tmp_path / "study", finished_study.config | {"models": models})
    shutil.copytree(finished_study.folder, study.folder)
    assert not [rule for rule, *_ in planned(study) if rule.startswith(("dump", "fit", "evaluate"))]
    shards = sorted(study.results("tiny-llama/seed-0/activations/train").glob("*.safetensors"))
    before = [load_file(path) for path in shards]
    assert len(before) == 2
    for path in shards:
        path.unlink()
    output = study.snakemake(*(str(path.relative_to(study.folder)) for path in shards)).stdout
    assert len(re.findall("^localrule dump_activations_train_00_01:", output, re.M)) == 1
    for path, expected in zip(shards, before, strict=True):
        found = load_file(path)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
        assert TensorFile(path).metadata["load"] == "blocks"
    assert not [rule for rule, *_ in planned(study) if rule.startswith("dump")]


def test_an_edit_of_the_report_reruns_the_report_alone(finished_study, edited_library):
    environment = edited_library("report/templates/report.html.j2", "</html>", "</html>\n")
    assert by_rule(planned(finished_study, **environment)) == {"all": 1, "render_report": 1}


FITS = {"fit_jump": 9, "fit_joint_jump": 4, "fit_jtc": 2, "score_jumps": 3, "select_jump": 3}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("activations", {"dump_activations": 3, "evaluate_references": 2} | FITS),
        ("fits", FITS),
        ("evaluation", {"evaluate_references": 2}),
    ],
)
def test_a_step_of_one_model_is_done_again_by_a_short_option(finished_study, step, expected):
    jobs = planned(finished_study, "--config", f"again=tiny-llama:{step}")
    assert models_of(jobs) == {"tiny-llama"}
    evaluations = {"evaluate_oracle": 3, "evaluate_jumps": 3, "evaluate_lens": 2, "evaluate_ranks": 2}
    evaluations |= {"evaluate_joint_jump": 1, "evaluate_shortlist": 1, "evaluate_held_out": 4}
    assert by_rule(jobs) == SUMMARY | expected | evaluations | {"assess_claims": 3}


@pytest.mark.parametrize("again", ["tiny-lama:fits", "tiny-llama:fit", "tiny-llama", "7"])
def test_a_step_that_does_not_exist_is_refused_with_those_that_do(finished_study, again):
    done = finished_study.snakemake("-n", "--config", f"again={again}", check=False)
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert f"--config again={again}: expected MODEL:STEP, where MODEL is one of tiny-gpt2, tiny-llama" in done.stdout


def test_one_models_rerun_leaves_the_others_files_untouched(finished_study, tmp_path):
    study = Study(tmp_path / "copy", finished_study.config)
    shutil.copytree(finished_study.folder, study.folder)
    others = {path: path.stat().st_mtime_ns for path in study.results("tiny-gpt2").rglob("*.*")}
    own = study.results("tiny-llama", "seed-0", "exact", "evaluation.parquet")
    bytes_before, time_before = own.read_bytes(), own.stat().st_mtime_ns
    study.snakemake("--config", "again=tiny-llama:evaluation", "--until", "summarise")
    assert planned(study, "--until", "summarise") == {}
    assert own.stat().st_mtime_ns > time_before
    assert own.read_bytes() == bytes_before
    assert {path: path.stat().st_mtime_ns for path in study.results("tiny-gpt2").rglob("*.*")} == others


def test_a_new_model_runs_only_its_own_jobs(finished_study):
    models = finished_study.config["models"]
    study = Study(finished_study.folder, finished_study.config | {"models": models | {"new": models["tiny-gpt2"]}})
    jobs = planned(study)
    assert models_of(jobs) == {"new"}
    assert by_rule(jobs) == SUMMARY | {
        "write_config": 1,
        "plot_figures": 3,
        "plot_nested_figures": 6,
        "plot_joint_figures": 3,
        "plot_model_figures": 3,
        "choose_positions": 1,
        "extract_unembedding": 1,
        "dump_activations": 2,
        "fit_jump": 9,
        "fit_joint_jump": 4,
        "fit_jtc": 2,
        "score_jumps": 3,
        "evaluate_oracle": 3,
        "select_jump": 3,
        "evaluate_jumps": 3,
        "assess_claims": 3,
        "evaluate_ranks": 2,
        "evaluate_references": 2,
        "evaluate_lens": 2,
        "evaluate_joint_jump": 1,
        "evaluate_shortlist": 1,
        "evaluate_held_out": 4,
    }


def test_a_changed_seed_dtype_or_rank_reruns_what_depends_on_it(finished_study):
    config = finished_study.config
    gpt2 = config["models"]["tiny-gpt2"]
    dtype = {"models": config["models"] | {"tiny-gpt2": gpt2 | {"dtype": "bfloat16"}}}
    jobs = planned(Study(finished_study.folder, config | dtype))
    assert models_of(jobs) == {"tiny-gpt2"}
    assert by_rule(jobs)["dump_activations"] == 2 and "choose_positions" not in by_rule(jobs)
    rank = {"variants": config["variants"] | {"other": config["variants"]["other"] | {"rank": 3}}}
    jobs = planned(Study(finished_study.folder, config | rank))
    assert {variant for rule, _, variant in jobs if variant and rule not in FIGURES} == {"other"}
    jobs = by_rule(planned(Study(finished_study.folder, config | {"seeds": [1]})))
    assert (jobs["sample_sentences"], jobs["dump_activations"]) == (1, 5) and "extract_unembedding" not in jobs
