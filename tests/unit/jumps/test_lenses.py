"""Files of lenses: each form read back, and what is no lens of the model refused."""

import pytest
import torch
from handmade import CPU, make_activations, make_levels, normal

from onejump.files.atomic import OnejumpError
from onejump.files.tensors import TensorFile
from onejump.jumps.fitting import fit_jtc
from onejump.jumps.lenses import AffineLens, LensFile, save_lens

H, R = 12, 2
WHOLE = [AffineLens((normal(H, H, seed=level),), normal(H, seed=level + 9)) for level in range(3)]
FACTORS = [
    AffineLens((normal(H, R, seed=level), normal(R, H, seed=level + 5)), normal(H, seed=level + 9), residual=True)
    for level in range(3)
]
SHARED = [AffineLens((normal(H, H, seed=3),))]


@pytest.mark.parametrize("levels", [WHOLE, FACTORS, SHARED], ids=["whole", "factors", "shared"])
def test_a_lens_read_back_is_the_affine_map_that_was_saved(study, tmp_path, levels):
    path, h = tmp_path / "lens.safetensors", normal(5, H, seed=1)
    save_lens(path, "tuned_lens", levels, "pre_norm", study[1], {"multiply_adds": 3})
    file = LensFile(path, study[1])
    assert (file.lens, file.target, TensorFile(path).value("multiply_adds")) == ("tuned_lens", "pre_norm", 3)
    for level in range(3):
        saved, found = levels[level if len(levels) > 1 else 0], file.at(level)
        weight = saved.factors[0] if levels is not FACTORS else saved.factors[0] @ saved.factors[1] + torch.eye(H)
        expected = h @ weight + (0 if saved.bias is None else saved.bias)
        torch.testing.assert_close(found(h), expected)


def test_what_is_no_lens_of_the_level_or_the_model_is_refused(study, fitted, tmp_path):
    activations, unembedding = study
    path = tmp_path / "jtc.safetensors"
    levels, facts = fit_jtc(activations, unembedding, "pre_norm", CPU)
    save_lens(path, "jtc", levels, "pre_norm", unembedding, facts)
    with pytest.raises(OnejumpError, match=r"has no tensor 'level\.03\.weight'"):
        LensFile(path, unembedding).at(3)
    with pytest.raises(OnejumpError, match="was fitted for the unembedding"):
        LensFile(path, make_activations(tmp_path, make_levels(9, n_blocks=2), [9])[1])
    with pytest.raises(OnejumpError, match="holds jump, expected a lens"):
        LensFile(fitted(1)[1].path, unembedding)
