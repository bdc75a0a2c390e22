"""Finished studies of tiny models, and what is published from them."""

import functools
from pathlib import Path

import pytest
from published_study import Study, finish


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
