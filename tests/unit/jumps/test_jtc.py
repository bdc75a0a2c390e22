"""JTC against ridge least squares in NumPy."""

import numpy as np
import pytest
import torch
from handmade import CPU, mean_error, slices, standardise

from onejump.files.tensors import TensorFile
from onejump.jumps import exact as exact_module
from onejump.jumps.fitting import fit_jtc
from onejump.jumps.lenses import LensFile, save_lens


@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_the_full_rank_jump_of_each_level_is_ridge_least_squares_with_an_intercept(study, tmp_path, target):
    activations, unembedding = study
    path = tmp_path / "jtc.safetensors"
    levels, facts = fit_jtc(activations, unembedding, target, CPU)
    save_lens(path, "jtc", levels, target, unembedding, facts)
    for level in range(3):
        lens = LensFile(path, unembedding).at(level)
        (weight,), bias = lens.factors, lens.bias
        assert weight.shape == (12, 12)
        assert bias.shape == (12,)
        facts = TensorFile(path).value(f"level.{level:02d}")
        x, y, validation_x, validation_y = slices(study, level, target)
        # On centred and scaled inputs with a centred target, the intercept is the mean and stays out of the ridge.
        xn = standardise(x).numpy()
        slope = np.linalg.solve(xn.T @ xn + facts["ridge"] * len(x) * np.eye(12), xn.T @ (y - y.mean(0)).numpy())
        expected = standardise(validation_x, x) @ torch.from_numpy(slope) + y.mean(0)
        found = validation_x @ weight.double() + bias.double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert facts["validation_mse"] == pytest.approx(mean_error(found, validation_y), rel=1e-4)
        assert facts["train_mse"] == pytest.approx(mean_error(x @ weight.double() + bias.double(), y), rel=1e-4)


def test_the_full_rank_jump_predicts_the_training_rows_no_worse_than_any_jump(study, fitted, monkeypatch):
    monkeypatch.setattr(exact_module, "RIDGES", (0.0,))
    _, metadata = fit_jtc(*study, "pre_norm", CPU)
    optima = [fitted(1, rank=rank)[1].value("optimum_mse") for rank in (1, 2, 3, 6, 12)]
    assert optima == sorted(optima, reverse=True)
    assert len(set(optima)) == 5
    assert metadata["level.01"]["train_mse"] == pytest.approx(optima[-1], rel=1e-9)
