"""The diffs of docs/extending.md apply to this tree, and a study runs with them; compared with naive computations."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import yaml
from reference import TOLERANCE, Branch, compare, read_facts, standardised
from studies import NOUNS, PLACES, ROOT, VERBS, Study, environment, write_texts

pytestmark = pytest.mark.xdist_group("extending")

SECTIONS = ("A model", "A corpus source", "A fit", "A metric")
MODEL, VARIANT = "tiny-nemotron", "components"
RANK, COMPONENTS = 2, 8
TRAIN, TEST = 60, 20


def diffs(section: str) -> list[str]:
    """The diffs of a section of the page, in order."""
    page = (ROOT / "docs" / "extending.md").read_text()
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    found = re.findall(r"^```diff\n(.*?)^```$", text, re.M | re.S)
    assert found, f"section {section!r} has no diff"
    return found


@dataclass
class Copy:
    """The repository's tracked files in a folder of their own, which may be changed."""

    folder: Path

    def __post_init__(self) -> None:
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, tracked.split("\0")):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name, follow_symlinks=False)

    def apply(self, diff: str) -> None:
        # The folder may lie in a repository, which git would apply the diff to.
        outside = os.environ | {"GIT_CEILING_DIRECTORIES": str(self.folder.parent)}
        command = ["git", "apply", "--verbose"]
        done = subprocess.run(command, input=diff, cwd=self.folder, env=outside, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that put the copy's library first."""
        return {"PYTHONPATH": str(self.folder / "src")}

    def tiny_models(self) -> ModuleType:
        """The copy's module of tiny models, in this process: another would import Transformers for seconds."""
        spec = spec_from_file_location("changed_tiny_models", self.folder / "tests" / "unit" / "tiny_models.py")
        module = sys.modules[spec.name] = module_from_spec(spec)  # its dataclasses look themselves up there
        spec.loader.exec_module(module)
        return module

    def run(self, *command: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=cwd, env=environment(**self.variables), **output)
        assert not check or done.returncode == 0, done.stdout[-6000:]
        return done


def write_notes(folder: Path) -> dict[str, set[str]]:
    """Files of text, some in folders and all with wrapped lines; their sentences by name."""
    rng, sentences = np.random.default_rng(0), {}
    for i, suffix in enumerate([".md", ".txt"] * 6):
        file = folder / f"part-{i % 3}" / f"note-{i:02d}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        found = [
            f"The {a} of note {i} {rng.choice(VERBS)} the {b} {rng.choice(PLACES)} of {rng.integers(1100, 2000)}."
            for a, b in (rng.choice(NOUNS, 2, replace=False) for _ in range(10))
        ]
        paragraphs = [textwrap.fill(" ".join(found[j : j + 2]), 50) for j in range(0, 10, 2)]
        file.write_text("\n\n".join([f"# Note {i}", *paragraphs]))
        sentences[file.relative_to(folder).as_posix()] = set(found)
    (folder / "table.csv").write_text("This file is no text and has no place in the corpus.\n")
    return sentences


@pytest.fixture(scope="module")
def notes(tmp_path_factory) -> tuple[Path, dict[str, set[str]]]:
    """A folder to run a study in, with notes/, and the sentences in them."""
    folder = tmp_path_factory.mktemp("study")
    return folder, write_notes(folder / "notes")


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Copy:
    """A copy of the repository with all diffs of the page, one after the other."""
    copy = Copy(tmp_path_factory.mktemp("repository"))
    for section in SECTIONS:
        for diff in diffs(section):
            copy.apply(diff)
    return copy


@pytest.fixture(scope="module")
def study(changed, notes) -> Study:
    """A study of the page's model, source, fit and metric, run up to its tables."""
    folder, _ = notes
    changed.tiny_models().save_tiny_model("nemotron", folder / "models" / MODEL)
    config = yaml.safe_load((changed.folder / "config" / "test.yaml").read_text())
    config["models"] = {MODEL: config["models"][MODEL]}
    config["corpus"] = {"source": {"folder": "notes"}, "train": TRAIN, "test": TEST}
    config["variants"] = {VARIANT: {"fit": "components", "rank": RANK}}
    study = Study(folder, config, changed.folder)
    study.snakemake("--", "results/test/summary/levels.csv", **changed.variables)
    return study


@pytest.fixture
def branch(study) -> Branch:
    return Branch(study.results(), MODEL, 0, VARIANT)


@pytest.mark.parametrize("section", SECTIONS)
def test_each_change_applies_by_itself_and_keeps_the_house_style(section, tmp_path):
    copy = Copy(tmp_path)
    for diff in diffs(section):
        copy.apply(diff)
    for command in (["check"], ["format", "--check"]):
        copy.run("ruff", *command, "--no-cache", ".", cwd=tmp_path)


