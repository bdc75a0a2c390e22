"""A bootstrap by plain loops, to compare the fast one with."""

import numpy as np

from onejump.analysis import bootstrap


def naive_means(values: np.ndarray, seed: int, resamples: int = bootstrap.RESAMPLES) -> np.ndarray:
    """One resample after another: how often each row is drawn, and the mean of the rows drawn."""
    generator, n = np.random.default_rng(seed), len(values)
    means = []
    for _ in range(resamples):
        drawn = np.repeat(np.arange(n), generator.multinomial(n, np.full(n, 1 / n)))
        means.append(values[drawn].mean(0))
    return np.array(means)
