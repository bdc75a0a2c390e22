"""Moments against sums in NumPy, however the rows are split."""

import functools
import operator

import numpy as np
import pytest
import torch
from handmade import CPU, make_activations, make_levels, make_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from onejump.jumps.jump import FoldedJump, target_of
from onejump.jumps.moments import Moments, level_moments, validation_start

FIELDS = ("mean_x", "mean_y", "xx", "xy", "yy")


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


def test_the_error_of_any_jump_is_that_of_its_predictions():
    x, y = make_rows(80)
    P, q, B = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((12, 2), (2,), (2, 12)))
    naive = float(((x @ P.double() + q.double()) @ B.double() - y).square().sum(1).mean())
    assert Moments.of(x, y).mse(FoldedJump(P, q, B)) == pytest.approx(naive, rel=1e-9)
