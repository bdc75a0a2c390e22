"""Finished studies of tiny models, and what is published from them."""

import functools
import sys
from pathlib import Path

import pytest
from published_study import Study, finish


def pytest_collection_modifyitems(items) -> None:
    """One worker, one study of each family."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group("sharing"))


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """Transformers copies a repository's code before it runs it: not into the user's home."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="session")
def study_of(tmp_path_factory):
    """A function from a family of models to its finished study."""
    return functools.cache(lambda family: finish(tmp_path_factory.mktemp(family), family))


@pytest.fixture(scope="session")
def study(study_of) -> Study:
    return study_of("llama")


@pytest.fixture(scope="session")
def folder(study, tmp_path_factory) -> Path:
    """A published jump: joint, gated, fitted by KL."""
    return study.publish(tmp_path_factory.mktemp("published") / "jump")
