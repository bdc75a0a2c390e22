"""A study of a tiny model, and its summary tables."""

import functools
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
from tiny_models import make_dump
from tiny_study import CONFIG, N_TEST, N_TRAIN, VARIANTS, run_variant, write_summary_of


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """A whole study of a tiny model: two seeds, two variants, every file written by its stage."""
    folder = tmp_path_factory.mktemp("results") / "study"
    for seed in CONFIG["seeds"]:
        made = make_dump(tmp_path_factory.mktemp("dump"), N_TRAIN, N_TEST, seed=seed)
        branch = folder / "tiny" / f"seed-{seed}"
        branch.mkdir(parents=True)
        shutil.copy(made.positions, branch / "positions.parquet")
        shutil.copy(made.unembedding, folder / "tiny" / "unembedding.safetensors")
        sentences = folder / "corpus" / f"seed-{seed}" / "sentences.parquet"
        sentences.parent.mkdir(parents=True)
        shutil.copy(made.sentences, sentences)
        for variant in VARIANTS:
            run_variant(branch, made, sentences, seed, variant)
    return folder


@pytest.fixture(scope="session")
def summary(results, tmp_path_factory):
    """A function that reads a table of the study's summary, one variant of one seed of it."""
    folder = tmp_path_factory.mktemp("tables") / "summary"
    write_summary_of(results, CONFIG, folder)

    @functools.cache
    def read(name: str, seed: int | None = None, variant: str | None = None) -> pd.DataFrame:
        table = pd.read_csv(folder / f"{name}.csv", float_precision="round_trip")
        table = table if seed is None else table[table["seed"] == seed]
        table = table if variant is None else table[table["variant"] == variant]
        return table.reset_index(drop=True)

    return SimpleNamespace(read=read, folder=folder)
