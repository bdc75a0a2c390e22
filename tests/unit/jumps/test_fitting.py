"""Moments, the exact optimum, Adam, and the training stages, each against the literal formula in float64."""

import functools
import operator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.nn.functional import mse_loss

from onejump.activations.positions import rows_digest
from onejump.activations.reading import Activations
from onejump.files.atomic import OnejumpError
from onejump.files.tables import write_table
from onejump.files.tensors import TensorFile, write_tensors
from onejump.jumps import exact as exact_module
from onejump.jumps.adam import Adam, Rows, batch_gradients, fit_adam, one_cycle
from onejump.jumps.exact import ExactFit, RidgeSolver, fit_exact
from onejump.jumps.fitting import fit_jump
from onejump.jumps.jtc import fit_jtc, open_jtc
from onejump.jumps.jump import Jump, target_of
from onejump.jumps.moments import Moments, level_moments, validation_start
from onejump.jumps.settings import EPOCHS, RIDGES
from onejump.models.unembedding import Unembedding

torch.set_num_threads(1)  # for matrices this small, threads only wait for each other
CPU = torch.device("cpu")
EPS = 1e-5  # of the BatchNorm
FIELDS = ("mean_x", "mean_y", "xx", "xy", "yy")


def make_rows(n: int, hidden_size: int = 12, noise: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of uneven scale and mean, and targets that follow them, with a mean that matters: float64."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 1, hidden_size, dtype=torch.float64)
    mixing = torch.eye(hidden_size, dtype=torch.float64) + 0.3 * torch.randn(
        hidden_size, hidden_size, generator=generator, dtype=torch.float64
    )
    x = torch.randn(n, hidden_size, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(hidden_size, hidden_size, generator=generator, dtype=torch.float64)
    error = noise * torch.randn(n, hidden_size, generator=generator, dtype=torch.float64)
    y = x @ weight * torch.linspace(2, 0.2, hidden_size, dtype=torch.float64) + error
    shift = 3 * torch.randn(hidden_size, generator=generator, dtype=torch.float64)
    return x * spread + shift, y + shift.flip(0)


def standardise(x: torch.Tensor, by: torch.Tensor | None = None) -> torch.Tensor:
    """What a BatchNorm without weight and bias does to x, with the statistics of `by`."""
    by = x if by is None else by
    return (x - by.mean(0)) / (by.var(0, unbiased=False) + EPS).sqrt()


def mean_error(prediction: torch.Tensor, y: torch.Tensor) -> float:
    """Squared error, summed over H and averaged over rows."""
    return float((prediction.double() - y.double()).square().sum(1).mean())


def naive_optimum(x: torch.Tensor, y: torch.Tensor, rank: int) -> float:
    """mean|y|^2 minus the r largest eigenvalues of the fitted second moment, by a pseudo-inverse."""
    xn, y = standardise(x).numpy(), y.numpy()
    n, mean = len(y), y.mean(0)
    C, S = xn.T @ xn / n, xn.T @ (y - mean) / n
    eigenvalues = np.linalg.eigvalsh(S.T @ np.linalg.pinv(C, rcond=1e-10, hermitian=True) @ S + np.outer(mean, mean))
    return float((y**2).sum(1).mean() - eigenvalues[-rank:].sum())


def naive_ridge(x: torch.Tensor, y: torch.Tensor, rank: int, ridge: float, at: torch.Tensor) -> torch.Tensor:
    """Predictions at rows `at` of the reduced-rank ridge regression of y on x."""
    xn, target = standardise(x).numpy(), y.numpy()
    n, mean = len(target), target.mean(0)
    inverse = np.linalg.inv(xn.T @ xn / n + ridge * np.eye(xn.shape[1]))
    S = xn.T @ (target - mean) / n
    V = np.linalg.eigh(S.T @ inverse @ S + np.outer(mean, mean))[1][:, -rank:]
    return (standardise(at, x) @ torch.from_numpy(inverse @ S) + torch.from_numpy(mean)) @ torch.from_numpy(V @ V.T)


def predict(fit: ExactFit, at: torch.Tensor) -> torch.Tensor:
    """What an exact fit's map says, by its docstring."""
    found = fit.map
    return (((at - found.mean_x) / found.std_x) @ found.W + found.c) @ found.V.T


def fit_rows(x: torch.Tensor, y: torch.Tensor, rank: int, validation: int = 10) -> ExactFit:
    """An exact fit of all rows but the last `validation`, which choose the ridge."""
    return fit_exact(Moments.of(x[:-validation], y[:-validation]), Moments.of(x[-validation:], y[-validation:]), rank)


# ------------------------------------------------------------------------------------------------ activations on disk


def make_activations(folder: Path, levels: torch.Tensor, sizes: list[int]) -> tuple[Activations, Unembedding]:
    """Training shards of the given sizes, handmade from levels [K+1, N, H], and a head that they belong to."""
    n_levels, n, hidden_size = levels.shape
    unembedding = Unembedding("rms", torch.linspace(0.5, 1.5, hidden_size), None, 1e-6, torch.eye(9, hidden_size), None)
    facts = {"model": "handmade", "revision": "1", "dtype": "float32", "n_blocks": n_levels - 1, "parameters": 0}
    sha256 = unembedding.save(folder / "unembedding.safetensors", facts)
    shard = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    ids = np.arange(n, dtype=np.int32) * 3 + 1
    columns = {"sentence_id": ids, "split": ["train"] * n, "shard": shard, "position": np.ones(n, np.int32)}
    write_table(folder / "positions.parquet", pa.table(columns))
    paths = [folder / f"shard-{i:02d}.safetensors" for i in range(len(sizes))]
    for i, path in enumerate(paths):
        rows = torch.from_numpy(shard == i)
        tensors = {f"level.{level:02d}": levels[level, rows].float() for level in range(n_levels)}
        tensors["sentence_id"] = torch.from_numpy(ids)[rows]
        digest = rows_digest(ids[shard == i], columns["position"][shard == i])
        facts = {"unembedding_sha256": sha256, "split": "train", "shard": i, "rows_sha256": digest}
        write_tensors(path, tensors, facts)
    unembedding = Unembedding.load(folder / "unembedding.safetensors")
    return Activations(paths, folder / "positions.parquet", unembedding, "train"), unembedding


def make_levels(n: int, n_blocks: int = 3, hidden_size: int = 12, seed: int = 0) -> torch.Tensor:
    """Levels 0..K [K+1, N, H] float32, each a noisy step from the one before."""
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(n, hidden_size, generator=generator) + torch.linspace(-1, 2, hidden_size)]
    for _ in range(n_blocks):
        step = torch.eye(hidden_size) + 0.3 * torch.randn(hidden_size, hidden_size, generator=generator)
        levels.append(1.3 * levels[-1] @ step + 0.3 * torch.randn(n, hidden_size, generator=generator))
    return torch.stack(levels)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Activations of 203 rows in three shards, K=3 and H=12, and their head."""
    return make_activations(tmp_path_factory.mktemp("study"), make_levels(203), [70, 70, 63])


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    """A function that trains a jump on the study (once for each choice) and returns it with its file."""
    folder = tmp_path_factory.mktemp("trained")

    @functools.cache
    def train(level, fit="exact", target="pre_norm", rank=3, joint_batches="mixed", seed=0, again=0):
        path = folder / f"{level}-{fit}-{target}-{rank}-{joint_batches}-{seed}-{again}.safetensors"
        fit_jump(*study, level, path, fit, target, rank, joint_batches, seed, CPU)
        return Jump.load(path, study[1])

    return train


def slices(study, level: int, target: str = "pre_norm") -> tuple[torch.Tensor, ...]:
    """Float64 rows of a level: fitting x and y, validation x and y."""
    activations, unembedding = study
    x = activations.level(level).double()
    y = target_of(activations.level(activations.n_blocks), unembedding, target).double()
    return x[:-20], y[:-20], x[-20:], y[-20:]  # a tenth of 203 rows


# ----------------------------------------------------------------------------------------------------------- moments


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_moments_of_a_stack_are_the_sum_of_its_parts_in_any_split(sizes, seed):
    x, y = make_rows(sum(sizes), hidden_size=5, seed=seed)
    parts = [Moments.of(a, b) for a, b in zip(x.split(sizes), y.split(sizes), strict=True)]
    pooled, whole = functools.reduce(operator.iadd, parts), Moments.of(x, y)
    assert pooled.n == whole.n == len(x)
    for name in FIELDS:
        torch.testing.assert_close(getattr(pooled, name), getattr(whole, name), rtol=1e-10, atol=1e-9)


def test_moments_are_what_their_docstring_says():
    x, y = (rows.numpy() for rows in make_rows(30, hidden_size=4))
    found = Moments.of(torch.from_numpy(x), torch.from_numpy(y))
    dx, dy = x - x.sum(0) / 30, y - y.sum(0) / 30
    np.testing.assert_allclose(found.mean_x, x.sum(0) / 30, rtol=1e-12)
    np.testing.assert_allclose(found.mean_y, y.sum(0) / 30, rtol=1e-12)
    np.testing.assert_allclose(found.xx, sum(np.outer(a, a) for a in dx), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.xy, sum(np.outer(a, b) for a, b in zip(dx, dy, strict=True)), rtol=1e-10)
    np.testing.assert_allclose(found.yy, sum((b**2).sum() for b in dy), rtol=1e-12)


def test_moments_of_levels_pool_to_the_moments_of_stacked_rows():
    levels = make_levels(40).double()
    y = levels[-1]
    pooled = functools.reduce(operator.iadd, [Moments.of(levels[k], y) for k in range(3)])
    added = Moments.of(levels[0], y)
    for k in (1, 2):
        added.add(levels[k], y)
    stacked = Moments.of(levels[:3].reshape(-1, 12), y.repeat(3, 1))
    assert pooled.n == added.n == stacked.n == 120
    for name in FIELDS:
        for found in (pooled, added):
            torch.testing.assert_close(getattr(found, name), getattr(stacked, name), rtol=1e-12, atol=1e-9)


def test_a_large_mean_costs_no_digits():
    generator = torch.Generator().manual_seed(0)
    x, y = (1e4 + 0.1 * torch.randn(500, 4, generator=generator, dtype=torch.float64) for _ in "xy")
    wide_x, wide_y = (rows.numpy().astype(np.longdouble) for rows in (x, y))
    dx, dy = wide_x - wide_x.mean(0), wide_y - wide_y.mean(0)
    parts = [Moments.of(a, b) for a, b in zip(x.split(70), y.split(70), strict=True)]
    for found in (Moments.of(x, y), functools.reduce(operator.iadd, parts)):
        np.testing.assert_allclose(found.xx.numpy(), (dx.T @ dx).astype(float), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.xy.numpy(), (dx.T @ dy).astype(float), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(float(found.yy), float((dy**2).sum()), rtol=1e-9)


def test_float32_rows_are_summed_in_float64():
    x, y = (rows.float() for rows in make_rows(3000, hidden_size=4))
    found, expected = Moments.of(x, y), Moments.of(x.double(), y.double())
    for name in FIELDS:
        assert getattr(found, name).dtype == torch.float64
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize(("n", "start"), [(3, 2), (9, 8), (10, 9), (25, 23), (203, 183), (3000, 2700)])
def test_the_validation_slice_is_the_last_tenth_and_never_empty(n, start):
    assert validation_start(n) == start


@pytest.mark.parametrize("sizes", [[203], [70, 70, 63], [190, 13], [185, 9, 9], [183, 20]], ids=str)
@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_a_levels_moments_are_those_of_its_first_rows_and_of_its_last_tenth_however_it_is_sharded(
    tmp_path, sizes, target
):
    levels = make_levels(203)
    activations, unembedding = make_activations(tmp_path, levels, sizes)
    fit, validation = level_moments(activations, [1], unembedding, target, CPU)
    y = target_of(levels[3], unembedding, target)
    for found, rows in ((fit, slice(183)), (validation, slice(183, None))):
        expected = Moments.of(levels[1, rows], y[rows])
        assert found.n == expected.n
        for name in FIELDS:
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-9)


# --------------------------------------------------------------------------------------------------------- exact fit


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
        assert mean_error(folded(x[rows].float()) @ folded.B, y[rows]) == pytest.approx(reported, rel=1e-4)


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
    five, three = solver.solve(ridge, 5), solver.solve(ridge, 3)
    torch.testing.assert_close(five.W[:, :3], three.W)
    torch.testing.assert_close(five.c[:3], three.c)
    torch.testing.assert_close(five.V[:, :3], three.V)


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
    assert 0.0 <= fit.gap(fit.train_mse) + 1e-9 < 1.0


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
    assert fit.gap(fit.optimum_mse) == 0.0
    assert fit.gap(mean_error(y.mean(0).expand_as(y), y)) == pytest.approx(1.0, rel=1e-9)
    assert fit.gap(mean_error(0 * y, y)) > 1.0
    assert fit.mean_mse == pytest.approx(mean_error(y.mean(0).expand_as(y), y), rel=1e-12)


def test_the_full_rank_map_at_ridge_0_is_least_squares_with_an_intercept():
    x, y = make_rows(60)
    fit = fit_exact(Moments.of(x, y), Moments.of(x, y), 12)
    design = np.column_stack([x.numpy(), np.ones(60)])
    weights = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    # With eps inside the standardisation the map is the same: without a ridge the inputs' scale does not matter.
    np.testing.assert_allclose(predict(fit, x), design @ weights, rtol=1e-8, atol=1e-8)


# -------------------------------------------------------------------------------------------------------------- Adam


@functools.cache
def adam_fit(factor: float = 1.0, seed: int = 0, rank: int = 3):
    """An Adam fit of 1,000 float32 rows of a well-conditioned problem, whose targets are multiplied by `factor`."""
    x, y = (rows.float() for rows in make_rows(1100))
    fit, validation = Rows(x[None, :1000], factor * y[:1000]), Rows(x[None, 1000:], factor * y[1000:])
    exact = fit_exact(Moments.of(fit.x[0], fit.y), Moments.of(validation.x[0], validation.y), rank)
    return fit_adam(fit, validation, rank, seed), exact, fit, validation


def random_jump(hidden_size: int, rank: int, seed: int) -> Jump:
    """A jump none of whose tensors is trivial, in training mode."""
    generator = torch.Generator().manual_seed(seed)
    jump = Jump(hidden_size, rank)
    with torch.no_grad():
        for tensor in jump._tensors().values():
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
    error, gradients = batch_gradients(found, x.double(), y.double())
    assert error.item() == pytest.approx(loss.item(), rel=1e-10)
    assert gradients.keys() == dict(plain.named_parameters()).keys()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-9)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(found.bn, name), getattr(plain.bn, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 1680])
def test_the_rate_and_the_decay_are_those_of_one_cycle(steps):
    optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.03)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.03, total_steps=steps)
    for step in range(steps):
        group = optimiser.param_groups[0]
        assert one_cycle(step, steps, 0.03) == pytest.approx((group["lr"], group["betas"][0]), rel=1e-9)
        optimiser.step()
        if step < steps - 1:
            schedule.step()


def test_steps_are_those_of_pytorchs_optimiser():
    plain, found = (random_jump(9, 2, 4) for _ in range(2))
    optimiser = torch.optim.Adam(plain.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.03, total_steps=40)
    ours = Adam(dict(found.named_parameters()), 0.03, 40)
    for step in range(40):
        gradients = {name: torch.sin(step + 3 * parameter.detach()) for name, parameter in plain.named_parameters()}
        for name, parameter in plain.named_parameters():
            parameter.grad = gradients[name]
        optimiser.step()
        if step < 39:
            schedule.step()
        ours.step(gradients)
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(dict(found.named_parameters())[name], parameter, rtol=1e-5, atol=1e-6)


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
    assert 0 <= exact.gap(found.train_mse) < 0.02


def test_the_targets_scale_does_not_matter_to_adam():
    found, exact, _, _ = adam_fit()
    larger, larger_exact, _, _ = adam_fit(factor=1000.0)
    assert larger.train_mse == pytest.approx(1e6 * found.train_mse, rel=1e-3)
    assert larger_exact.gap(larger.train_mse) == pytest.approx(exact.gap(found.train_mse), abs=1e-3)


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
    assert found.best_epoch < 150 and found.validation_curve[-1] > 1.05 * found.validation_mse
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


def test_the_mean_error_of_a_jump_on_several_levels_is_the_mean_over_rows_and_levels():
    levels = make_levels(40)
    jump = fit_exact(Moments.of(levels[0], levels[3]), Moments.of(levels[0], levels[3]), 3).map.jump()
    with torch.no_grad():
        naive = np.mean([mean_error(jump(levels[level]), levels[3]) for level in range(3)])
    assert Rows(levels[:3], levels[3]).mse(jump) == pytest.approx(naive, rel=1e-5)


def numbered_rows(n_levels: int, n: int) -> Rows:
    """Rows whose inputs say their level and row, and whose targets say their row."""
    row = torch.arange(n, dtype=torch.float32)
    x = torch.stack([torch.stack([torch.full((n,), float(level)), row], 1) for level in range(n_levels)])
    return Rows(x, torch.stack([row, row], 1))


def epoch(rows: Rows, batch_size: int, per_level: bool, seed: int = 0) -> list[list[tuple[int, int]]]:
    """(level, row) of each member of each batch, with a check that each input stands beside its own target."""
    batches = []
    for x, y in rows.batches(batch_size, per_level, torch.Generator().manual_seed(seed)):
        assert torch.equal(x[:, 1], y[:, 0])
        batches.append([(int(level), int(row)) for level, row in x])
    return batches


@pytest.mark.parametrize("per_level", [False, True], ids=["mixed", "per_level"])
@pytest.mark.parametrize(("n", "batch_size"), [(24, 8), (26, 8), (5, 8)])
def test_an_epoch_sees_each_row_of_each_level_once_but_for_the_last_incomplete_batch(n, batch_size, per_level):
    batches = epoch(numbered_rows(3, n), batch_size, per_level)
    seen = [member for batch in batches for member in batch]
    size = min(batch_size, n)
    assert len(set(seen)) == len(seen) == 3 * (n // size) * size
    assert {len(batch) for batch in batches} == {size if per_level else 3 * size}
    assert len(batches) == (n // size) * (3 if per_level else 1)


def test_a_mixed_batch_holds_rows_of_all_levels_and_a_per_level_batch_of_one():
    rows = numbered_rows(3, 240)
    assert all(len({level for level, _ in batch}) == 3 for batch in epoch(rows, 48, per_level=False))
    levels = [{level for level, _ in batch} for batch in epoch(rows, 48, per_level=True)]
    assert all(len(found) == 1 for found in levels)
    order = [found.pop() for found in levels]
    assert sorted(order) == sorted([0, 1, 2] * 5) and order != sorted(order)  # shuffled, not one level after another


@pytest.mark.parametrize("per_level", [False, True], ids=["mixed", "per_level"])
def test_batches_are_in_random_order_that_the_seed_determines(per_level):
    rows = numbered_rows(3, 24)
    assert epoch(rows, 8, per_level, seed=1) == epoch(rows, 8, per_level, seed=1)
    assert epoch(rows, 8, per_level, seed=1) != epoch(rows, 8, per_level, seed=2)


@pytest.mark.parametrize("where", ["fit", "validation"])
def test_adam_refuses_rows_that_are_not_numbers(where):
    x, y = (rows.float() for rows in make_rows(70))
    x[3 if where == "fit" else 60, 0] = torch.nan
    with pytest.raises(OnejumpError, match="Adam fit: the error is nan after epoch 1"):
        fit_adam(Rows(x[None, :50], y[:50]), Rows(x[None, 50:], y[50:]), 3, seed=0, epochs=5)


# ------------------------------------------------------------------------------------------------------------ stages


@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("fit", ["exact", "adam"])
@pytest.mark.parametrize("level", [0, 2, None], ids=["first", "last", "joint"])
def test_a_trained_jump_has_the_errors_that_its_file_reports(study, trained, level, fit, target):
    jump, file = trained(level, fit, target)
    levels = range(3) if level is None else [level]
    errors, means = [], []
    with torch.no_grad():
        jump = jump.double()
        for found in levels:
            x, y, validation_x, validation_y = slices(study, found, target)
            errors.append((mean_error(jump(x), y), mean_error(jump(validation_x), validation_y)))
            means.append(mean_error(y.mean(0).expand_as(y), y))
    train_mse, validation_mse = np.mean(errors, 0)
    assert file.value("train_mse") == pytest.approx(train_mse, rel=1e-4)
    assert file.value("validation_mse") == pytest.approx(validation_mse, rel=1e-4)
    assert file.value("mean_mse") == pytest.approx(np.mean(means), rel=1e-6)
    x = torch.cat([slices(study, found, target)[0] for found in levels])
    y = torch.cat([slices(study, found, target)[1] for found in levels])
    optimum = naive_optimum(x, y, 3)
    assert file.value("optimum_mse") == pytest.approx(optimum, rel=1e-6)
    assert file.value("gap") == pytest.approx((train_mse - optimum) / (np.mean(means) - optimum), abs=1e-4)


@pytest.mark.parametrize("fit", ["exact", "adam"])
@pytest.mark.parametrize("level", [1, None], ids=["level", "joint"])
def test_a_trained_jumps_file_says_all_that_it_was_made_from(study, trained, level, fit):
    _, file = trained(level, fit, seed=4)
    assert file.metadata["kind"] == "jump"
    assert file.metadata["level"] == ("joint" if level is None else "1")
    assert (file.metadata["fit"], file.metadata["target"]) == (fit, "pre_norm")
    assert file.metadata["unembedding_sha256"] == study[1].metadata["sha256"]
    found = {name: file.value(name) for name in ("n_blocks", "rank", "seed", "n_rows", "eps")}
    assert found == {"n_blocks": 3, "rank": 3, "seed": 4, "n_rows": 203, "eps": EPS}
    if fit == "exact":
        assert file.value("ridge") in RIDGES
        assert "validation_curve" not in file.metadata
    else:
        curve = file.value("validation_curve")
        assert len(file.value("train_curve")) == len(curve) == EPOCHS
        assert file.value("validation_mse") == min(curve) == curve[file.value("best_epoch") - 1]
        assert "ridge" not in file.metadata


def test_a_stages_seed_determines_the_content_of_its_file(trained):
    same, again, other = (trained(1, "adam", **more)[1].sha256 for more in ({}, {"again": 1}, {"seed": 1}))
    assert same == again
    assert same != other


def test_a_stages_seed_determines_the_bytes_of_its_file(trained):
    same, again = (trained(1, "adam", **more)[1].path.read_bytes() for more in ({}, {"again": 1}))
    assert same == again


@pytest.fixture
def asked(monkeypatch):
    """What the stage asks of the Adam fit, which is stopped before it begins: a list of keyword arguments."""
    calls = []

    def note(fit, validation, rank, seed, **options):
        calls.append({"levels": len(fit.x), "rows": len(fit.y), "rank": rank, "seed": seed, **options})
        raise OnejumpError("far enough")

    monkeypatch.setattr("onejump.jumps.fitting.fit_adam", note)
    return calls


def test_no_two_fits_start_from_the_same_weights(study, tmp_path, asked):
    for seed in (0, 1):
        for level in (0, 1, 2, None):
            with pytest.raises(OnejumpError, match="far enough"):
                fit_jump(*study, level, tmp_path / "jump", "adam", "pre_norm", 3, "mixed", seed, CPU)
    assert len({call["seed"] for call in asked}) == 8


@pytest.mark.parametrize("joint_batches", ["mixed", "per_level"])
def test_only_the_joint_fit_takes_batches_of_one_level_and_only_where_the_variant_says_so(
    study, tmp_path, asked, joint_batches
):
    for level, levels in ((1, 1), (None, 3)):
        with pytest.raises(OnejumpError, match="far enough"):
            fit_jump(*study, level, tmp_path / "jump", "adam", "pre_norm", 3, joint_batches, 0, CPU)
        assert (asked[-1]["levels"], asked[-1]["rows"]) == (levels, 183)
        assert asked[-1]["per_level"] == (level is None and joint_batches == "per_level")


def test_what_a_batch_holds_changes_the_joint_adam_fit(trained):
    mixed, per_level = (trained(None, "adam", joint_batches=choice)[0].A for choice in ("mixed", "per_level"))
    assert not torch.equal(mixed, per_level)


def test_the_rank_is_the_one_asked_for_or_the_papers(tmp_path):
    levels = make_levels(60, n_blocks=2, hidden_size=210)
    activations, unembedding = make_activations(tmp_path, levels, [60])
    for rank, expected in ((None, 2), (7, 7)):
        fit_jump(activations, unembedding, 0, tmp_path / "j.safetensors", "exact", "pre_norm", rank, "mixed", 0, CPU)
        jump, file = Jump.load(tmp_path / "j.safetensors", unembedding)
        assert jump.A.shape == (210, expected) and jump.B.shape == (expected, 210)
        assert file.value("rank") == expected


def test_the_exact_joint_jump_is_the_fit_of_the_stacked_rows(study, trained):
    file = trained(None)[1]
    x, y, validation_x, validation_y = (
        torch.cat(parts) for parts in zip(*(slices(study, k) for k in range(3)), strict=True)
    )
    errors = {r: mean_error(naive_ridge(x, y, 3, r, validation_x), validation_y) for r in RIDGES}
    ridge = min(errors, key=errors.get)
    assert file.value("ridge") == ridge
    with torch.no_grad():
        found = trained(None)[0].double()(validation_x)
    torch.testing.assert_close(found, naive_ridge(x, y, 3, ridge, validation_x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fit", ["exact", "adam"])
def test_no_single_jump_used_at_all_levels_has_a_lower_mean_training_error_than_the_joint_optimum(study, trained, fit):
    def level_averaged(jump: Jump) -> float:
        with torch.no_grad():
            return float(
                np.mean([mean_error(jump.double()(slices(study, k)[0]), slices(study, k)[1]) for k in range(3)])
            )

    joint, file = trained(None, fit)
    singles = [level_averaged(trained(level, fit)[0]) for level in range(3)]
    optimum = file.value("optimum_mse")
    assert min(singles) > 1.05 * optimum
    assert optimum * (1 - 1e-6) <= level_averaged(joint) < min(singles)


def test_rows_of_the_validation_slice_never_enter_a_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(exact_module, "RIDGES", (0.0,))
    levels = make_levels(203)
    changed = levels.clone()
    changed[:, -20:] = make_levels(20, seed=9) * 5
    same_but_for_validation = {}
    for name, rows in (("before", levels), ("after", changed)):
        activations, unembedding = make_activations(tmp_path / name, rows, [203])
        for level in (1, None):
            path = tmp_path / f"{name}-{level}"
            fit_jump(activations, unembedding, level, path, "exact", "pre_norm", 3, "mixed", 0, CPU)
            fit_jump(activations, unembedding, level, f"{path}-adam", "adam", "pre_norm", 3, "mixed", 0, CPU)
        fit_jtc(activations, unembedding, tmp_path / f"{name}-jtc", "pre_norm", CPU)
        same_but_for_validation[name] = [
            *TensorFile(tmp_path / f"{name}-1").tensors().values(),
            *TensorFile(tmp_path / f"{name}-None").tensors().values(),
            *TensorFile(tmp_path / f"{name}-jtc").tensors().values(),
            *(torch.tensor(TensorFile(tmp_path / f"{name}-{k}-adam").value("train_curve")) for k in (1, None)),
        ]
    assert all(torch.equal(a, b) for a, b in zip(*same_but_for_validation.values(), strict=True))
    for k in ("1", "None", "1-adam", "None-adam"):
        before, after = (TensorFile(tmp_path / f"{name}-{k}").value("validation_mse") for name in ("before", "after"))
        assert before != after


@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_the_full_rank_jump_of_each_level_is_ridge_least_squares_with_an_intercept(study, tmp_path, target):
    activations, unembedding = study
    path = tmp_path / "jtc.safetensors"
    fit_jtc(activations, unembedding, path, target, CPU)
    for level in range(3):
        weight, bias = open_jtc(path, unembedding, target)(level)
        assert weight.shape == (12, 12) and bias.shape == (12,)
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


def test_the_full_rank_jump_predicts_the_training_rows_no_worse_than_any_jump(study, tmp_path, trained, monkeypatch):
    monkeypatch.setattr(exact_module, "RIDGES", (0.0,))
    activations, unembedding = study
    fit_jtc(activations, unembedding, tmp_path / "jtc.safetensors", "pre_norm", CPU)
    lowest = TensorFile(tmp_path / "jtc.safetensors").value("level.01")["train_mse"]
    optima = [trained(1, rank=rank)[1].value("optimum_mse") for rank in (1, 2, 3, 6, 12)]
    assert optima == sorted(optima, reverse=True) and len(set(optima)) == 5
    assert lowest == pytest.approx(optima[-1], rel=1e-9)


def test_a_full_rank_jump_of_another_level_target_head_or_kind_is_refused(study, tmp_path, trained):
    activations, unembedding = study
    path = tmp_path / "jtc.safetensors"
    fit_jtc(activations, unembedding, path, "pre_norm", CPU)
    with pytest.raises(OnejumpError, match="was fitted to the pre_norm target, expected post_norm"):
        open_jtc(path, unembedding, "post_norm")
    with pytest.raises(OnejumpError, match="has no tensor 'level.03.weight'"):
        open_jtc(path, unembedding, "pre_norm")(3)
    with pytest.raises(OnejumpError, match="was trained for the head"):
        open_jtc(path, make_activations(tmp_path, make_levels(9, n_blocks=2), [9])[1], "pre_norm")
    with pytest.raises(OnejumpError, match="holds jump, expected jtc"):
        open_jtc(trained(1)[1].path, unembedding, "pre_norm")


@pytest.mark.parametrize("level", [-1, 3])
def test_a_level_that_is_no_exit_level_is_refused(study, tmp_path, level):
    with pytest.raises(OnejumpError, match=rf"level {level} is out of range; exit levels of this model are 0\.\.2"):
        fit_jump(*study, level, tmp_path / "j", "exact", "pre_norm", 3, "mixed", 0, CPU)
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize("rank", [-1, 0, 13])
def test_a_rank_that_no_jump_can_have_is_refused(study, tmp_path, rank):
    with pytest.raises(OnejumpError, match=rf"rank {rank} is out of range; H is 12, so use 1\.\.12"):
        fit_jump(*study, 0, tmp_path / "j", "exact", "pre_norm", rank, "mixed", 0, CPU)


def test_two_training_rows_are_too_few_and_three_are_enough(tmp_path):
    for n, fits in ((2, False), (3, True)):
        activations, unembedding = make_activations(tmp_path / str(n), make_levels(n), [n])
        path = tmp_path / f"{n}.safetensors"
        if fits:
            fit_jump(activations, unembedding, 0, path, "exact", "pre_norm", 1, "mixed", 0, CPU)
            assert Jump.load(path, unembedding)[1].value("n_rows") == 3
        else:
            with pytest.raises(OnejumpError, match="2 training rows are too few"):
                fit_jump(activations, unembedding, 0, path, "exact", "pre_norm", 1, "mixed", 0, CPU)


@pytest.mark.parametrize("fit", ["exact", "adam"])
@pytest.mark.parametrize("bad_level", [1, 3])
def test_shards_with_numbers_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path, fit, bad_level):
    levels = make_levels(60)
    levels[bad_level, 7, 2] = torch.inf
    activations, unembedding = make_activations(tmp_path, levels, [30, 30])
    with pytest.raises(OnejumpError, match=f"shard-00.*NaN or infinite values at level {bad_level}"):
        fit_jump(activations, unembedding, 1, tmp_path / "j", fit, "pre_norm", 3, "mixed", 0, CPU)
    assert not (tmp_path / "j").exists()
