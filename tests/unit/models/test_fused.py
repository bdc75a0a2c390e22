"""The fused exit head gives what the whole head gives on the H-wide prediction, at a hundredth of its cost."""

import pytest
import torch
from tiny_models import ALL_FAMILIES, HIDDEN_SIZE, N_BLOCKS, VOCABULARY, tiny_model

from onejump.activations.dump import gather_levels
from onejump.jumps.jump import Jump, target_of
from onejump.models.fused import fuse
from onejump.models.unembedding import Unembedding, extract_unembedding

RANK = 3


def generator(seed):
    return torch.Generator().manual_seed(seed)


def hidden_states(family, n=40):
    """A model's head and its real h^0 .. h^K, at the ends of random sentences."""
    model = tiny_model(family)
    lengths = torch.randint(1, 12, (n,), generator=generator(1)).tolist()
    sentences = [
        torch.randint(0, VOCABULARY, (length,), generator=generator(i)).tolist() for i, length in enumerate(lengths)
    ]
    unembedding, anatomy = extract_unembedding(model)
    return unembedding, gather_levels(anatomy, sentences, 200)[0]


def jump_for(h, final, target_rank=RANK):
    """A low-rank least-squares jump from h to h^K: its output has the size and direction of real predictions."""
    jump = Jump(h.shape[1], target_rank).eval()
    with torch.no_grad():
        jump.bn.running_mean.copy_(h.mean(0))
        jump.bn.running_var.copy_(h.var(0, correction=0))
        jump.bn.weight.copy_(1 + 0.1 * torch.randn(h.shape[1], generator=generator(2)))
        jump.bn.bias.copy_(0.5 + torch.randn(h.shape[1], generator=generator(3)))
        inputs = jump.bn(h)
        _, _, directions = torch.linalg.svd(final, full_matrices=False)
        jump.B.copy_(directions[:target_rank])
        jump.A.copy_(torch.linalg.lstsq(inputs, final @ jump.B.T).solution)
    return jump


def fused_head(unembedding, B, target):
    """The exit head of one jump."""
    (fused,) = fuse(unembedding, [B], target)
    return fused


def whole_head_in_float64(unembedding, y, target):
    """Norm, projection, scale and soft cap, each as its definition says, in float64."""
    y, weight = y.double(), unembedding.norm_weight.double()
    if target == "pre_norm" and unembedding.norm_kind != "none":
        if unembedding.norm_kind == "layer":
            y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + unembedding.eps).sqrt()
        else:
            y = y / ((y**2).mean(-1, keepdim=True) + unembedding.eps).sqrt()
        y = y * weight + (0 if unembedding.norm_bias is None else unembedding.norm_bias.double())
    logits = y @ unembedding.weight.double().T + (0 if unembedding.bias is None else unembedding.bias.double())
    logits = logits * unembedding.scale
    return logits if unembedding.softcap is None else unembedding.softcap * torch.tanh(logits / unembedding.softcap)


def relative_error(found, expected):
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
@torch.no_grad()
def test_fused_logits_are_those_of_the_whole_head_on_the_prediction(family, target):
    unembedding, levels = hidden_states(family)
    jump = jump_for(levels[1], target_of(levels[N_BLOCKS], unembedding, target))
    folded = jump.fold()
    found = fused_head(unembedding, folded.B, target).logits(folded(levels[1], 1))
    prediction = jump(levels[1])
    whole = unembedding.logits(prediction) if target == "pre_norm" else unembedding.project(prediction)
    assert relative_error(found, whole_head_in_float64(unembedding, prediction, target)) < 2e-5
    assert relative_error(found, whole) < 2e-5
    assert torch.equal(found.argmax(1), whole.argmax(1))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi"])
@torch.no_grad()
def test_a_jump_of_full_rank_to_the_final_representation_itself_gives_the_models_own_logits(family):
    """With B the identity and z = h^K there is no loss at all: the fused head is the model's head."""
    unembedding, levels = hidden_states(family)
    fused = fused_head(unembedding, torch.eye(HIDDEN_SIZE), "pre_norm")
    assert relative_error(fused.logits(levels[N_BLOCKS]), unembedding.logits(levels[N_BLOCKS])) < 1e-5


@pytest.mark.parametrize("family", ALL_FAMILIES)
@torch.no_grad()
def test_massive_activations_beside_small_ones_lose_no_accuracy(family):
    """Rows of 1e4 and of 1e-1, and columns of B of very different size, as models with massive activations have."""
    unembedding, _ = extract_unembedding(tiny_model(family))
    z = torch.randn(40, RANK, generator=generator(0))
    z[::2] *= 1e4
    z[1::2] *= 1e-1
    B = torch.randn(RANK, HIDDEN_SIZE, generator=generator(1))
    B[:, 5] *= 100
    found = fused_head(unembedding, B, "pre_norm").logits(z)
    expected = whole_head_in_float64(unembedding, z.double() @ B.double(), "pre_norm")
    for row in range(len(z)):
        assert relative_error(found[row], expected[row]) < 3e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_eps_counts_where_the_prediction_is_small(family):
    """At |y| near sqrt(eps), leaving eps out or taking another would change the logits by a third and more."""
    unembedding, _ = extract_unembedding(tiny_model(family))
    B = torch.randn(RANK, HIDDEN_SIZE, generator=generator(1))
    z = unembedding.eps**0.5 * torch.randn(20, RANK, generator=generator(0))
    expected = whole_head_in_float64(unembedding, z.double() @ B.double(), "pre_norm")
    assert relative_error(fused_head(unembedding, B, "pre_norm").logits(z), expected) < 2e-5
    assert fused_head(unembedding, B, "pre_norm").logits(torch.zeros(1, RANK)).isfinite().all()


