"""Least squares in logits against descent on the logits' error."""

import numpy as np
import pytest
import torch
from handmade import CPU, make_joint_rows, make_unembedding, normal
from scipy.optimize import minimize

from onejump.jumps.exact import fit_exact
from onejump.jumps.exact_logits import fit_logits, metric_root
from onejump.jumps.jump import target_of
from onejump.jumps.moments import Moments
from onejump.models.unembedding import Unembedding

H, RANK = 10, 2


def logits_error(unembedding: Unembedding, target: str, predicted: torch.Tensor, y: torch.Tensor) -> float:
    """Mean squared error in logits, before scale and cap and the division by the norm, after the best constant."""
    difference = (predicted - y).double()
    if target == "pre_norm":
        if unembedding.norm_kind == "layer":
            difference = difference - difference.mean(1, keepdim=True)
        difference = difference * unembedding.norm_weight.double()
    logits = difference @ unembedding.weight.double().T
    return float((logits - logits.mean(1, keepdim=True)).square().sum(1).mean())


@pytest.mark.parametrize("norm_kind", ["rms", "layer"])
@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_least_squares_in_logits_is_the_best_of_its_rank(norm_kind, target):
    unembedding, (x, y) = make_unembedding(norm_kind), make_joint_rows()
    x, y = x[0], target_of(y, unembedding, target)
    root = metric_root(unembedding, target, CPU)
    moments = Moments.of(x, y.double() @ root)
    found, ridge = fit_logits(moments, moments, RANK, root)
    assert ridge == 0  # it chooses on the rows that it fits
    jump = found.jump().fold()
    least = logits_error(unembedding, target, jump(x, 1) @ jump.B, y)

    plain = fit_exact(Moments.of(x, y), Moments.of(x, y), RANK).map.jump().fold()
    assert least < 0.999 * logits_error(unembedding, target, plain(x, 1) @ plain.B, y)

    xn = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    design = torch.cat([xn, torch.ones(len(x), 1)], 1).double()

    def error(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        both = torch.from_numpy(parameters).requires_grad_()
        left, right = both[: (H + 1) * RANK].view(H + 1, RANK), both[(H + 1) * RANK :].view(RANK, H)
        difference = design @ left @ right - y.double()
        if target == "pre_norm":
            if norm_kind == "layer":
                difference = difference - difference.mean(1, keepdim=True)
            difference = difference * unembedding.norm_weight.double()
        logits = difference @ unembedding.weight.double().T
        loss = (logits - logits.mean(1, keepdim=True)).square().sum(1).mean()
        loss.backward()
        return float(loss.detach()), both.grad.numpy()

    starts = np.random.default_rng(0).normal(size=(6, (2 * H + 1) * RANK))
    best = min(minimize(error, start, jac=True, options={"maxiter": 3000, "gtol": 1e-9}).fun for start in starts)
    assert least == pytest.approx(best, rel=1e-4)


def test_the_metric_is_that_of_the_logits():
    unembedding = make_unembedding("layer")
    root = metric_root(unembedding, "pre_norm", CPU)
    difference = normal(7, H, seed=9)
    expected = logits_error(unembedding, "pre_norm", difference, torch.zeros(7, H))
    assert float((difference.double() @ root).square().sum(1).mean()) == pytest.approx(expected, rel=1e-6)
