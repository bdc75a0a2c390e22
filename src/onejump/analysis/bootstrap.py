"""The bootstrap: how far a mean would move with another sample of sentences."""

from collections.abc import Iterator

import numpy as np

RESAMPLES = 2_000
BLOCK = 250  # resamples at once: memory stays at BLOCK x N weights


def resampled_means(values: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """Means over resampled rows of `values` [N, ...], which has one row for each sentence.

    Columns share each resample, so that differences are paired. Yields blocks [b, ...] float64, which have `resamples`
    rows together.
    """
    n = len(values)
    flat = values.reshape(n, -1).astype(np.float64)
    generator = np.random.default_rng(seed)
    for first in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - first)
        weights = generator.multinomial(n, np.full(n, 1 / n), size=size)
        yield (weights @ flat / n).reshape(size, *values.shape[1:])


def interval(values: np.ndarray, seed: int = 0, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over the rows of `values` [N, ...]: lower and upper bound, each [...] float64."""
    means = np.concatenate(list(resampled_means(values, seed)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
