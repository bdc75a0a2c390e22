"""The divergence of a lens against autograd through the model's own unembedding."""

from dataclasses import replace

import pytest
import torch
from handmade import make_joint_rows, make_unembedding, normal
from torch.nn.functional import kl_div, log_softmax

from onejump.jumps.divergence import FullModel
from onejump.jumps.lens_divergence import LensDivergence
from onejump.jumps.objective import Rows


def make_divergence(norm_kind: str, softcap: float | None, rank: int | None):
    unembedding, (x, y) = make_unembedding(norm_kind, softcap), make_joint_rows()
    unembedding.bias = normal(23, seed=8)
    x[:, :5] *= 30  # rows far from the others
    rows = Rows(x[1:2], y)
    compute = LensDivergence(rows, unembedding, rank, 0)
    with torch.no_grad():
        for seed, parameter in enumerate(compute.parameters):
            parameter += normal(*parameter.shape, seed=20 + seed, scale=0.3)
    return unembedding, rows, compute


@pytest.mark.parametrize(("norm_kind", "softcap"), [("rms", None), ("layer", None), ("rms", 3.0), ("none", None)])
@pytest.mark.parametrize("rank", [None, 2])
def test_the_divergence_and_its_gradients_are_those_of_whole_predictions(monkeypatch, norm_kind, softcap, rank):
    monkeypatch.setattr("onejump.jumps.divergence.BLOCK", 3)  # so that the rows are in several blocks
    unembedding, rows, compute = make_divergence(norm_kind, softcap, rank)
    sentences = torch.tensor([5, 1, 7, 3, 3, 0, 60])
    full = FullModel.of(rows.y, unembedding, "pre_norm")
    found = compute.gradients(rows, full, torch.zeros_like(sentences), sentences)
    assert compute(compute.parameters, rows, full, torch.zeros_like(sentences), sentences) == found

    c, *factors = parameters = [value.detach().clone().requires_grad_() for value in compute.parameters]
    x = rows.x[0]
    size = x.square().mean(1).sqrt().median()
    change = (x[sentences] - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    for factor in factors:
        change = change @ factor
    log_q = log_softmax(unembedding.logits(x[sentences] + size * (change + c)), -1)
    log_p = log_softmax(unembedding.logits(rows.y[sentences]), -1)
    loss = kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    assert found == pytest.approx(loss.item(), rel=1e-4)
    loss.backward()
    assert len(compute.parameters) == (2 if rank is None else 3)
    for ours, value in zip(compute.parameters, parameters, strict=True):
        torch.testing.assert_close(ours.grad, value.grad, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 2])
def test_the_lens_gives_the_predictions_that_the_divergence_is_of(rank):
    unembedding, rows, compute = make_divergence("rms", None, rank)
    lens = compute.lens(compute.parameters)
    assert [factor.shape for factor in lens.factors] == ([(10, 10)] if rank is None else [(10, 2), (2, 10)])
    assert lens.residual == (rank is not None)
    log_q, log_p = (log_softmax(unembedding.logits(h), -1) for h in (lens(rows.x[0]), rows.y))
    everything = torch.arange(len(rows.y))
    full = FullModel.of(rows.y, unembedding, "pre_norm")
    found = compute(compute.parameters, rows, full, torch.zeros_like(everything), everything)
    assert found == pytest.approx(kl_div(log_q, log_p, reduction="batchmean", log_target=True).item(), rel=1e-4)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_lens_starts_at_identity(rank):
    rows = Rows(*make_joint_rows())
    rows = replace(rows, x=rows.x[:1])
    compute = LensDivergence(rows, make_unembedding("rms"), rank, 0)
    torch.testing.assert_close(compute.lens(compute.parameters)(rows.x[0]), rows.x[0])
