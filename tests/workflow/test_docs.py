"""The docs are true: their commands run as written, printed plans are the plans, and tables from code are up to date.

What would submit jobs to Slurm is planned only, what `make` would do is listed only, and of a rehearsal the command
line alone is read. The recipe for a crash, which cancels jobs, is left to the tests on Slurm.
"""

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import run_tutorial
import yaml
from studies import ROOT, Study, environment

pytestmark = pytest.mark.xdist_group("copies")

PAGES = [
    *("README.md", "CONTRIBUTING.md", "config/README.md"),
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]
SHIMS = {
    "snakemake": 'case " $* " in *" --profile slurm "*) set -- "$@" --dry-run $PLAN;; esac\nexec {real} "$@"',
    "make": 'exec {real} --dry-run "$@"',
    "onejump": 'case "$1" in rehearse) shift; exec python -c "$PARSE" "$@";; esac\nexec {real} "$@"',
}
PARSE = "import sys; from onejump.cli import cli; cli.commands['rehearse'].make_context('rehearse', sys.argv[1:])"
STEPS = re.compile(r"(\d+) of \1 steps \(100%\) done")


def blocks() -> list:
    """Every block of commands in the docs but the recipe for a crash, by page and first line."""
    found = []
    for page in PAGES:
        for kind, body in re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
            if kind in ("sh", "console") and "scancel" not in body:
                found.append(pytest.param(page, kind, body, id=f"{page}: {body.splitlines()[0]}"))
    return found


def commands(kind: str, body: str) -> str:
    """The commands of a block, without what they print."""
    if kind == "sh":
        return body
    return "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)$", body, re.MULTILINE))


def planned(text: str) -> list[dict[str, int]]:
    """Tables of jobs in an output, without those that an end without news repeats."""
    tables = re.findall(r"^job +count\n-+ +-+\n(.*?)^total", text, re.MULTILINE | re.DOTALL)
    return [{rule: int(count) for rule, count in (line.split() for line in table.splitlines())} for table in tables]


@pytest.fixture(scope="module")
def clone(finished_study, tmp_path_factory) -> Path:
    """A clone where a tiny study of one model and one variant has ended, with the files that the docs speak of."""
    folder = tmp_path_factory.mktemp("docs") / "clone"
    shutil.copytree(finished_study.folder, folder, symlinks=True)
    for name in ("Snakefile", "Makefile", "workflow", "profiles", "slurm", "src", "config", "envs", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    config = finished_study.config
    models = {"tiny-llama": config["models"]["tiny-llama"]}
    tiny = config | {"models": models, "variants": {"exact": {"fit": "exact"}}}
    branch = folder / "results" / "test" / "tiny-llama" / "seed-0"
    for other in (branch / "paper", branch / "other", *branch.glob("*/post_norm.*")):
        shutil.rmtree(other) if other.is_dir() else other.unlink()
    shutil.rmtree(folder / "results" / "test" / "tiny-gpt2")
    for name in ("my.yaml", "tiny.yaml"):
        (folder / name).write_text(yaml.safe_dump(tiny))
    (folder / "path" / "to").mkdir(parents=True)
    shutil.copy(finished_study.folder / "models" / "tiny-llama" / "config.json", folder / "path" / "to")
    Study(folder, tiny).snakemake()  # the tables and the report of fewer models and variants
    (folder / "shims").mkdir()
    for name, script in SHIMS.items():
        real = shutil.which(name, path=environment()["PATH"])
        (folder / "shims" / name).write_text("#!/bin/sh\n" + script.format(real=real) + "\n")
        (folder / "shims" / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(("page", "kind", "body"), blocks())
def test_every_command_runs_as_written(clone, tmp_path, page, kind, body):
    script = commands(kind, body)
    places = {"results/tiny/": "results/test/", "/path/to/cache": str(tmp_path)}
    places |= {"again=gpt2-xl": "again=tiny-llama", "config/paper.yaml": "tiny.yaml"}
    plan = "--forceall" if STEPS.search(body) and not planned(body) else ""
    if page == "docs/cluster.md" and "--configfile" not in script:
        plan += " --configfile tiny.yaml"  # the page speaks of a study of its own
    for written, here in places.items():
        script = script.replace(written, here)
    variables = environment(PLAN=plan, PARSE=PARSE)
    variables["PATH"] = f"{clone / 'shims'}:{variables['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script], cwd=clone, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    if kind == "console":
        found = planned(done.stdout)
        assert planned(body) in ([], found[:1])
        if steps := STEPS.search(body):
            assert sum(found[0].values()) == int(steps[1])


def test_the_tutorial_runs_from_a_study_to_a_jump_of_another_model(clone, monkeypatch):
    for name in ("PATH", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, environment()[name])
    (clone / "docs").mkdir(exist_ok=True)
    given = {"study": "../results/test", "config": "../tiny.yaml", "name": "tiny-llama", "variant": "exact"}
    given |= {"base": "../models/tiny-llama", "own": "../models/tiny-gpt2"}
    given["sentences"] = {"train": 60, "test": 20}
    notebook = nbformat.read(run_tutorial.PAGE, as_version=4)
    printed = run_tutorial.run(notebook, clone / "docs", given)
    kept = {cell.id: "".join(output.text for output in cell.outputs) for cell in notebook.cells if "outputs" in cell}
    assert {cell: bool(text) for cell, text in printed.items()} == {cell: bool(text) for cell, text in kept.items()}
    text = "".join(printed.values())
    assert "the same text: True" in text and "<onejump.Jump joint of tiny-gpt2, levels 0..2, rank 1>" in text
    assert (clone / "results" / "tutorial" / "lens.html").is_file()


def test_the_table_of_all_keys_is_the_schemas():
    assert (
        runpy.run_path(str(ROOT / "docs" / "describe_config.py"))["page"]() == (ROOT / "config/README.md").read_text()
    )


def test_links_between_the_docs_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / page).read_text()):
            path, _, heading = link.partition("#")
            target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
            assert target.exists(), f"{page}: {link}"
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if heading else []
            assert not heading or heading in [
                re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings
            ]
