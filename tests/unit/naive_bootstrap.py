"""A bootstrap by plain loops, to compare the fast one with."""

import functools

import numpy as np

from onejump.analysis import bootstrap


def naive_rows(documents: np.ndarray, seed: int, resamples: int) -> list[np.ndarray]:
    """For each resample the numbers of the rows of the documents drawn, as often as each is drawn."""
    return _naive_rows(tuple(documents.tolist()), seed, resamples)


@functools.cache  # many columns share their resamples
def _naive_rows(documents: tuple[int, ...], seed: int, resamples: int) -> list[np.ndarray]:
    generator, rows_of = np.random.default_rng(seed), {name: [] for name in sorted(set(documents))}
    for row, document in enumerate(documents):
        rows_of[document].append(row)
    resampled = []
    for _ in range(resamples):
        counts = generator.multinomial(len(rows_of), np.full(len(rows_of), 1 / len(rows_of)))
        drawn = [rows for rows, count in zip(rows_of.values(), counts, strict=True) for _ in range(count)]
        resampled.append(np.array([row for rows in drawn for row in rows]))
    return resampled


def naive_means(
    values: np.ndarray, documents: np.ndarray, seed: int, resamples: int = bootstrap.RESAMPLES
) -> np.ndarray:
    """The mean of the rows drawn, of each resample."""
    return np.array([values[drawn].mean(0) for drawn in naive_rows(documents, seed, resamples)])
