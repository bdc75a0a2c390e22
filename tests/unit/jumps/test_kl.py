"""The KL fit against the divergence of whole predictions."""

import numpy as np
import pytest
import torch
from handmade import make_joint_rows, make_unembedding
from torch.nn.functional import kl_div, log_softmax

from onejump.jumps.exact import fit_exact
from onejump.jumps.jump import FoldedJump, target_of
from onejump.jumps.kl import _Objective, fit_kl
from onejump.jumps.moments import Moments
from onejump.jumps.objective import Rows
from onejump.jumps.settings import KL_VALIDATE_EVERY
from onejump.models.unembedding import Unembedding

H, RANK = 10, 2


def divergence(
    unembedding: Unembedding, target: str, jump: FoldedJump, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """KL(full || exit) over rows, by whole predictions."""
    after = unembedding.project if target == "post_norm" else unembedding.logits
    full = log_softmax(after(y), -1)
    exits = [log_softmax(after(jump(level) @ jump.B), -1) for level in x]
    return torch.stack([kl_div(one, full, reduction="batchmean", log_target=True) for one in exits]).mean()


@pytest.mark.parametrize(("norm_kind", "softcap"), [("rms", None), ("layer", None), ("rms", 3.0)])
@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_the_divergence_and_its_gradients_are_those_of_whole_predictions(norm_kind, softcap, target):
    unembedding, (x, y) = make_unembedding(norm_kind, softcap), make_joint_rows()
    y = target_of(y, unembedding, target)
    moments = Moments.of(x.flatten(0, 1), y.repeat(3, 1))
    start = fit_exact(moments, moments, RANK).map
    objective = _Objective(start, Rows(x, y), unembedding, target)
    found = objective.divergence(x, y, backward=True)
    folded = start.jump().fold()
    assert found == pytest.approx(float(divergence(unembedding, target, folded, x, y)), rel=1e-4)

    parameters = [value.detach().clone().requires_grad_() for value in objective.parameters]
    xn = (x - start.mean_x.float()) / start.std_x.float()
    identity, none = torch.eye(H), torch.zeros(H)
    whole = FoldedJump(identity, none, parameters[0])  # xn W, then c and B by hand
    predicted = [(whole(level) @ whole.B + parameters[1]) @ parameters[2] * objective._scale for level in xn]
    after = unembedding.project if target == "post_norm" else unembedding.logits
    full = log_softmax(after(y), -1)
    losses = [kl_div(log_softmax(after(p), -1), full, reduction="batchmean", log_target=True) for p in predicted]
    torch.stack(losses).mean().backward()
    for found, value in zip(objective.parameters, parameters, strict=True):
        torch.testing.assert_close(found.grad, value.grad, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_training_on_the_divergence_lowers_it_and_keeps_the_best(target):
    unembedding, (x, y) = make_unembedding("rms"), make_joint_rows(400)
    y = target_of(y, unembedding, target)
    fit, validation = Rows(x[:, :300], y[:300]), Rows(x[:, 300:], y[300:])
    moments = Moments.of(fit.x.flatten(0, 1), fit.y.repeat(3, 1))
    start = fit_exact(moments, moments, RANK).map
    result = fit_kl(fit, validation, start, unembedding, target, seed=0, steps=100)
    assert len(result.validation_curve) == 1 + 100 // KL_VALIDATE_EVERY == 1 + len(result.train_curve)
    assert result.validation_curve[0] == pytest.approx(
        float(divergence(unembedding, target, start.jump().fold(), validation.x, validation.y)), rel=1e-4
    )
    kept = float(divergence(unembedding, target, result.map.jump().fold(), validation.x, validation.y))
    assert kept == pytest.approx(min(result.validation_curve), rel=1e-4)
    assert kept < 0.95 * result.validation_curve[0]
    assert result.best_step == KL_VALIDATE_EVERY * int(np.argmin(result.validation_curve))
    again = fit_kl(fit, validation, start, unembedding, target, seed=0, steps=100)
    assert torch.equal(again.map.W, result.map.W)
    assert again.train_curve == result.train_curve


@pytest.mark.parametrize("level", [1, None], ids=["level", "joint"])
@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_a_kl_jump_has_the_divergence_that_its_file_reports(study, fitted, level, target):
    (activations, unembedding), (jump, file) = study, fitted(level, "kl", target)
    x = torch.stack([activations.level(k)[-20:] for k in (range(3) if level is None else [level])])
    y = target_of(activations.level(3)[-20:], unembedding, target)
    found = float(divergence(unembedding, target, jump.fold(), x, y))
    assert found == pytest.approx(min(file.value("validation_curve")), rel=1e-3)
