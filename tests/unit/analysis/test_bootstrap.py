"""The bootstrap against theory and against a naive one."""

import numpy as np
import pytest
from naive_bootstrap import naive_means

from onejump.analysis import bootstrap
from onejump.analysis.bootstrap import interval, resampled_means


def all_means(values: np.ndarray, seed: int, resamples: int = bootstrap.RESAMPLES, documents=None) -> np.ndarray:
    """The resampled means; without documents, each row is one."""
    documents = np.arange(len(values)) if documents is None else documents
    return np.concatenate(list(resampled_means(values, documents, seed, resamples)))


@pytest.mark.parametrize("documents", [np.arange(30), np.random.default_rng(1).integers(7, size=30)])
def test_each_mean_is_over_the_rows_of_documents_drawn_with_replacement(documents):
    values = np.random.default_rng(0).normal(size=(30, 2, 3))
    found = all_means(values, 5, 300, documents)
    assert found.shape == (300, 2, 3)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, naive_means(values, documents, 5, 300), rtol=1e-9, atol=1e-12)


def test_documents_of_one_sentence_give_the_bootstrap_over_sentences():
    """Whatever the documents are called: a naive one draws how often each row is taken."""
    values, generator = np.random.default_rng(0).normal(size=(20, 3)), np.random.default_rng(5)
    counts = [generator.multinomial(20, np.full(20, 1 / 20)) for _ in range(100)]
    expected = [np.repeat(values, count, 0).mean(0) for count in counts]
    for documents in (np.arange(20), np.zeros(20, int)):  # one document alone says nothing of others
        np.testing.assert_allclose(all_means(values, 5, 100, documents), expected, rtol=1e-9, atol=1e-12)


def test_sentences_of_a_document_that_are_alike_count_as_few():
    """Ten copies of each sentence tell nothing new; resampled sentence by sentence they would seem to."""
    values = np.random.default_rng(0).normal(size=40)
    once = all_means(values, 0, 4000)
    copied = all_means(np.repeat(values, 10), 0, 4000, np.repeat(np.arange(40), 10))
    np.testing.assert_allclose(copied, once, rtol=1e-9, atol=1e-12)
    assert all_means(np.repeat(values, 10), 0, 4000).std() < 0.4 * once.std()


def test_the_means_have_the_mean_and_the_variance_that_theory_gives():
    values = np.random.default_rng(0).gamma(2.0, size=40)
    means = all_means(values, seed=1, resamples=20_000)
    standard_error = values.std() / np.sqrt(40)
    assert means.mean() == pytest.approx(values.mean(), abs=4 * standard_error / np.sqrt(20_000))
    assert means.std() == pytest.approx(standard_error, rel=0.02)  # four standard errors of a standard deviation


def test_a_seed_determines_the_resamples():
    values = np.arange(20.0)
    assert np.array_equal(all_means(values, 3, 50), all_means(values, 3, 50))
    assert not np.array_equal(all_means(values, 3, 50), all_means(values, 4, 50))


@pytest.mark.parametrize("block", [1, 7, 999, 5000])
def test_the_size_of_a_block_does_not_change_the_resamples(monkeypatch, block):
    values = np.random.default_rng(0).normal(size=(15, 2))
    expected = all_means(values, 3, 1000)
    monkeypatch.setattr(bootstrap, "BLOCK", block)
    blocks = list(resampled_means(values, np.arange(15), 3, 1000))
    assert max(len(part) for part in blocks) == min(block, 1000)
    assert sum(len(part) for part in blocks) == 1000
    np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=1e-12, atol=1e-14)


def test_columns_share_each_resample_so_that_a_constant_difference_has_no_spread():
    first = np.random.default_rng(0).normal(size=50)
    means = all_means(np.stack([first, first + 2.0], 1), seed=0, resamples=500)
    assert means[:, 0].std() > 0.05
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 2.0, rtol=1e-12)


def test_an_interval_is_the_quantiles_of_the_resampled_means():
    values, documents = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 8
    for level, (lowest, highest) in {0.95: (2.5, 97.5), 0.8: (10, 90)}.items():
        low, high = interval(values, documents, 4, level)
        means = naive_means(values, documents, 4)
        np.testing.assert_allclose(low, np.percentile(means, lowest, axis=0), rtol=1e-9)
        np.testing.assert_allclose(high, np.percentile(means, highest, axis=0), rtol=1e-9)


def test_a_95_percent_interval_covers_the_true_mean_in_about_95_of_100_samples():
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(100, 1000))  # 1,000 samples of 100 rows
    low, high = interval(samples, np.arange(100), seed=0)
    covered = ((low <= 3.0) & (high >= 3.0)).mean()
    assert 0.92 < covered < 0.97  # percentile intervals of 100 rows cover a little less than 95 %


def test_an_interval_of_equal_values_has_no_width():
    low, high = interval(np.full((20, 3), 0.25), np.arange(20) // 2, seed=0)
    np.testing.assert_allclose([low, high], 0.25, rtol=1e-12)
