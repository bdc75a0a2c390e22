"""The jump: its size, and its fold to one affine map."""

import copy

import pytest
import torch
from handmade import make_jump, make_unembedding

from onejump.jumps.jump import Jump, target_of
from onejump.jumps.settings import default_rank

H = 24


# ---------------------------------------------------------------------------------------------------------- its size


@pytest.mark.parametrize(
    ("hidden_size", "n_blocks", "rank", "one", "total"),
    [
        pytest.param(1600, 48, 16, 57_600, 2_764_800, id="gpt2-xl"),
        pytest.param(3072, 32, 30, 196_608, 6_291_456, id="phi-3-mini"),
        pytest.param(4096, 32, 40, 344_064, 11_010_048, id="llama-2-7b"),
    ],
)
def test_a_jump_has_the_papers_rank_and_number_of_parameters(hidden_size, n_blocks, rank, one, total):
    assert default_rank(hidden_size) == rank
    jump = make_jump(hidden_size=hidden_size, rank=rank)
    assert sum(tensor.numel() for tensor in jump.tensors().values()) == one
    assert n_blocks * one == total


@pytest.mark.parametrize(("hidden_size", "rank"), [(576, 5), (599, 5), (600, 6), (100, 1), (99, 1), (8, 1)])
def test_the_default_rank_is_a_hundredth_of_the_width_rounded_down_and_at_least_one(hidden_size, rank):
    assert default_rank(hidden_size) == rank


# ------------------------------------------------------------------------------------------------------ what it does


def formula(jump: Jump, h: torch.Tensor) -> torch.Tensor:
    """Eq. 1 as printed, with the running statistics, in float64."""
    bn = jump.bn
    normalised = (h.double() - bn.running_mean.double()) / (bn.running_var.double() + bn.eps).sqrt()
    return (normalised * bn.weight.double() + bn.bias.double()) @ jump.A.double() @ jump.B.double()


def test_a_jump_in_evaluation_mode_is_equation_1_with_running_statistics():
    jump, h = make_jump(), torch.randn(50, H, generator=torch.Generator().manual_seed(1))
    expected = formula(jump, h)
    torch.testing.assert_close(jump(h).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(copy.deepcopy(jump).double()(h.double()), expected, rtol=1e-12, atol=1e-12)


def test_the_folded_jump_followed_by_B_is_the_jump():
    jump, h = make_jump(), torch.randn(50, H, generator=torch.Generator().manual_seed(1))
    folded = jump.fold()
    assert folded.P.shape == (H, 4)
    assert folded.q.shape == (4,)
    assert folded.B.shape == (4, H)
    torch.testing.assert_close((folded(h, 0) @ folded.B).double(), formula(jump, h), rtol=1e-4, atol=1e-4)


def test_the_folded_jump_is_the_jump_also_with_massive_activations():
    generator = torch.Generator().manual_seed(2)
    h = torch.randn(400, H, generator=generator)
    h[::10, 3] += 8000.0  # a first token's massive channels
    h[::10, 7] -= 3000.0
    jump = make_jump()
    with torch.no_grad():
        jump.bn.running_mean.copy_(h.mean(0))
        jump.bn.running_var.copy_(h.var(0, unbiased=False))
    folded = jump.fold()
    expected = formula(jump, h)
    assert expected.std() > 1
    torch.testing.assert_close((folded(h, 0) @ folded.B).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_folded_jump_is_the_jump_also_where_an_input_has_a_large_mean_and_a_small_spread():
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(400, H, generator=generator)
    h[:, 5] = 300.0 + 0.5 * h[:, 5]
    jump = make_jump()
    with torch.no_grad():
        jump.bn.running_mean.copy_(h.mean(0))
        jump.bn.running_var.copy_(h.var(0, unbiased=False))
    folded = jump.fold()
    torch.testing.assert_close((folded(h, 0) @ folded.B).double(), formula(jump, h), rtol=1e-3, atol=2e-3)


def test_folding_changes_neither_the_jump_nor_its_mode():
    jump = make_jump().train()
    before = copy.deepcopy(jump.state_dict())
    jump.fold()
    assert jump.training
    assert all(torch.equal(before[name], value) for name, value in jump.state_dict().items())


def test_the_post_norm_target_is_the_final_norm_of_the_pre_norm_target():
    final = 3 * torch.randn(20, 10, generator=torch.Generator().manual_seed(4)) + 1
    unembedding = make_unembedding("layer")
    assert torch.equal(target_of(final, unembedding, "pre_norm"), final)
    assert target_of(final.bfloat16(), unembedding, "pre_norm").dtype == torch.float32
    wide = final.double()
    centred = wide - wide.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    normed = normed * unembedding.norm_weight + unembedding.norm_bias
    torch.testing.assert_close(target_of(final, unembedding, "post_norm").double(), normed, rtol=1e-5, atol=1e-5)
