"""The exact fit against descent on Eq. 2, pseudo-inverses and ridge regressions."""

import numpy as np
import pytest
import torch
from handmade import make_rows, mean_error, naive_optimum, naive_ridge, standardise
from scipy.optimize import minimize

from onejump.files.atomic import OnejumpError
from onejump.jumps.exact import ExactFit, RidgeSolver, fit_exact
from onejump.jumps.moments import Moments
from onejump.jumps.objective import gap
from onejump.jumps.settings import RIDGES


def predict(fit: ExactFit, at: torch.Tensor) -> torch.Tensor:
    """What an exact fit's map says, by its docstring."""
    found = fit.map
    return (((at - found.mean_x) / found.std_x) @ found.W + found.c) @ found.V.T


def gap_of(fit: ExactFit, mse: float) -> float:
    return gap(mse, fit.optimum_mse, fit.mean_mse)


def fit_rows(x: torch.Tensor, y: torch.Tensor, rank: int, validation: int = 10) -> ExactFit:
    """An exact fit of all rows but the last `validation`, which choose the ridge."""
    return fit_exact(Moments.of(x[:-validation], y[:-validation]), Moments.of(x[-validation:], y[-validation:]), rank)


def descend(loss, sizes: list[tuple[int, ...]], seed: int) -> float:
    """The lowest value of `loss(*tensors)` that L-BFGS finds from a random start, in float64."""
    lengths = [int(np.prod(size)) for size in sizes]

    def value_and_gradient(flat):
        leaf = torch.from_numpy(flat).requires_grad_()
        value = loss(*(part.view(size) for part, size in zip(leaf.split(lengths), sizes, strict=True)))
        return value.item(), torch.autograd.grad(value, leaf)[0].numpy()

    start = np.random.default_rng(seed).standard_normal(sum(lengths))
    options = {"maxiter": 3000, "maxfun": 4000, "ftol": 1e-13, "maxcor": 100}
    return minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options).fun


def test_no_descent_on_equation_2_from_random_starts_beats_the_exact_fit_and_the_best_reaches_it():
    x, y = make_rows(60)
    xn = standardise(x)  # a BatchNorm in training mode, its batch all rows

    def equation_2(gamma, beta, A, B):
        return ((xn * gamma + beta) @ A @ B - y).square().sum(1).mean()

    found = [descend(equation_2, [(12,), (12,), (12, 3), (3, 12)], seed) for seed in range(3)]
    optimum = fit_exact(Moments.of(x, y), Moments.of(x, y), 3).optimum_mse
    assert min(found) == pytest.approx(optimum, rel=1e-6)
    assert min(found) >= optimum * (1 - 1e-12)


@pytest.mark.parametrize("ridge", [0.03, 1.0])
def test_no_descent_on_the_penalised_objective_beats_the_ridge_solution_and_the_best_reaches_it(ridge):
    x, y = make_rows(60)
    xn = standardise(x)

    def objective(A, c, B):
        error = ((xn @ A + c) @ B - y).square().sum(1).mean()
        return error + ridge * (A @ B).square().sum()

    solution = RidgeSolver(Moments.of(x, y)).solve(ridge, 3)
    reached = float(objective(solution.W, solution.c, solution.V.T))
    found = [descend(objective, [(12, 3), (3,), (3, 12)], seed) for seed in range(4)]
    assert min(found) == pytest.approx(reached, rel=1e-6)
    assert min(found) >= reached * (1 - 1e-12)