def test_an_entry_in_a_config_plans_a_models_jobs(tmp_path):
    copy = Copy(tmp_path / "repository")
    before = yaml.safe_load((copy.folder / "config" / "test.yaml").read_text())
    copy.apply(diffs("A model")[0])
    config = yaml.safe_load((copy.folder / "config" / "test.yaml").read_text())
    assert config["models"].keys() - before["models"].keys() == {MODEL}
    write_texts(tmp_path / "texts")
    study = Study(tmp_path, config | {"models": {MODEL: config["models"][MODEL]}}, copy.folder)
    expected = {"extract_unembedding": 1, "dump_activations": 2, "fit_jump": 3 * 3, "fit_joint_jump": 4, "fit_jtc": 2}
    plan = study.snakemake("-n", "--quiet", "host", **copy.variables).stdout
    planned = re.findall(r"^(\w+) +(\d+)$", plan.split("Job stats:")[1], re.M)
    assert expected.items() <= {rule: int(count) for rule, count in planned}.items()


def test_the_new_models_unembedding_gives_its_own_probabilities(study, branch):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(study.folder / "models" / MODEL).eval()
    ids, hidden = branch.states("test")
    tokens = pd.read_parquet(branch.branch / "positions.parquet").set_index("sentence_id")["input_ids"][ids]
    found = branch.log_probabilities(branch.norm(hidden[-1]))
    with torch.inference_mode():
        logits = [model(torch.tensor(list(map(int, row)))[None]).logits[0, -1] for row in tokens]
    np.testing.assert_allclose(found, torch.stack(logits).log_softmax(1).numpy(), atol=1e-4)


def test_the_folder_is_sampled_whole_sentences_document_by_document(study, notes):
    _, written = notes
    table = pd.read_parquet(study.results("corpus", "seed-0", "sentences.parquet"))
    assert table["split"].value_counts().to_dict() == {"train": TRAIN, "test": TEST}
    assert set(table["document"]) == written.keys()
    assert all(row.text in written[row.document] for row in table.itertuples())
    assert (table.groupby("document")["split"].nunique() == 1).all()


def test_another_text_in_the_folder_is_sampled_and_a_folder_without_any_refused(study, changed, tmp_path):
    late = study.folder / "notes" / "late.md"
    late.write_text("This note came when all was done.")
    plan = study.snakemake("-n", **changed.variables).stdout
    late.unlink()
    (reason,) = re.findall(r"^rule sample_sentences:$.*?^    reason: (.*?)$", plan, re.M | re.S)
    assert "notes/late.md" in reason
    (tmp_path / "table.csv").write_text("a,b\n")
    options = ["--folder", str(tmp_path), "--train", "1", "--test", "1", "--out", str(tmp_path / "out.parquet")]
    done = changed.run("onejump", "sample-sentences", *options, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert done.stdout == f"onejump: error: {tmp_path}: contains no .txt or .md file; name a folder of texts\n"


@pytest.mark.parametrize("name", ["level-00", "level-02", "joint"])
def test_the_fit_is_the_best_of_its_rank_on_the_principal_components(branch, name):
    _, hidden = branch.states("train")
    levels, fitted = branch.levels if name == "joint" else [int(name[-2:])], TRAIN - TRAIN // 10
    x = np.concatenate([hidden[k, :fitted] for k in levels])
    y = np.concatenate([hidden[-1, :fitted]] * len(levels))
    # By the rows themselves: their principal components and a constant, least squares, and its best approximation.
    components = np.linalg.svd(standardised(x, x), full_matrices=False)[0][:, :COMPONENTS]
    design = np.column_stack([components, np.ones(len(x))])
    whole = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    axes = np.linalg.svd(whole)[2][:RANK]
    expected = whole @ axes.T @ axes
    np.testing.assert_allclose(branch.saved_jump(name)(x), expected, atol=1e-4 * abs(expected).max())
    facts = read_facts(branch.folder / "jumps" / f"{name}.safetensors")
    assert facts["fit"] == "components"
    assert float(facts["train_mse"]) == pytest.approx(((expected - y) ** 2).sum(1).mean(), rel=1e-5)
    assert float(facts["gap"]) > 0.01  # a cut that cuts nothing would be the exact fit


def test_the_metric_is_the_share_of_probability_that_exit_and_model_have_in_common(study, branch):
    ids, hidden = branch.states("test")
    full = np.exp(branch.log_probabilities(branch.norm(hidden[-1])))

    def acceptance(normed: np.ndarray) -> np.ndarray:
        exits = np.exp(branch.log_probabilities(normed))
        return 1 - abs(exits - full).sum(1) / 2

    files = [branch.folder / "evaluation.parquet", *branch.references]
    table = pd.concat([pd.read_parquet(file) for file in files]).astype({"method": str})
    means = pd.read_csv(study.results("summary", "levels.csv")).set_index(["method", "level"])["acceptance"]
    for k in branch.levels:
        for method, normed in (("identity", hidden[k]), ("n_njtc", branch.jumps[k](hidden[k]))):
            rows = table[(table["method"] == method) & (table["level"] == k)]
            assert rows["sentence_id"].tolist() == ids.tolist()
            expected = acceptance(branch.norm(normed))
            np.testing.assert_allclose(rows["acceptance"], expected, atol=1e-5)
            assert means[method, k] == pytest.approx(expected.mean(), abs=1e-5)
            assert 0.01 < expected.mean() < 0.99


def test_all_other_numbers_of_the_study_agree_with_their_naive_reference(study):
    differences = compare(study.results(), MODEL, 0, VARIANT)
    assert max(differences.values()) <= TOLERANCE, differences
