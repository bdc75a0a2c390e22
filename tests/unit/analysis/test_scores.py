"""Cosines and their means against whole predictions, one jump and one level at a time."""

import pytest
import torch
from tiny_models import make_dump

from onejump.activations.reading import Activations
from onejump.analysis.scores import score_jumps, scores_table, signed_square
from onejump.jumps.jump import FoldedJump, Jump, target_of
from onejump.models.unembedding import Unembedding

CPU = torch.device("cpu")
K, H, N = 3, 32, 41


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """Training activations of a tiny model in two shards, and its unembedding."""
    made = make_dump(tmp_path_factory.mktemp("dump"), n_train=N, n_test=2, family="gpt2")
    unembedding = Unembedding.load(made.unembedding)
    return Activations(made.train, made.positions, unembedding, "train"), unembedding


def make_jump(seed: int, rank: int = 2) -> Jump:
    generator = torch.Generator().manual_seed(seed)
    jump = Jump(H, rank)
    with torch.no_grad():
        for tensor in (jump.A, jump.B, jump.bn.bias, jump.bn.running_mean):
            tensor.normal_(generator=generator)
        jump.bn.running_var.uniform_(0.1, 3.0, generator=generator)
    return jump.eval()


def naive_cosines(activations: Activations, unembedding: Unembedding, jumps: list[Jump], target: str) -> torch.Tensor:
    """Cosines [K, K+1, N] of each jump's whole output and the target, in float64."""
    y = target_of(activations.level(K), unembedding, target).double()
    with torch.no_grad():
        outputs = [[jump.double()(activations.level(level).double()) for level in range(K + 1)] for jump in jumps]
    return torch.stack([torch.stack([torch.cosine_similarity(o, y, dim=1) for o in row]) for row in outputs])


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_cosines_taken_in_rank_r_are_those_of_whole_predictions_at_every_level(dump, target, rank):
    jumps = [make_jump(seed, rank) for seed in range(K)]
    found = score_jumps(*dump, [jump.fold() for jump in jumps], target, CPU)
    expected = naive_cosines(*dump, jumps, target)
    assert found.shape == (K, K + 1, N)
    assert found.dtype == torch.float32
    assert expected.std() > 0.05
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_jump_that_returns_its_input_has_cosine_1_at_level_K(dump):
    activations, unembedding = dump
    identity = FoldedJump(torch.eye(H), torch.zeros(H), torch.eye(H))
    upside_down = FoldedJump(-torch.eye(H), torch.zeros(H), torch.eye(H))
    found = score_jumps(activations, unembedding, [identity, upside_down, identity], "pre_norm", CPU)
    torch.testing.assert_close(found[0, K], torch.ones(N), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], -found[0])
    assert found.abs().max() <= 1


def test_sentences_stand_in_the_order_of_the_rows_that_are_kept(tmp_path):
    made = make_dump(tmp_path, n_train=30, n_test=2)
    unembedding = Unembedding.load(made.unembedding)
    kept = Activations(made.train, made.positions, unembedding, "train", keep="not_first")
    every = Activations(made.train, made.positions, unembedding, "train")
    jumps = [make_jump(seed).fold() for seed in range(K)]
    found, all_rows = (score_jumps(rows, unembedding, jumps, "pre_norm", CPU) for rows in (kept, every))
    columns = [every.sentence_ids.tolist().index(i) for i in kept.sentence_ids.tolist()]
    assert 0 < len(columns) < 30
    torch.testing.assert_close(found, all_rows[..., columns])


def test_a_zero_output_and_a_zero_target_have_cosine_0():
    class ZeroTargets:
        """Three rows of one block's levels, the second with a zero target."""

        n_blocks, sentence_ids = 1, torch.arange(3)

        def __len__(self):
            return 3

        def shards(self, *levels):
            rows = torch.ones(2, 3, H)
            rows[1, 1] = 0.0
            yield tuple(rows[level] for level in levels)

    unembedding = Unembedding("rms", torch.ones(H), None, 1e-6, torch.zeros(5, H), None)
    silent = FoldedJump(torch.zeros(H, 2), torch.zeros(2), torch.ones(2, H))
    found = score_jumps(ZeroTargets(), unembedding, [make_jump(0).fold(), silent], "pre_norm", CPU)
    assert (found[0, :, 1] == 0).all()
    assert (found[0, 0, [0, 2]] != 0).all()
    assert (found[1] == 0).all()


def test_the_signed_square_keeps_the_sign():
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    assert signed_square(values).tolist() == [-1.0, -0.25, 0.0, 0.25, 1.0]


def test_scores_are_the_means_of_the_cosines_over_the_training_rows(dump):
    cosines = score_jumps(*dump, [make_jump(seed).fold() for seed in range(K)], "pre_norm", CPU)
    table = scores_table(cosines).to_pandas()
    assert list(table.columns) == ["jump", "level", "cosine", "signed_squared_cosine"]
    assert list(zip(table["jump"], table["level"], strict=True)) == [(m, k) for m in range(K) for k in range(K + 1)]
    for row in table.itertuples():
        values = [float(c) for c in cosines[row.jump, row.level]]
        assert row.cosine == pytest.approx(sum(values) / N, rel=1e-6)
        assert row.signed_squared_cosine == pytest.approx(sum(c * abs(c) for c in values) / N, rel=1e-5)