@pytest.mark.parametrize("rank", [1, 3, 7, 12])
def test_the_optimum_is_the_mean_square_minus_the_largest_eigenvalues(rank):
    x, y = make_rows(60)
    fit = fit_exact(Moments.of(x, y), Moments.of(x, y), rank)
    assert fit.ridge == 0.0  # judged on the rows that it is fitted to
    assert fit.optimum_mse == pytest.approx(naive_optimum(x, y, rank), rel=1e-9)
    assert fit.train_mse == pytest.approx(fit.optimum_mse, rel=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_the_exact_jump_realises_the_error_that_is_reported(rank):
    x, y = make_rows(200, noise=2.0)
    fit = fit_rows(x, y, rank, validation=20)
    jump = fit.map.jump()
    for rows, reported in ((slice(-20), fit.train_mse), (slice(-20, None), fit.validation_mse)):
        assert mean_error(predict(fit, x[rows]), y[rows]) == pytest.approx(reported, rel=1e-9)
        with torch.no_grad():
            assert mean_error(jump(x[rows].float()), y[rows]) == pytest.approx(reported, rel=1e-4)
        folded = jump.fold()
        assert mean_error(folded(x[rows].float(), 0) @ folded.B, y[rows]) == pytest.approx(reported, rel=1e-4)


def test_the_exact_jump_standardises_with_the_statistics_of_its_rows():
    x, y = make_rows(200)
    jump = fit_exact(Moments.of(x, y), Moments.of(x, y), 3).map.jump()
    assert not jump.training
    assert torch.equal(jump.bn.weight, torch.ones(12))
    torch.testing.assert_close(jump.bn.running_mean.double(), x.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(jump.bn.running_var.double(), x.var(0, unbiased=False), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_solutions_are_nested_in_the_rank(ridge):
    x, y = make_rows(60)
    solver = RidgeSolver(Moments.of(x, y))
    three = solver.solve(ridge, 3)
    for rank in (5, 12):  # 12 is H
        larger = solver.solve(ridge, rank)
        torch.testing.assert_close(larger.W[:, :3], three.W)
        torch.testing.assert_close(larger.c[:3], three.c)
        torch.testing.assert_close(larger.V[:, :3], three.V)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_errors_of_all_ranks_are_those_of_the_cut_predictions_on_fitting_and_on_other_rows(ridge):
    x, y = make_rows(200)
    found = RidgeSolver(Moments.of(x[:150], y[:150])).solve(ridge, 7)
    for rows in (slice(150), slice(150, None)):
        z = ((x[rows] - found.mean_x) / found.std_x) @ found.W + found.c
        naive = [mean_error(z[:, :rank] @ found.V[:, :rank].T, y[rows]) for rank in range(1, 8)]
        np.testing.assert_allclose(found.mse_by_rank(Moments.of(x[rows], y[rows])), naive, rtol=1e-9)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
@pytest.mark.parametrize("rank", [1, 3, 12])
def test_the_ridge_solution_is_the_reduced_rank_ridge_regression(rank, ridge):
    x, y = make_rows(60)
    solution = RidgeSolver(Moments.of(x[:50], y[:50])).solve(ridge, rank)
    found = (((x[50:] - solution.mean_x) / solution.std_x) @ solution.W + solution.c) @ solution.V.T
    torch.testing.assert_close(found, naive_ridge(x[:50], y[:50], rank, ridge, x[50:]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("noise", [0.01, 3.0, 10.0, 60.0])
def test_the_ridge_is_the_one_that_brute_force_finds_best_on_the_validation_slice(noise):
    x, y = make_rows(60, noise=noise, seed=1)
    fit = fit_rows(x, y, 3, validation=20)
    errors = {r: mean_error(naive_ridge(x[:40], y[:40], 3, r, x[40:]), y[40:]) for r in RIDGES}
    assert fit.ridge == min(errors, key=errors.get)
    assert fit.validation_mse == pytest.approx(errors[fit.ridge], rel=1e-8)
    assert fit.train_mse == pytest.approx(mean_error(naive_ridge(x[:40], y[:40], 3, fit.ridge, x[:40]), y[:40]))
    assert fit.optimum_mse == pytest.approx(naive_optimum(x[:40], y[:40], 3), rel=1e-8)


def test_the_noisier_the_rows_the_larger_the_ridge():
    ridges = [fit_rows(*make_rows(60, noise=noise, seed=1), 3, validation=20).ridge for noise in (0.01, 3.0, 60.0)]
    assert ridges == sorted(set(ridges))


def fewer_rows_than_dimensions():
    x, y = make_rows(8)
    return x, y


def duplicated_columns():
    x, y = make_rows(60)
    x[:, 4], x[:, 7], x[:, 9] = x[:, 3], 2 * x[:, 6] + 1, x[:, 0] - x[:, 1]
    return x, y


def constant_columns():
    x, y = make_rows(60)
    x[:, 2], x[:, 8] = 5.0, 0.0
    return x, y


def constant_target_columns():
    x, y = make_rows(60)
    y[:, 3:] = 2.0
    return x, y


DEGENERATE = [fewer_rows_than_dimensions, duplicated_columns, constant_columns, constant_target_columns]


@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("make", DEGENERATE, ids=lambda make: make.__name__)
def test_degenerate_rows_still_get_their_optimum(make, rank):
    x, y = make()
    fit = fit_exact(Moments.of(x, y), Moments.of(x, y), rank)
    scale = float((y - y.mean(0)).square().sum(1).mean())
    assert fit.optimum_mse == pytest.approx(naive_optimum(x, y, rank), rel=1e-6, abs=1e-6 * scale)
    assert mean_error(predict(fit, x), y) == pytest.approx(fit.train_mse, rel=1e-6, abs=1e-9 * scale)
    assert 0.0 <= gap_of(fit, fit.train_mse) + 1e-9 < 1.0


@pytest.mark.parametrize("make", DEGENERATE, ids=lambda make: make.__name__)
def test_the_jump_of_degenerate_rows_realises_the_error_that_is_reported(make):
    x, y = make()
    fit = fit_exact(Moments.of(x, y), Moments.of(x, y), 3)
    scale = float((y - y.mean(0)).square().sum(1).mean())
    with torch.no_grad():
        found = mean_error(fit.map.jump()(x.float()), y)
    assert found == pytest.approx(fit.train_mse, rel=1e-4, abs=1e-6 * scale)


def test_a_rank_above_what_the_rows_span_is_refused_since_no_jump_realises_the_error_that_is_reported():
    x, y = make_rows(3)  # two dimensions and a constant
    fit = fit_exact(Moments.of(x, y), Moments.of(x, y), 3)
    with pytest.raises(OnejumpError, match="rank"):
        fit.map.jump()


def test_where_dimensions_are_nearly_as_many_as_rows_a_ridge_is_chosen_that_predicts_better():
    x, y = make_rows(140, hidden_size=60, noise=60.0)
    fit = fit_rows(x, y, 6, validation=40)
    unridged = mean_error(naive_ridge(x[:100], y[:100], 6, 0.0, x[100:]), y[100:])
    assert fit.ridge > 0
    assert fit.validation_mse < 0.9 * unridged
    assert fit.validation_mse == pytest.approx(mean_error(predict(fit, x[100:]), y[100:]), rel=1e-9)
    assert fit.optimum_mse < fit.train_mse < fit.mean_mse


def test_the_gap_is_0_at_the_optimum_and_1_for_predicting_the_mean():
    x, y = make_rows(60)
    fit = fit_exact(Moments.of(x, y), Moments.of(x, y), 3)
    assert gap_of(fit, fit.optimum_mse) == 0.0
    assert gap_of(fit, mean_error(y.mean(0).expand_as(y), y)) == pytest.approx(1.0, rel=1e-9)
    assert gap_of(fit, mean_error(0 * y, y)) > 1.0
    assert fit.mean_mse == pytest.approx(mean_error(y.mean(0).expand_as(y), y), rel=1e-12)


def test_the_full_rank_map_at_ridge_0_is_least_squares_with_an_intercept():
    x, y = make_rows(60)
    fit = fit_exact(Moments.of(x, y), Moments.of(x, y), 12)
    design = np.column_stack([x.numpy(), np.ones(60)])
    weights = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    # With eps inside the standardisation the map is the same: without a ridge the inputs' scale does not matter.
    np.testing.assert_allclose(predict(fit, x), design @ weights, rtol=1e-8, atol=1e-8)
