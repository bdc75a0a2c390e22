"""Fits of one handmade study."""

import functools

import pytest
from handmade import CPU, make_activations, make_levels

from onejump.jumps.fitting import fit_jump
from onejump.jumps.storage import load_jump, save_jump


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Activations of 203 rows in three shards, K=3 and H=12, and their unembedding."""
    return make_activations(tmp_path_factory.mktemp("study"), make_levels(203), [70, 70, 63])


@pytest.fixture(scope="session")
def fitted(study, tmp_path_factory):
    """A function that fits a jump of the study (once for each choice) and reads it back with its file."""
    folder = tmp_path_factory.mktemp("fitted")

    @functools.cache
    def read(level, fit="exact", target="pre_norm", rank=3, joint_batches="mixed", seed=0, again=0, **choices):
        path = folder / f"{len(list(folder.iterdir()))}-{again}.safetensors"
        save_jump(path, *fit_jump(*study, level, fit, target, rank, joint_batches, seed, CPU, **choices))
        return load_jump(path, study[1])

    return read