@pytest.mark.parametrize("family", ["gpt2", "opt", "cohere", "phi"])
@torch.no_grad()
def test_a_common_shift_of_the_prediction_does_not_move_a_layer_norms_logits(family):
    """The mean over H is taken out, so a constant added to each row of B must change nothing."""
    unembedding, _ = extract_unembedding(tiny_model(family))
    z, B = torch.randn(10, RANK, generator=generator(0)), torch.randn(RANK, HIDDEN_SIZE, generator=generator(1))
    plain, shifted = (fused_head(unembedding, b, "pre_norm").logits(z) for b in (B, B + 3.0))
    assert relative_error(shifted, plain) < 2e-5


@torch.no_grad()
def test_the_post_norm_target_is_not_normalised_again():
    """Doubling z doubles the logits of a plain head (post_norm) and leaves them as they are (pre_norm)."""
    unembedding, _ = extract_unembedding(tiny_model("llama"))
    z, B = torch.randn(10, RANK, generator=generator(0)), torch.randn(RANK, HIDDEN_SIZE, generator=generator(1))
    for target, factor in (("post_norm", 2.0), ("pre_norm", 1.0)):
        fused = fused_head(unembedding, B, target)
        assert relative_error(fused.logits(2 * z), factor * fused.logits(z)) < 1e-5


@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
@torch.no_grad()
def test_jumps_of_several_ranks_fused_together_each_give_their_own_logits(family, target):
    unembedding, _ = extract_unembedding(tiny_model(family))
    ranks = [2, 5, 1, 5]
    zs = [torch.randn(6, rank, generator=generator(rank)) for rank in ranks]
    Bs = [torch.randn(rank, HIDDEN_SIZE, generator=generator(i)) for i, rank in enumerate(ranks)]
    together = fuse(unembedding, Bs, target)
    assert len(together) == len(ranks)
    for fused, z, B in zip(together, zs, Bs, strict=True):
        expected = whole_head_in_float64(unembedding, z.double() @ B.double(), target)
        assert relative_error(fused.logits(z), expected) < 2e-5


@pytest.mark.parametrize("norm_bias", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["rms", "layer", "none"])
@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
@torch.no_grad()
def test_every_combination_of_norm_and_biases_is_right(target, kind, norm_bias, bias):
    """Also those that no model at hand has, such as an RMSNorm with a bias."""
    noise = torch.randn(2 * HIDDEN_SIZE + VOCABULARY, generator=generator(0))
    w, b, c = noise.split([HIDDEN_SIZE, HIDDEN_SIZE, VOCABULARY])
    weight = torch.randn(VOCABULARY, HIDDEN_SIZE, generator=generator(1))
    unembedding = Unembedding(
        kind, w, b if norm_bias else None, 1e-3, weight, c if bias else None, scale=0.5, softcap=4.0
    )
    z, B = torch.randn(10, RANK, generator=generator(2)), torch.randn(RANK, HIDDEN_SIZE, generator=generator(3))
    expected = whole_head_in_float64(unembedding, z.double() @ B.double(), target)
    assert relative_error(fused_head(unembedding, B, target).logits(z), expected) < 2e-5


@torch.no_grad()
def test_an_output_embedding_in_bfloat16_is_used_in_float32():
    unembedding, _ = extract_unembedding(tiny_model("llama", dtype="bfloat16"))
    assert unembedding.weight.dtype == torch.bfloat16
    z, B = torch.randn(10, RANK, generator=generator(0)), torch.randn(RANK, HIDDEN_SIZE, generator=generator(1))
    found = fused_head(unembedding, B, "pre_norm").logits(z)
    assert found.dtype == torch.float32
    assert relative_error(found, whole_head_in_float64(unembedding, z.double() @ B.double(), "pre_norm")) < 2e-5


@torch.no_grad()
def test_fusing_changes_neither_the_head_nor_the_jump():
    unembedding, _ = extract_unembedding(tiny_model("phi"))
    B = torch.randn(RANK, HIDDEN_SIZE, generator=generator(1))
    before = [
        tensor.clone()
        for tensor in (B, unembedding.weight, unembedding.norm_weight, unembedding.norm_bias, unembedding.bias)
    ]
    fused_head(unembedding, B, "pre_norm").logits(torch.ones(2, RANK))
    after = (B, unembedding.weight, unembedding.norm_weight, unembedding.norm_bias, unembedding.bias)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_what_is_kept_has_rank_r():
    unembedding, _ = extract_unembedding(tiny_model("gpt2"))
    fused = fused_head(unembedding, torch.randn(RANK, HIDDEN_SIZE, generator=generator(1)), "pre_norm")
    assert fused.M.shape == (RANK, VOCABULARY)
    assert fused.gram.shape == (RANK, RANK)
    assert fused.constant.shape == (VOCABULARY,)
