"""D_m and the choice by it, against plain means."""

import numpy as np
import pytest
import torch
from naive_bootstrap import naive_means

from onejump.analysis.selection import SCORE_LEVELS, select_jump

K = 3


def selected(values: torch.Tensor, score_levels: str, seed: int) -> dict:
    """The selection where each sentence is a document."""
    return select_jump(values, np.arange(values.shape[2]), score_levels, seed)


def cosines(signed_squares: torch.Tensor) -> torch.Tensor:
    """Cosines [K, K+1, N] whose signed squares are the values given."""
    return signed_squares.abs().sqrt() * signed_squares.sign()


@pytest.mark.parametrize(("score_levels", "levels"), [("1..K", [1, 2, 3]), ("0..K-1", [0, 1, 2])])
def test_D_is_the_mean_over_rows_and_the_chosen_levels_and_the_largest_wins(score_levels, levels):
    values = torch.rand(K, K + 1, 50, generator=torch.Generator().manual_seed(3)) * 2 - 1
    values[1, 0] += 1.0  # the level that only one of the two choices counts
    found = selected(values, score_levels, 0)

    naive = []
    for m in range(K):
        ours = [float(values[m, k, i]) for k in levels for i in range(50)]
        naive.append(sum(abs(c) * c for c in ours) / len(ours))
    np.testing.assert_allclose(found["scores"], naive, rtol=1e-6)
    assert found["ojfa"] == naive.index(max(naive))
    assert found["score_levels"] == score_levels
    assert found["temperature"] == 5e-4
    weights = [np.exp((score - max(naive)) / 5e-4) for score in naive]
    np.testing.assert_allclose(found["softmax"], np.array(weights) / sum(weights), rtol=1e-3, atol=1e-12)


def test_the_choice_of_score_levels_can_change_the_choice_of_the_jump():
    values = torch.full((K, K + 1, 20), 0.1)
    values[0, 0], values[2, K] = 0.9, 0.9  # jump 0 is good at level 0 alone, jump 2 at level K alone
    chosen = {levels: selected(cosines(values), levels, 0)["ojfa"] for levels in SCORE_LEVELS}
    assert chosen == {"1..K": 2, "0..K-1": 0}


def test_a_negative_cosine_counts_against_a_jump():
    values = torch.full((K, K + 1, 20), 0.2)
    values[1] = -0.9
    found = selected(cosines(values), "1..K", 0)
    assert found["scores"][1] == pytest.approx(-0.9, rel=1e-6)
    assert found["ojfa"] != 1


def test_the_bootstrap_gives_a_clear_winner_all_of_the_share():
    values = 0.1 * torch.rand(K, K + 1, 200, generator=torch.Generator().manual_seed(0))
    values[2] += 0.5
    assert selected(cosines(values), "1..K", 0)["bootstrap_share"] == [0.0, 0.0, 1.0]


def test_the_bootstrap_shares_out_between_jumps_that_sentences_cannot_tell_apart():
    half = torch.rand(K + 1, 100, generator=torch.Generator().manual_seed(0))
    mirrored = torch.stack([torch.cat([half, 1 - half], 1), torch.cat([1 - half, half], 1)])  # of equal means
    values = torch.cat([mirrored, torch.zeros(1, K + 1, 200)]) * 0.9
    shares = [selected(cosines(values), "1..K", seed)["bootstrap_share"] for seed in (0, 1)]
    for share in shares:
        assert sum(share) == pytest.approx(1.0, abs=1e-12)
        assert share[0] == pytest.approx(0.5, abs=0.05)  # four standard errors of 2,000 resamples
        assert share[2] == 0.0
    assert shares[0] != shares[1]


def test_the_bootstrap_shares_count_the_winners_among_resampled_documents():
    values = torch.rand(K, K + 1, 30, generator=torch.Generator().manual_seed(4)).double()
    documents = np.arange(30) // 6
    found = select_jump(cosines(values), documents, "1..K", 5)
    means = naive_means(values[:, 1:].mean(1).T.numpy(), documents, 5)
    expected = [(means.argmax(1) == jump).mean() for jump in range(K)]
    np.testing.assert_allclose(found["bootstrap_share"], expected, atol=1e-12)
    assert found["bootstrap_share"] != selected(cosines(values), "1..K", 5)["bootstrap_share"]


def test_equal_cosines_and_an_equal_seed_give_an_equal_selection():
    values = cosines(torch.rand(K, K + 1, 30, generator=torch.Generator().manual_seed(0)))
    assert selected(values, "1..K", 7) == selected(values, "1..K", 7)


def test_of_two_equal_jumps_the_first_is_selected():
    values = torch.rand(1, K + 1, 30, generator=torch.Generator().manual_seed(0)).repeat(K, 1, 1)
    values[0] *= 0.5
    assert selected(cosines(values), "1..K", 0)["ojfa"] == 1
