"""D_m and the choice by it, against cosines of whole predictions, one jump and one level at a time."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import make_dump

from onejump.activations.reading import Activations
from onejump.analysis.scores import save_scores, score_jumps, signed_square
from onejump.analysis.selection import read_selection, select_jump
from onejump.files.atomic import OnejumpError, read_json
from onejump.files.tensors import TensorFile, write_tensors
from onejump.jumps.jump import FoldedJump, Jump, target_of
from onejump.models.unembedding import Unembedding

torch.set_num_threads(1)  # for matrices this small, threads only wait for each other
CPU = torch.device("cpu")
K, H, N = 3, 32, 41


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """Training activations of a tiny model in two shards, and its head."""
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


def write_cosines(path: Path, signed_squares: torch.Tensor) -> Path:
    """A cosine file [K, K+1, N] whose signed squares are the values given."""
    write_tensors(path, {"cosine": signed_squares.abs().sqrt() * signed_squares.sign()}, {"target": "pre_norm"})
    return path


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_cosines_taken_in_rank_r_are_those_of_whole_predictions_at_every_level(dump, target, rank):
    jumps = [make_jump(seed, rank) for seed in range(K)]
    found = score_jumps(*dump, [jump.fold() for jump in jumps], target, CPU)
    expected = naive_cosines(*dump, jumps, target)
    assert found.shape == (K, K + 1, N) and found.dtype == torch.float32
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
    assert (found[0, :, 1] == 0).all() and (found[0, 0, [0, 2]] != 0).all()
    assert (found[1] == 0).all()


def test_the_signed_square_keeps_the_sign():
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    assert signed_square(values).tolist() == [-1.0, -0.25, 0.0, 0.25, 1.0]


def test_scores_are_the_means_of_the_cosines_over_the_training_rows(dump, tmp_path):
    activations, unembedding = dump
    cosines = score_jumps(*dump, [make_jump(seed).fold() for seed in range(K)], "pre_norm", CPU)
    save_scores(cosines, activations, "pre_norm", unembedding, tmp_path / "s.parquet", tmp_path / "c.safetensors")
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert list(table.columns) == ["jump", "level", "cosine", "signed_squared_cosine"]
    assert list(zip(table["jump"], table["level"], strict=True)) == [(m, k) for m in range(K) for k in range(K + 1)]
    for row in table.itertuples():
        values = [float(c) for c in cosines[row.jump, row.level]]
        assert row.cosine == pytest.approx(sum(values) / N, rel=1e-6)
        assert row.signed_squared_cosine == pytest.approx(sum(c * abs(c) for c in values) / N, rel=1e-5)

    file = TensorFile(tmp_path / "c.safetensors")
    assert torch.equal(file.tensor("cosine"), cosines)
    assert torch.equal(file.tensor("sentence_id"), activations.sentence_ids)
    assert file.metadata["target"] == "pre_norm"
    assert file.metadata["unembedding_sha256"] == unembedding.metadata["sha256"]


@pytest.mark.parametrize(("score_levels", "levels"), [("1..K", [1, 2, 3]), ("0..K-1", [0, 1, 2])])
def test_D_is_the_mean_over_rows_and_the_chosen_levels_and_the_largest_wins(tmp_path, score_levels, levels):
    cosines = torch.rand(K, K + 1, 50, generator=torch.Generator().manual_seed(3)) * 2 - 1
    cosines[1, 0] += 1.0  # the level that only one of the two choices counts
    write_tensors(tmp_path / "c.safetensors", {"cosine": cosines}, {})
    select_jump(tmp_path / "c.safetensors", score_levels, 0, tmp_path / "selection.json")
    found = read_json(tmp_path / "selection.json")

    naive = []
    for m in range(K):
        values = [float(cosines[m, k, i]) for k in levels for i in range(50)]
        naive.append(sum(abs(c) * c for c in values) / len(values))
    np.testing.assert_allclose(found["scores"], naive, rtol=1e-6)
    assert found["ojfa"] == naive.index(max(naive)) == read_selection(tmp_path / "selection.json", K)["ojfa"]
    assert found["score_levels"] == score_levels
    assert found["temperature"] == 5e-4
    weights = [np.exp((score - max(naive)) / 5e-4) for score in naive]
    np.testing.assert_allclose(found["softmax"], np.array(weights) / sum(weights), rtol=1e-3, atol=1e-12)


def test_the_choice_of_score_levels_can_change_the_choice_of_the_jump(tmp_path):
    values = torch.full((K, K + 1, 20), 0.1)
    values[0, 0], values[2, K] = 0.9, 0.9  # jump 0 is good at level 0 alone, jump 2 at level K alone
    path = write_cosines(tmp_path / "c.safetensors", values)
    chosen = {}
    for score_levels in ("1..K", "0..K-1"):
        select_jump(path, score_levels, 0, tmp_path / "selection.json")
        chosen[score_levels] = read_selection(tmp_path / "selection.json", K)["ojfa"]
    assert chosen == {"1..K": 2, "0..K-1": 0}


def test_a_negative_cosine_counts_against_a_jump(tmp_path):
    values = torch.full((K, K + 1, 20), 0.2)
    values[1] = -0.9
    path = write_cosines(tmp_path / "c.safetensors", values)
    select_jump(path, "1..K", 0, tmp_path / "selection.json")
    found = read_json(tmp_path / "selection.json")
    assert found["scores"][1] == pytest.approx(-0.9, rel=1e-6)
    assert found["ojfa"] != 1


def test_the_bootstrap_gives_a_clear_winner_all_of_the_share(tmp_path):
    values = 0.1 * torch.rand(K, K + 1, 200, generator=torch.Generator().manual_seed(0))
    values[2] += 0.5
    select_jump(write_cosines(tmp_path / "c", values), "1..K", 0, tmp_path / "selection.json")
    assert read_json(tmp_path / "selection.json")["bootstrap_share"] == [0.0, 0.0, 1.0]


def test_the_bootstrap_shares_out_between_jumps_that_sentences_cannot_tell_apart(tmp_path):
    half = torch.rand(K + 1, 100, generator=torch.Generator().manual_seed(0))
    mirrored = torch.stack([torch.cat([half, 1 - half], 1), torch.cat([1 - half, half], 1)])  # of equal means
    values = torch.cat([mirrored, torch.zeros(1, K + 1, 200)]) * 0.9
    shares = []
    for seed in (0, 1):
        select_jump(write_cosines(tmp_path / "c", values), "1..K", seed, tmp_path / "selection.json")
        shares.append(read_json(tmp_path / "selection.json")["bootstrap_share"])
        assert sum(shares[-1]) == pytest.approx(1.0, abs=1e-12)
        assert shares[-1][0] == pytest.approx(0.5, abs=0.05)  # four standard errors of 2,000 resamples
        assert shares[-1][2] == 0.0
    assert shares[0] != shares[1]


def test_equal_cosines_and_an_equal_seed_give_equal_bytes(tmp_path):
    values = torch.rand(K, K + 1, 30, generator=torch.Generator().manual_seed(0))
    for name in ("one", "two"):
        select_jump(write_cosines(tmp_path / "c", values), "1..K", 7, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_of_two_equal_jumps_the_first_is_selected(tmp_path):
    values = torch.rand(1, K + 1, 30, generator=torch.Generator().manual_seed(0)).repeat(K, 1, 1)
    values[0] *= 0.5
    select_jump(write_cosines(tmp_path / "c", values), "1..K", 0, tmp_path / "selection.json")
    assert read_selection(tmp_path / "selection.json", K)["ojfa"] == 1


def test_cosines_that_are_not_finite_are_refused(tmp_path):
    cosines = torch.zeros(K, K + 1, 5)
    cosines[1, 2, 3] = torch.nan
    write_tensors(tmp_path / "c.safetensors", {"cosine": cosines}, {})
    with pytest.raises(OnejumpError, match=r"c.safetensors: NaN or infinite cosines"):
        select_jump(tmp_path / "c.safetensors", "1..K", 0, tmp_path / "selection.json")
    assert not (tmp_path / "selection.json").exists()


@pytest.mark.parametrize("n_jumps", [K - 1, K + 1])
def test_a_selection_among_another_number_of_jumps_is_refused(tmp_path, n_jumps):
    path = write_cosines(tmp_path / "c", torch.rand(K, K + 1, 5))
    select_jump(path, "1..K", 0, tmp_path / "selection.json")
    with pytest.raises(OnejumpError, match=f"selects among {K} jumps, expected {n_jumps}"):
        read_selection(tmp_path / "selection.json", n_jumps)
