"""The Adam fit against automatic differentiation, PyTorch's optimiser, and the exact optimum."""

import functools

import pytest
import torch
from handmade import make_rows, mean_error, standardise
from torch.nn.functional import mse_loss

from onejump.files.atomic import OnejumpError
from onejump.jumps.adam import fit_adam, set_gradients
from onejump.jumps.exact import fit_exact
from onejump.jumps.jump import Jump
from onejump.jumps.moments import Moments
from onejump.jumps.objective import Rows, gap


@functools.cache
def adam_fit(factor: float = 1.0, seed: int = 0, rank: int = 3):
    """An Adam fit of 1,000 float32 rows of a well-conditioned problem, whose targets are multiplied by `factor`."""
    x, y = (rows.float() for rows in make_rows(1100))
    fit, validation = Rows(x[None, :1000], factor * y[:1000]), Rows(x[None, 1000:], factor * y[1000:])
    exact = fit_exact(Moments.of(fit.x[0], fit.y), Moments.of(validation.x[0], validation.y), rank)
    return fit_adam(fit, validation, rank, seed), exact, fit, validation


def gap_of(exact, fit) -> float:
    return gap(fit.train_mse, exact.optimum_mse, exact.mean_mse)


def random_jump(hidden_size: int, rank: int, seed: int) -> Jump:
    """A jump none of whose tensors is trivial, in training mode."""
    generator = torch.Generator().manual_seed(seed)
    jump = Jump(hidden_size, rank)
    with torch.no_grad():
        for tensor in jump.tensors().values():
            tensor.normal_(0.5, 0.4, generator=generator)
        jump.bn.running_var.abs_()
    return jump


@pytest.mark.parametrize(("n", "hidden_size", "rank"), [(2, 3, 1), (7, 20, 3), (300, 12, 12)])
def test_the_gradients_of_a_batch_are_those_of_automatic_differentiation(n, hidden_size, rank):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, hidden_size, generator=generator) * torch.linspace(0.1, 30, hidden_size) + 5
    y = torch.randn(n, hidden_size, generator=generator) + 1
    plain, found = (random_jump(hidden_size, rank, 1).double() for _ in range(2))
    loss = mse_loss(plain(x.double()), y.double(), reduction="sum") / n
    loss.backward()
    error = set_gradients(found, x.double(), y.double())
    assert error.item() == pytest.approx(loss.item(), rel=1e-10)
    for ours, theirs in zip(found.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(found.bn, name), getattr(plain.bn, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_levels", [1, 2])
def test_a_fit_is_that_of_automatic_differentiation_and_pytorchs_optimiser(n_levels):
    x, y = (rows.float() for rows in make_rows(700))
    fit = Rows(torch.stack([x[:600], x[:600].roll(1, 1)][:n_levels]), y[:600])
    validation = Rows(fit.x[:, :100], y[:100])
    found = fit_adam(fit, validation, 3, seed=5, epochs=6)

    generator = torch.Generator().manual_seed(5)
    jump, scale = Jump(fit.x.shape[2], 3), float(fit.y.square().mean().sqrt())
    with torch.no_grad():
        jump.A.normal_(0, fit.x.shape[2] ** -0.5, generator=generator)
        jump.B.normal_(0, 3**-0.5, generator=generator)
    optimiser = torch.optim.Adam(jump.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.03, total_steps=6 * (600 // 128))
    curve = []
    for _ in range(6):
        losses = []
        for inputs, targets in Rows(fit.x, fit.y / scale).batches(128, False, generator):
            loss = mse_loss(jump(inputs), targets, reduction="sum") / len(inputs)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item() * scale**2)
        curve.append(sum(losses) / len(losses))
    assert found.train_curve == pytest.approx(curve, rel=1e-4)
    assert found.best_epoch == 6
    torch.testing.assert_close(found.jump.B, jump.B * scale, rtol=1e-3, atol=1e-3)


def test_adam_comes_within_2_percent_of_the_exact_optimum_on_a_well_conditioned_problem():
    found, exact, _, _ = adam_fit()
    assert 0 <= gap_of(exact, found) < 0.02


def test_the_targets_scale_does_not_matter_to_adam():
    found, exact, _, _ = adam_fit()
    larger, larger_exact, _, _ = adam_fit(factor=1000.0)
    assert larger.train_mse == pytest.approx(1e6 * found.train_mse, rel=1e-3)
    assert gap_of(larger_exact, larger) == pytest.approx(gap_of(exact, found), abs=1e-3)


def test_a_power_of_two_in_the_targets_scale_changes_nothing_but_B():
    found, larger = adam_fit()[0].jump, adam_fit(factor=1024.0)[0].jump
    assert torch.equal(larger.A, found.A)
    assert torch.equal(larger.B, 1024 * found.B)


def overfitted(seed: int = 0):
    """An Adam fit that gets worse on the validation rows long before it ends."""
    x, y = (rows.float() for rows in make_rows(70, hidden_size=40, noise=60.0))
    fit, validation = Rows(x[None, :50], y[:50]), Rows(x[None, 50:], y[50:])
    return fit_adam(fit, validation, 8, seed, epochs=150), fit, validation


def test_adam_keeps_the_weights_of_the_epoch_that_is_best_on_the_validation_rows():
    found, fit, validation = overfitted()
    assert len(found.train_curve) == len(found.validation_curve) == 150
    assert found.best_epoch < 150
    assert found.validation_curve[-1] > 1.05 * found.validation_mse
    assert found.validation_mse == min(found.validation_curve)
    assert found.validation_curve[found.best_epoch - 1] == found.validation_mse
    assert not found.jump.training
    with torch.no_grad():
        jump = found.jump.double()
        assert mean_error(jump(validation.x[0].double()), validation.y) == pytest.approx(found.validation_mse, rel=1e-5)
        assert mean_error(jump(fit.x[0].double()), fit.y) == pytest.approx(found.train_mse, rel=1e-5)


def test_a_seed_determines_the_adam_fit_and_another_seed_gives_another():
    one, same, other = (overfitted(seed)[0] for seed in (5, 5, 6))
    for name, value in one.jump.state_dict().items():
        assert torch.equal(value, same.jump.state_dict()[name])
    assert one.train_curve == same.train_curve
    assert not torch.equal(one.jump.A, other.jump.A)


def test_the_first_point_of_the_train_curve_is_the_error_of_the_drawn_weights():
    x, y = (rows.float() for rows in make_rows(50))
    rows = Rows(x[None], y)
    found = fit_adam(rows, rows, 3, seed=3, epochs=1)  # one batch of all rows
    generator = torch.Generator().manual_seed(3)
    A = torch.empty(12, 3).normal_(0, 12**-0.5, generator=generator).double()
    B = torch.empty(3, 12).normal_(0, 3**-0.5, generator=generator).double()
    prediction = standardise(x.double()) @ A @ B * float(y.square().mean().sqrt())
    assert found.train_curve == [pytest.approx(mean_error(prediction, y), rel=1e-4)]


@pytest.mark.parametrize("where", ["fit", "validation"])
def test_adam_refuses_rows_that_are_not_numbers(where):
    x, y = (rows.float() for rows in make_rows(70))
    x[3 if where == "fit" else 60, 0] = torch.nan
    with pytest.raises(OnejumpError, match="Adam fit: the error is nan after epoch 1"):
        fit_adam(Rows(x[None, :50], y[:50]), Rows(x[None, 50:], y[50:]), 3, seed=0, epochs=5)
