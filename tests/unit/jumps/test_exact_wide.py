"""The exact fit at widths where only the largest eigenpairs are searched, on rows that are hard on the arithmetic."""

import functools
import logging

import pytest
import torch

from onejump.jumps import exact as exact_module
from onejump.jumps.exact import RidgeSolver, fit_exact
from onejump.jumps.moments import Moments
from onejump.jumps.settings import OVERSAMPLING, RIDGES

WIDTH, RANK = 160, 3


@functools.cache
def rows(kind: str, n: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of one kind of difficulty, [n, WIDTH] float64 that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    hidden = torch.randn(n, WIDTH, generator=generator) * torch.logspace(0, -4, WIDTH)
    x = 0.1 * (hidden + 0.02 * torch.randn(n, WIDTH, generator=generator))
    y = hidden @ torch.randn(WIDTH, WIDTH, generator=fixed) / 15 + 0.3 * torch.randn(n, WIDTH, generator=generator)
    if kind == "massive":  # a few dimensions of 1e3 to 1e4 beside 1e-1, as first tokens have them
        x[:, :3] *= torch.tensor([1e5, 1e4, 1e5])
        x[:, 1] += 5e3
        y[:, 5:7] = 1e4 * y[:, 5:7] + 3e3
    elif kind == "near_singular":
        x[:, WIDTH // 2 :] = x[:, : WIDTH // 2] + 1e-3 * x[:, WIDTH // 2 :]
    elif kind == "singular":
        x[:, WIDTH // 2 :] = x[:, : WIDTH // 2]
    return x.double(), y.double()


def reference(x: torch.Tensor, y: torch.Tensor, ridge: float, at: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Losses of all ranks 1..RANK at other rows, by least squares on augmented rows: no normal equations."""
    mean, std = x.mean(0), (x.var(0, unbiased=False) + 1e-5).sqrt()
    xn, centred, n = (x - mean) / std, y - y.mean(0), len(x)
    penalty = (n * ridge) ** 0.5 * torch.eye(WIDTH, dtype=torch.float64)
    rows = torch.cat([xn, penalty]), torch.cat([centred, torch.zeros(WIDTH, WIDTH, dtype=torch.float64)])
    weight = torch.linalg.lstsq(*rows, rcond=1e-6, driver="gelsd").solution
    fitted = torch.cat([torch.cat([xn, penalty]) @ weight / n**0.5, y.mean(0)[None]])
    V = torch.linalg.svd(fitted, full_matrices=False).Vh[:RANK].T
    z = ((at[0] - mean) / std @ weight + y.mean(0)) @ V
    cut = [(z[:, : rank + 1] @ V[:, : rank + 1].T - at[1]).square().sum(1).mean() for rank in range(RANK)]
    return torch.stack(cut)


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("kind", ["plain", "massive", "near_singular", "singular"])
def test_the_losses_of_all_ranks_are_those_of_least_squares_in_float64(kind, ridge, decomposed):
    x, y = rows(kind)
    solver = RidgeSolver(Moments.of(x.float(), y.float()))
    if decomposed:
        solver.decompose()
    found = solver.solve(ridge, RANK)
    for at in (rows(kind), rows(kind, 200, seed=1)) if kind != "near_singular" else (rows(kind),):
        expected = reference(x, y, ridge, at)
        torch.testing.assert_close(found.mse_by_rank(Moments.of(*at)), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["plain", "massive", "singular"])
def test_the_full_rank_errors_at_once_are_those_of_each_map(kind):
    solver, validation = RidgeSolver(Moments.of(*rows(kind))), Moments.of(*rows(kind, 200, seed=1))
    expected = [float(solver.solve(ridge, WIDTH).mse_by_rank(validation)[-1]) for ridge in RIDGES]
    assert solver.full_rank_mse(RIDGES, validation) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("eigen_width", [0, WIDTH])
def test_only_part_of_the_spectrum_is_searched_and_another_ridge_starts_from_it(eigen_width, monkeypatch):
    monkeypatch.setattr(exact_module, "EIGEN_WIDTH", eigen_width)
    columns = []
    search = exact_module._top_eigenvectors

    def counted(product, *args):
        columns.append(0)

        def count(v):
            columns[-1] += v.shape[1]
            return product(v)

        return search(count, *args)

    monkeypatch.setattr(exact_module, "_top_eigenvectors", counted)
    fit_exact(Moments.of(*rows("plain")), Moments.of(*rows("plain", 200, seed=1)), RANK)
    assert len(columns) == len(RIDGES)
    assert max(columns) < WIDTH
    assert max(columns[1:]) < columns[0]


def test_a_search_finds_what_its_start_has_nothing_of():
    values = torch.cat([torch.linspace(1, 0.5, WIDTH // 2), torch.linspace(9, 0.1, WIDTH // 2)]).double()
    axes = torch.eye(WIDTH, dtype=torch.float64)
    start = axes[:, : RANK + OVERSAMPLING]
    found = exact_module._top_eigenvectors(lambda v: values[:, None] * v, values, RANK, 1000.0, start)
    torch.testing.assert_close(found[:, :RANK].abs(), axes[:, WIDTH // 2 :][:, :RANK], atol=1e-3, rtol=0)


@pytest.mark.parametrize("eigen_width", [0, WIDTH])
@pytest.mark.parametrize("kind", ["singular", "plain"])
def test_a_singular_covariance_is_said_to_be_and_decomposed_once(kind, eigen_width, caplog, monkeypatch):
    monkeypatch.setattr(exact_module, "EIGEN_WIDTH", eigen_width)
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: calls.append(len(a)) or eigh(a))
    with caplog.at_level(logging.INFO, logger="onejump.jumps.exact"):
        fit_exact(Moments.of(*rows(kind)), Moments.of(*rows(kind, 200, seed=1)), RANK)
    assert calls.count(WIDTH) == (1 if kind == "singular" or eigen_width else 0)
    assert ("covariance is singular" in caplog.text) == (kind == "singular")
    if kind == "singular":
        assert caplog.text.count("\n") == 1


def test_fewer_rows_than_dimensions_fit_without_failing():
    x, y = rows("massive", 100)
    fit = fit_exact(Moments.of(x[:90], y[:90]), Moments.of(x[90:], y[90:]), RANK)
    assert fit.ridge > 0
    assert fit.validation_mse < float(y[90:].square().sum(1).mean())
