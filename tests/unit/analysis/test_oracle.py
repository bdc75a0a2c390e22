"""The oracle's precision and every score against their plain definitions on a tiny model."""

import numpy as np
import pytest
import torch
from tiny_models import N_BLOCKS, make_dump

from onejump.activations.reading import Activations
from onejump.analysis.oracle import evaluate_oracle
from onejump.analysis.scores import score_jumps
from onejump.exits.evaluation import JumpExits, evaluate_jumps, grid_precision
from onejump.jumps.jump import FoldedJump
from onejump.jumps.moments import validation_start
from onejump.models.unembedding import Unembedding

CPU = torch.device("cpu")


def make_jumps(number: int = N_BLOCKS) -> list[FoldedJump]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return [FoldedJump(normal(32, 2), normal(2), normal(2, 32)) for _ in range(number)]


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("dump"), 70, 5, shards={"train": 3, "test": 1})


@pytest.mark.parametrize(
    ("target", "score_levels", "positions"), [("pre_norm", "1..K", "all"), ("post_norm", "0..K-1", "not_first")]
)
def test_scores_and_precision_are_their_definitions(dump, target, score_levels, positions):
    unembedding, jumps = Unembedding.load(dump.unembedding), make_jumps(N_BLOCKS + 1)
    train = Activations(dump.train, dump.positions, unembedding, "train", positions)
    cosines = score_jumps(train, unembedding, jumps[:-1], target, CPU)
    *single, joint = jumps
    arguments = (cosines, score_levels, target, CPU)
    found = evaluate_oracle(train, unembedding, single, joint, *arguments).to_pandas()

    final = train.level(N_BLOCKS)
    y = (unembedding.normalise(final) if target == "post_norm" else final).double()
    assert found["jump"].fillna(-1).tolist() == [*range(N_BLOCKS), -1]
    first = len(train) - max(1, len(train) // 10)
    token = unembedding.logits(final[first:]).argmax(1)
    for m, jump in enumerate(jumps):
        predicted = [((train.level(k) @ jump.P + jump.q) @ jump.B).double() for k in range(N_BLOCKS + 1)]
        cosine = torch.stack([torch.cosine_similarity(p, y, dim=1) for p in predicted])
        cosine = cosine[1:] if score_levels == "1..K" else cosine[:-1]
        squared_error = torch.stack([(p - y).square().sum(1) for p in predicted[:-1]])
        after = unembedding.project if target == "post_norm" else unembedding.logits
        right = [(after(p[first:].float()).argmax(1) == token).double() for p in predicted[:-1]]
        expected = [(cosine.sign() * cosine**2).mean(), cosine.mean(), (cosine**2).mean(), squared_error.mean()]
        expected[:3] = [None] * 3 if m == N_BLOCKS else expected[:3]  # the joint jump is no candidate
        of_mean = (y - y.mean(0)).square().sum(1).mean()
        expected += [1 - squared_error.mean() / of_mean, torch.stack(right).mean()]
        expected = np.array(expected, float)
        columns = ["d_m", "cosine", "squared_cosine", "mse", "explained", "precision"]
        np.testing.assert_allclose(found.loc[m, columns].astype(float), expected, rtol=1e-4, atol=1e-6)


def test_the_oracle_sees_the_rows_that_no_fit_has_seen_and_they_alone(dump):
    unembedding = Unembedding.load(dump.unembedding)
    train = Activations(dump.train, dump.positions, unembedding, "train", "not_first")
    for first in (0, 10, validation_start(len(train)), len(train) - 1):
        rest = train.rows(first, len(train))
        assert rest.sentence_ids.tolist() == train.sentence_ids[first:].tolist()
        for level in range(N_BLOCKS + 1):
            assert torch.equal(rest.level(level), train.level(level)[first:])
    assert len(train.level(0)) == len(train)


def test_the_precision_alone_is_the_transfer_grids(dump):
    unembedding, jumps = Unembedding.load(dump.unembedding), make_jumps()
    train = Activations(dump.train, dump.positions, unembedding, "train")
    _, grid = evaluate_jumps(train, unembedding, JumpExits(jumps, 0, jumps[1]), "pre_norm", len(train), CPU)
    found = grid_precision(train, unembedding, jumps, "pre_norm", CPU)
    assert found.flatten().tolist() == pytest.approx(grid["precision"].to_pylist(), rel=1e-12)
