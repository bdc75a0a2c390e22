"""Fits that look at the output head: least squares in logits, and the divergence of predictions."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tiny_models import N_BLOCKS, make_dump
from torch.nn.functional import kl_div, log_softmax

from onejump.activations.reading import Activations
from onejump.files.tensors import TensorFile
from onejump.jumps.adam import Rows
from onejump.jumps.exact import fit_exact
from onejump.jumps.exact_logits import fit_logits, metric_root
from onejump.jumps.fitting import fit_jump
from onejump.jumps.jump import FoldedJump, Jump, target_of
from onejump.jumps.kl import _Objective, fit_kl
from onejump.jumps.moments import Moments, validation_start
from onejump.jumps.settings import KL_VALIDATE_EVERY
from onejump.models.fused import fuse
from onejump.models.unembedding import Unembedding

torch.set_num_threads(1)  # for matrices this small, threads only wait for each other
CPU = torch.device("cpu")
H, V, RANK = 10, 23, 2


def normal(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_head(norm_kind: str, softcap: float | None = None) -> Unembedding:
    bias = None if norm_kind == "rms" else normal(H, seed=3, scale=0.2)
    weight = 1 + normal(H, seed=2, scale=0.3)
    return Unembedding(norm_kind, weight, bias, 1e-5, normal(V, H, seed=1), None, scale=0.8, softcap=softcap)


def make_rows(n: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of three levels [3, n, H], and targets before the norm [n, H] that follow them."""
    x = normal(3, n, H, seed=5) + 0.5
    y = x.mean(0) @ normal(H, H, seed=6) + 0.4 * normal(n, H, seed=7) + 1.0
    return x, y


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
    unembedding, (x, y) = make_head(norm_kind), make_rows()
    x, y = x[0], target_of(y, unembedding, target)
    root = metric_root(unembedding, target, CPU)
    moments = Moments.of(x, y.double() @ root)
    found, ridge = fit_logits(moments, moments, RANK, root)
    assert ridge == 0  # it chooses on the rows that it fits
    jump = found.jump().fold()
    least = logits_error(unembedding, target, jump(x) @ jump.B, y)

    plain = fit_exact(Moments.of(x, y), Moments.of(x, y), RANK).map.jump().fold()
    assert least < 0.999 * logits_error(unembedding, target, plain(x) @ plain.B, y)

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
    unembedding = make_head("layer")
    root = metric_root(unembedding, "pre_norm", CPU)
    difference = normal(7, H, seed=9)
    expected = logits_error(unembedding, "pre_norm", difference, torch.zeros(7, H))
    assert float((difference.double() @ root).square().sum(1).mean()) == pytest.approx(expected, rel=1e-6)


def test_moments_give_the_error_of_any_jump():
    x, y = make_rows()
    jump = FoldedJump(normal(H, RANK, seed=1), normal(RANK, seed=2), normal(RANK, H, seed=3))
    expected = float((jump(x[0]) @ jump.B - y).square().sum(1).mean())
    assert Moments.of(x[0], y).mse(jump) == pytest.approx(expected, rel=1e-5)


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
    unembedding, (x, y) = make_head(norm_kind, softcap), make_rows()
    y = target_of(y, unembedding, target)
    moments = Moments.of(x.flatten(0, 1), y.repeat(3, 1))
    start = fit_exact(moments, moments, RANK).map
    objective = _Objective(start, Rows(x, y), unembedding, target)
    found = objective.divergence(x, y, backward=True)
    folded = start.jump().fold()
    assert found == pytest.approx(float(divergence(unembedding, target, folded, x, y)), rel=1e-4)

    parameters = {name: value.clone().requires_grad_() for name, value in objective.parameters.items()}
    xn = (x - start.mean_x.float()) / start.std_x.float()
    identity, none = torch.eye(H), torch.zeros(H)
    whole = FoldedJump(identity, none, parameters["W"])  # xn W, then c and B by hand
    predicted = [(whole(level) @ whole.B + parameters["c"]) @ parameters["B"] * objective._scale for level in xn]
    after = unembedding.project if target == "post_norm" else unembedding.logits
    full = log_softmax(after(y), -1)
    losses = [kl_div(log_softmax(after(p), -1), full, reduction="batchmean", log_target=True) for p in predicted]
    torch.stack(losses).mean().backward()
    for name, value in parameters.items():
        torch.testing.assert_close(objective.gradients[name], value.grad, rtol=2e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_training_on_the_divergence_lowers_it_and_keeps_the_best(target):
    unembedding, (x, y) = make_head("rms"), make_rows(400)
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
    assert torch.equal(again.map.W, result.map.W) and again.train_curve == result.train_curve


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("dump"), 120, 10)


@pytest.mark.parametrize("fit", ["exact_logits", "kl"])
@pytest.mark.parametrize("level", [1, None])
@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_the_stage_writes_a_jump_with_the_errors_that_it_has(dump, tmp_path, fit, level, target):
    unembedding = Unembedding.load(dump.unembedding)
    train = Activations(dump.train, dump.positions, unembedding, "train")
    path = tmp_path / "jump.safetensors"
    fit_jump(train, unembedding, level, path, fit, target, 2, "mixed", 0, CPU)
    jump, file = Jump.load(path, unembedding)
    folded, first = jump.fold(), validation_start(len(train))
    y = target_of(train.level(N_BLOCKS), unembedding, target)
    levels = range(N_BLOCKS) if level is None else [level]
    errors = torch.stack([(folded(train.level(k)) @ folded.B - y).square().sum(1) for k in levels]).mean(0)
    assert file.value("train_mse") == pytest.approx(float(errors[:first].mean()), rel=1e-4)
    assert file.value("validation_mse") == pytest.approx(float(errors[first:].mean()), rel=1e-4)
    assert file.value("gap") > 0  # Eq. 2's optimum is another jump
    if fit == "kl":
        x = torch.stack([train.level(k)[first:] for k in levels])
        found = float(divergence(unembedding, target, folded, x, y[first:]))
        assert found == pytest.approx(min(file.value("validation_kl_curve")), rel=1e-3)
    else:
        assert TensorFile(path).value("ridge") >= 0


def test_the_fused_head_of_a_kl_jump_is_the_models_own(dump, tmp_path):
    unembedding = Unembedding.load(dump.unembedding)
    train = Activations(dump.train, dump.positions, unembedding, "train")
    path = tmp_path / "jump.safetensors"
    fit_jump(train, unembedding, 0, path, "kl", "pre_norm", 2, "mixed", 0, CPU)
    jump = Jump.load(path, unembedding)[0].fold()
    z = jump(train.level(0))
    torch.testing.assert_close(fuse(unembedding, [jump.B], "pre_norm")[0].logits(z), unembedding.logits(z @ jump.B))
