"""What the largest rows hold, against sums over sorted lists."""

import numpy as np
import pytest
import torch
from handmade_activations import K, make_activations, make_head, naive_norm

from onejump.exits.norms import largest_rows

CPU = torch.device("cpu")


@pytest.mark.parametrize("keep", ["all", "not_first"])
def test_the_largest_rows_are_the_first_of_all_when_sorted_by_distance_from_the_mean(tmp_path, keep):
    activations, unembedding = make_activations(tmp_path, make_head(50, "layer"), (90, 113), keep=keep)
    n = len(activations)
    table = largest_rows(activations, unembedding, CPU).to_pandas()
    assert len(table) == 2 * (K + 2)
    for found in table.itertuples():
        whole = np.isnan(found.level)
        h = activations.level(K if whole else int(found.level)).double().numpy()
        h = np.array([naive_norm(unembedding, row) for row in h]) if whole else h
        mean = h.mean(0)
        squares = sorted(((float(((row - mean) ** 2).sum()), i) for i, row in enumerate(h)), reverse=True)
        rows = {0.01: 3 if n == 203 else 2, 0.001: 1}[found.largest]
        assert found.rows == rows
        expected = sum(square for square, _ in squares[:rows]) / sum(square for square, _ in squares)
        assert found.share == pytest.approx(expected, rel=1e-5)
        at_first = sum(square for square, i in squares if activations.positions[i] == 0)
        assert found.share_of_position_0 == pytest.approx(at_first / sum(square for square, _ in squares), rel=1e-5)
        assert found.at_position_0 == sum(activations.positions[i] == 0 for _, i in squares[:rows])


def test_rows_that_are_massive_at_position_0_hold_nearly_all(tmp_path, monkeypatch):
    activations, unembedding = make_activations(tmp_path, make_head(50), (90, 110))
    level, massive = activations.level, (activations.positions == 0).nonzero()[:2, 0]

    def with_massive(k: int) -> torch.Tensor:
        h = level(k)
        h[massive, 5] = 1e4
        return h

    monkeypatch.setattr(activations, "level", with_massive)
    table = largest_rows(activations, unembedding, CPU).to_pandas().query("largest == 0.01")
    assert (table["at_position_0"] == 2).all()
    assert (table["share"][table["level"].notna()] > 0.98).all()
    assert table["share"].iloc[-1] < 0.5  # the final norm makes all rows about as large
