"""Rows and their batches, and the error of Eq. 2."""

import numpy as np
import pytest
import torch
from handmade import make_levels, mean_error

from onejump.jumps.exact import fit_exact
from onejump.jumps.moments import Moments
from onejump.jumps.objective import Rows


def test_the_mean_error_of_a_jump_on_several_levels_is_the_mean_over_rows_and_levels():
    levels = make_levels(40)
    jump = fit_exact(Moments.of(levels[0], levels[3]), Moments.of(levels[0], levels[3]), 3).map.jump()
    with torch.no_grad():
        naive = np.mean([mean_error(jump(levels[level]), levels[3]) for level in range(3)])
    assert Rows(levels[:3], levels[3]).mse(jump.fold()) == pytest.approx(naive, rel=1e-5)


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
    assert sorted(order) == sorted([0, 1, 2] * 5)
    assert order != sorted(order)


@pytest.mark.parametrize("per_level", [False, True], ids=["mixed", "per_level"])
def test_batches_are_in_random_order_that_the_seed_determines(per_level):
    rows = numbered_rows(3, 24)
    assert epoch(rows, 8, per_level, seed=1) == epoch(rows, 8, per_level, seed=1)
    assert epoch(rows, 8, per_level, seed=1) != epoch(rows, 8, per_level, seed=2)
