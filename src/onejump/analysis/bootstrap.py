"""The bootstrap: how far a mean would move with other documents.

Sentences of one document are alike: they share a topic, names and a style. So whole documents are resampled, each with
all its sentences. Where each document has one sentence, that is the bootstrap over sentences.
"""

import functools
from collections.abc import Iterator

import numpy as np

RESAMPLES = 2_000
BLOCK = 250  # resamples at once: wide weights take memory for so many
CONFIDENCE = 0.95


def resampled_means(
    values: np.ndarray, documents: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> Iterator[np.ndarray]:
    """Means over the rows of resampled documents; a resample with more sentences than another divides by more.

    Columns share each resample, so that differences are paired.

    Args:
        values: [N, ...], a row for each sentence.
        documents: [N] integers, the document of each row. If all are of one, sentences are resampled instead.
        seed: of the resamples.
        resamples: how many.

    Yields:
        Blocks [b, ...] float64, which have `resamples` rows together.
    """
    _, row, counts = np.unique(documents, return_inverse=True, return_counts=True)
    if len(counts) == 1:
        row, counts = np.arange(len(values)), np.ones(len(values), int)
    order, starts = np.argsort(row, kind="stable"), np.cumsum(counts) - counts
    sums = np.add.reduceat(values.reshape(len(values), -1).astype(np.float64)[order], starts)
    times = _times_drawn(len(counts), seed, resamples)
    for first in range(0, resamples, BLOCK):
        weights = times[first : first + BLOCK].astype(np.float64)
        yield (weights @ sums / (weights @ counts)[:, None]).reshape(len(weights), *values.shape[1:])


@functools.lru_cache(maxsize=8)  # the tables of a study share few: one for each group of positions
def _times_drawn(n: int, seed: int, resamples: int) -> np.ndarray:
    """How often each of n documents is drawn: [resamples, n] uint16."""
    generator, times = np.random.default_rng(seed), np.empty((resamples, n), np.uint16)
    for first in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - first)
        times[first : first + size] = generator.multinomial(n, np.full(n, 1 / n), size=size)
    return times


def interval(
    values: np.ndarray, documents: np.ndarray, seed: int = 0, level: float = CONFIDENCE
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over the rows of `values` [N, ...]: lower and upper bound, each [...] float64."""
    means = np.concatenate(list(resampled_means(values, documents, seed)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
