"""Cosines and selections that are damaged or not those expected."""

import numpy as np
import pytest
import torch

from onejump.analysis.reading import read_cosines, read_selection
from onejump.analysis.selection import select_jump
from onejump.files.atomic import OnejumpError
from onejump.files.sealed import write_sealed_json
from onejump.files.tensors import write_tensors

K = 3


def test_cosines_that_are_not_finite_are_refused(tmp_path):
    values, path = torch.zeros(K, K + 1, 5), tmp_path / "c.safetensors"
    ids = torch.arange(7, 12, dtype=torch.int32)
    write_tensors(path, {"cosine": values, "sentence_id": ids}, {})
    found, sentences = read_cosines(path)
    assert torch.equal(found, values)
    assert sentences.tolist() == ids.tolist()
    values[1, 2, 3] = torch.nan
    write_tensors(path, {"cosine": values}, {})
    with pytest.raises(OnejumpError, match=r"c\.safetensors: NaN or infinite cosines"):
        read_cosines(path)


@pytest.mark.parametrize("n_jumps", [K - 1, K + 1])
def test_a_selection_among_another_number_of_jumps_is_refused(tmp_path, n_jumps):
    path, selection = tmp_path / "selection.json", select_jump(torch.rand(K, K + 1, 5), np.arange(5), "1..K", 0)
    write_sealed_json(path, selection)
    assert read_selection(path, K) == selection
    with pytest.raises(OnejumpError, match=f"selects among {K} jumps, expected {n_jumps}"):
        read_selection(path, n_jumps)
