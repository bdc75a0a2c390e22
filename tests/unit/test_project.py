"""What the project says about itself agrees: versions, pins, floors, dependencies, and the Makefile's study."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from studies import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "envs" / "requirements.lock").read_text(), re.M)
}


def requirements(*groups: list[str]) -> dict[str, SpecifierSet]:
    """Distribution -> specifier, without the project itself."""
    found = [Requirement(text) for group in groups for text in group]
    return {canonicalize_name(one.name): one.specifier for one in found if one.name != PROJECT["name"]}


def test_the_release_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version, date = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M).groups()
    assert version == PROJECT["version"] == citation["version"]
    assert date == str(citation["date-released"])


def test_hooks_have_the_locked_versions():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    found = {one["repo"].rpartition("/")[2].removesuffix("-pre-commit"): one["rev"] for one in hooks}
    assert found == {name: f"v{LOCK[name]}" for name in ("ruff", "snakefmt")}


def test_the_lock_has_all_requirements_in_versions_that_they_allow():
    needed = requirements(PROJECT["dependencies"], *EXTRAS.values())
    assert needed.keys() - LOCK.keys() == set()
    assert {name: LOCK[name] for name, allowed in needed.items() if LOCK[name] not in allowed} == {}


def test_every_dependency_has_a_floor():
    assert [name for name, allowed in requirements(PROJECT["dependencies"]).items() if ">=" not in str(allowed)] == []


def test_the_conda_environment_has_all_dependencies_in_the_locked_versions():
    dependencies = yaml.safe_load((ROOT / "envs" / "study.yaml").read_text())["dependencies"]
    (pins,) = (part["pip"] for part in dependencies if isinstance(part, dict))
    found = {name: str(pin).removeprefix("==") for name, pin in requirements(pins).items()}
    assert found == {name: LOCK[name] for name in requirements(PROJECT["dependencies"])}


def test_what_the_library_imports_is_required():
    needed = requirements(PROJECT["dependencies"], EXTRAS["workflow"]).keys()
    distributions = packages_distributions()
    imported = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
    third_party = imported - sys.stdlib_module_names - {path.name for path in (ROOT / "src").iterdir()}
    assert [name for name in third_party if not needed & set(map(canonicalize_name, distributions[name]))] == []


def test_a_room_imports_only_rooms_before_it_in_the_readme():
    package = ROOT / "src" / "onejump"
    rooms = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert set(rooms) == {path.parent.name for path in package.glob("*/__init__.py")}
    wrong = []
    for number, room in enumerate(rooms):
        for file in (package / room).rglob("*.py"):
            imported = set(re.findall(r"^\s*(?:from|import) onejump\.(\w+)", file.read_text(), re.M))
            wrong += [f"{file.relative_to(package)} imports {other}" for other in imported - set(rooms[: number + 1])]
    assert wrong == []


def test_snakefile_makefile_and_ci_ask_for_the_versions_of_the_project():
    (snakemake,) = re.findall(r'^min_version\("(.+)"\)$', (ROOT / "workflow" / "Snakefile").read_text(), re.M)
    assert SpecifierSet(f">={snakemake}") == requirements(EXTRAS["workflow"])["snakemake"]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in (ROOT / "Makefile").read_text()
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"].values()
    steps = [step.get("with", {}) for job in jobs for step in job["steps"]]
    assert {step["python-version"] for step in steps if "python-version" in step} == {oldest}


@pytest.mark.parametrize("line", ["study: mine", "study: mine  # my study", 'study: "mine"', "models: {}\nstudy: mine"])
def test_the_makefile_reads_the_studys_name_as_yaml(tmp_path, line):
    (tmp_path / "my.yaml").write_text(f"{line}\n")
    variables = [f"VENV={sys.prefix}", f"CONFIG={tmp_path / 'my.yaml'}"]
    command = ["make", "--no-print-directory", "--dry-run", *variables, "screenshots"]  # also below `make test`
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "python tests/report/screenshots.py reports/mine.html docs/screenshots"


def make_provenance(config) -> subprocess.CompletedProcess:
    """Its result, with what make itself adds left out."""
    command = ["make", "--no-print-directory", f"VENV={sys.prefix}", f"CONFIG={config}", "provenance"]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True)


def test_provenance_of_half_a_study_asks_to_run_it(tmp_path):
    config = tmp_path / "half.yaml"
    config.write_text("study: half\n")
    done = make_provenance(config)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "make provenance: reports/half.html is missing; run the study to its end first: "
        f"snakemake --profile profiles/local --configfile {config}"
    )


@pytest.mark.parametrize("text", [None, "models: {}\n", "- a list\n", "study: [\n"])
def test_provenance_of_something_else_than_a_study_is_refused_in_a_line(tmp_path, text):
    config = tmp_path / "none.yaml"
    if text is not None:
        config.write_text(text)
    done = make_provenance(config)
    assert done.returncode != 0
    assert f"CONFIG={config}: expected the config of a study" in done.stderr
    assert "Traceback" not in done.stderr
