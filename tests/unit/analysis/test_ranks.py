"""Rank curves: nested solutions against fits of each rank alone, and their evaluation against the stage's own."""

import numpy as np
import pytest
import torch
from naive_bootstrap import naive_means
from tiny_models import N_BLOCKS, make_dump

from onejump.activations.reading import Activations
from onejump.analysis.columns import RANK_COLUMNS
from onejump.analysis.ranks import curve_ranks, evaluate_ranks, read_ridges
from onejump.analysis.scores import score_jumps, signed_square
from onejump.exits.columns import JUMP_METHODS, METRICS
from onejump.exits.evaluation import JumpExits, metrics_by_method
from onejump.files.atomic import OnejumpError
from onejump.files.tensors import TensorFile
from onejump.jumps.fitting import fit_jump
from onejump.jumps.storage import load_folded_jumps, load_joint_jump, save_jump
from onejump.models.unembedding import Unembedding

CPU = torch.device("cpu")
DOCUMENTS = np.arange(20) // 3


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("dump"), 160, 30, shards={"train": 3, "test": 1})


def fit_all(train, unembedding, folder, rank: int, target: str, fit: str = "exact"):
    folder.mkdir(parents=True, exist_ok=True)
    files = {level: folder / f"{'joint' if level is None else level}.safetensors" for level in (*range(N_BLOCKS), None)}
    for level, path in files.items():
        save_jump(path, *fit_jump(train, unembedding, level, fit, target, rank, "mixed", 0, CPU))
    return [files[level] for level in range(N_BLOCKS)], files[None]


def check(found, rank: int, exits: JumpExits, unembedding, test, target: str) -> None:
    """The curve's rows of one rank against the evaluation's own way of exiting."""
    of_rank = found[found["rank"] == rank].set_index("method")
    assert of_rank.loc["ojfa", "jump"] == exits.ojfa
    assert set(of_rank.index) == set(JUMP_METHODS)
    assert of_rank["jump"].isna().sum() == 3
    assert (of_rank["n"] == 20).all()
    for method, values in metrics_by_method(test.rows(0, 20), unembedding, exits, target, CPU).items():
        row = of_rank.loc[method]
        for column, metric in (("precision", "correct"), ("surprisal", "surprisal")):
            by_sentence = values[:, METRICS.index(metric)].double().mean(0).numpy()
            assert row[column] == pytest.approx(by_sentence.mean(), abs=1e-4), (rank, method)
            ends = np.percentile(naive_means(by_sentence, DOCUMENTS, 0), [2.5, 97.5])
            assert [row[f"{column}_low"], row[f"{column}_high"]] == pytest.approx(ends, abs=1e-4)


def exits_of(train, unembedding, jumps, joint, target: str, score_levels: str) -> JumpExits:
    folded = load_folded_jumps(jumps, unembedding, target)
    values = signed_square(score_jumps(train, unembedding, folded, target, CPU))
    scores = (values[:, 1:] if score_levels == "1..K" else values[:, :-1]).double().mean((1, 2))
    return JumpExits(folded, int(scores.argmax()), load_joint_jump(joint, unembedding, target))


@pytest.mark.parametrize(("target", "score_levels"), [("pre_norm", "1..K"), ("post_norm", "0..K-1")])
def test_each_rank_is_what_fits_of_that_rank_give(dump, tmp_path, monkeypatch, target, score_levels):
    unembedding = Unembedding.load(dump.unembedding)
    train = Activations(dump.train, dump.positions, unembedding, "train")
    test = Activations(dump.test, dump.positions, unembedding, "test")
    jumps, joint = fit_all(train, unembedding, tmp_path / "ridged", 2, target)
    found = evaluate_ranks(
        train, test, unembedding, *read_ridges([*jumps, joint]), target, score_levels, DOCUMENTS, CPU
    )
    check(found, 2, exits_of(train, unembedding, jumps, joint, target, score_levels), unembedding, test, target)

    monkeypatch.setattr("onejump.jumps.exact.RIDGES", (0.0,))  # else each rank might choose another
    jumps, joint = fit_all(train, unembedding, tmp_path / "own", 2, target)
    found = evaluate_ranks(
        train, test, unembedding, *read_ridges([*jumps, joint]), target, score_levels, DOCUMENTS, CPU
    )
    assert tuple(found.columns) == RANK_COLUMNS
    ranks = curve_ranks(unembedding.hidden_size, 2)
    assert found["rank"].tolist() == [rank for rank in ranks for _ in JUMP_METHODS]
    for rank in ranks:
        alone = fit_all(train, unembedding, tmp_path / str(rank), rank, target)
        check(found, rank, exits_of(train, unembedding, *alone, target, score_levels), unembedding, test, target)


@pytest.mark.parametrize(
    ("hidden_size", "rank", "expected"),
    [(576, 5, [1, 2, 5, 6, 13, 31, 72]), (32, 2, [1, 2, 3, 4]), (16, 3, [1, 2, 3])],
)
def test_the_curves_ranks(hidden_size, rank, expected):
    assert curve_ranks(hidden_size, rank) == expected


def test_only_fits_that_are_nested_have_ridges_for_every_rank(dump, tmp_path):
    unembedding = Unembedding.load(dump.unembedding)
    train = Activations(dump.train, dump.positions, unembedding, "train")
    for fit in ("exact", "exact_logits"):
        save_jump(tmp_path / fit, *fit_jump(train, unembedding, None, fit, "pre_norm", 1, "mixed", 0, CPU))
    assert read_ridges([tmp_path / "exact"]) == (1, [TensorFile(tmp_path / "exact").value("ridge")])
    with pytest.raises(OnejumpError, match="exact_logits: was fitted by exact_logits with gate none, expected exact"):
        read_ridges([tmp_path / "exact", tmp_path / "exact_logits"])
