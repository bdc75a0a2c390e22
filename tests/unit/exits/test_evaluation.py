"""Every metric of every method, against one sentence at a time in float64, over whole distributions."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from handmade_activations import (
    H,
    K,
    N,
    make_activations,
    make_head,
    naive_metrics,
    naive_norm,
    naive_project,
    normal,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import error_of

from onejump import exit_stages
from onejump.exits import chunks, floor
from onejump.exits.columns import METRICS
from onejump.exits.evaluation import JumpExits, evaluate_held_out, evaluate_jumps, grid_precision
from onejump.exits.metrics import Prediction, argmax, exit_metrics
from onejump.exits.references import evaluate_lens, evaluate_references, evaluate_references_held_out
from onejump.jumps.jump import FoldedJump
from onejump.jumps.lenses import AffineLens
from onejump.models.unembedding import Unembedding
from onejump.parameters import Compute, Dump

CPU = torch.device("cpu")
RANK, TRANSFER, OJFA = 4, 20, 2


def make_exits(gated: bool = False) -> JumpExits:
    def jump(seed: int, *gates: float) -> FoldedJump:
        P, q = normal(H, RANK, seed=seed, scale=0.2), normal(RANK, seed=seed + 1, scale=0.3)
        return FoldedJump(P, q, normal(RANK, H, seed=seed + 2, scale=0.5), gates if gated else ())

    joint = jump(40, 0.5, -0.1, 0.9)
    joint = replace(joint, scales=normal(K, RANK, seed=44)) if gated else joint
    return JumpExits([jump(20 + 3 * m, 0.3 * m - 0.2) for m in range(K)], OJFA, joint)


def jtc(level: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.eye(H) + normal(H, H, seed=50 + level, scale=0.1), normal(H, seed=60 + level, scale=0.3)


@dataclass(frozen=True)
class HandmadeLens:
    """In place of a file."""

    target: str
    lens: str = "jtc"

    def at(self, level: int) -> AffineLens:
        weight, bias = jtc(level)
        return AffineLens((weight,), bias)


def evaluate(
    activations, unembedding, target: str = "pre_norm", transfer: int = TRANSFER, gated: bool = False
) -> pd.DataFrame:
    """Every method at every level."""
    jumps, _ = evaluate_jumps(activations, unembedding, make_exits(gated), target, transfer, CPU)
    references = evaluate_references(activations, activations, unembedding, CPU).to_pandas()
    references = references[references["method"] == "identity"]  # test_floor.py has the rest
    full_rank = evaluate_lens(activations, unembedding, HandmadeLens(target), CPU).to_pandas()
    return by_method(pd.concat([jumps.to_pandas(), references, full_rank]))


def by_method(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each level, method and jump together, methods in alphabetical order, sentences in the table's own."""
    return table.astype({"method": str}).sort_values(["level", "method", "jump"], kind="stable", ignore_index=True)


def naive_table(activations, unembedding: Unembedding, target: str, transfer: int, gated: bool = False) -> pd.DataFrame:
    hidden = [activations.level(k).double().numpy() for k in range(K + 1)]
    exits = make_exits(gated)

    def finish(y: np.ndarray) -> np.ndarray:
        return naive_project(unembedding, y if target == "post_norm" else naive_norm(unembedding, y))

    def through(jump: FoldedJump, h: np.ndarray, level: int) -> np.ndarray:
        P, q, B = (tensor.double().numpy() for tensor in (jump.P, jump.q, jump.B))
        gate = jump.gates[0 if len(jump.gates) == 1 else level] if gated else 0
        scales = 1 if jump.scales is None else jump.scales[level].double().numpy()
        return finish((h @ P + q) * scales @ B + gate * naive_norm(unembedding, h))

    def full_rank(level: int, h: np.ndarray) -> np.ndarray:
        weight, bias = jtc(level)
        return finish(h @ weight.double().numpy() + bias.double().numpy())

    full = [naive_project(unembedding, naive_norm(unembedding, h)) for h in hidden[K]]
    rows = []
    for level in range(K):
        methods = {
            ("identity", None): lambda h: naive_project(unembedding, naive_norm(unembedding, h)),
            ("n_njtc", level): lambda h, level=level: through(exits.jumps[level], h, level),
            ("ojfa", OJFA): lambda h, level=level: through(exits.jumps[OJFA], h, level),
            ("middle", K // 2): lambda h, level=level: through(exits.jumps[K // 2], h, level),
            ("joint", None): lambda h, level=level: through(exits.joint, h, level),
            ("jtc", None): lambda h, level=level: full_rank(level, h),
            **{("arbitrary", m): lambda h, m=m, level=level: through(exits.jumps[m], h, level) for m in range(K)},
        }
        for (method, jump), logits in methods.items():
            for i in range(transfer if method == "arbitrary" else len(full)):
                key = {"level": level, "method": method, "jump": jump, "sentence_id": int(activations.sentence_ids[i])}
                rows.append(key | naive_metrics(logits(hidden[level][i]), full[i]))
    return by_method(pd.DataFrame(rows))


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The same methods, jumps and sentences at the same levels, and the same metrics to float32."""
    assert list(found.columns) == ["level", "method", "jump", "sentence_id", *METRICS]
    for name in ("level", "method", "sentence_id"):
        assert found[name].tolist() == expected[name].tolist()
    assert found["jump"].fillna(-1).tolist() == expected["jump"].fillna(-1).tolist()
    for name in ("correct", "correct_at_5"):
        assert found[name].dtype == bool
        assert found[name].tolist() == expected[name].tolist()
    for name in ("surprisal", "exit_surprisal", "kl", "confidence"):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name].to_numpy(), rtol=2e-4, atol=2e-5, err_msg=name)


# ----------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize(("target", "gated"), [("pre_norm", False), ("post_norm", False), ("post_norm", True)])
@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("norm_kind", ["rms", "layer"])
@pytest.mark.parametrize("vocabulary", [128, 130])
def test_every_metric_of_every_method_is_its_definition(tmp_path, vocabulary, norm_kind, softcap, target, gated):
    activations, unembedding = make_activations(tmp_path, make_head(vocabulary, norm_kind, softcap))
    found = evaluate(activations, unembedding, target, gated=gated)
    assert_same(found, naive_table(activations, unembedding, target, TRANSFER, gated))
    grid = grid_precision(activations, unembedding, make_exits(gated).jumps, target, CPU)
    alone = evaluate(activations, unembedding, target, N, gated).query("method == 'arbitrary'")
    expected = alone.groupby(["jump", "level"])["correct"].mean().to_numpy().reshape(K, K)
    np.testing.assert_allclose(grid.numpy(), expected, rtol=1e-12)


def test_the_fixture_has_hits_and_misses_so_that_the_comparison_above_means_something(tmp_path):
    found = evaluate(*make_activations(tmp_path, make_head(128)))
    assert 0.02 < found["correct"].mean() < found["correct_at_5"].mean() < 0.9


def random_logits(n: int, vocabulary: int, seed: int) -> torch.Tensor:
    return normal(n, vocabulary, seed=seed, scale=3.0)


@pytest.mark.parametrize("vocabulary", [3, 128, 130, 5000])
def test_an_exit_that_is_the_full_model_is_right_and_has_no_divergence(vocabulary):
    logits = random_logits(40, vocabulary, seed=0)
    found = dict(zip(METRICS, exit_metrics(logits.clone(), Prediction.of(logits)), strict=True))
    assert (found["correct"] == 1).all()
    assert (found["correct_at_5"] == 1).all()
    torch.testing.assert_close(found["kl"], torch.zeros(40), rtol=0, atol=1e-5)
    torch.testing.assert_close(found["surprisal"], found["exit_surprisal"])
    torch.testing.assert_close((-found["surprisal"]).exp(), found["confidence"])


def test_the_divergence_of_another_distribution_is_positive():
    logits = random_logits(40, 130, seed=0)
    nudged = logits + 0.01 * random_logits(40, 130, seed=1)
    for other in (nudged, random_logits(40, 130, seed=2), torch.zeros(40, 130)):
        assert (exit_metrics(other.clone(), Prediction.of(logits))[METRICS.index("kl")] > 0).all()


def test_a_large_vocabulary_costs_no_digits_of_the_divergence():
    full, other = (random_logits(50, 50_000, seed=seed) for seed in (0, 1))
    p, q = (logits.double().log_softmax(1) for logits in (full, other))
    found = exit_metrics(other.clone(), Prediction.of(full))[METRICS.index("kl")]
    torch.testing.assert_close(found.double(), (p.exp() * (p - q)).sum(1), rtol=0, atol=2e-5)


def test_metrics_do_not_change_when_a_constant_is_added_to_all_logits():
    logits, full = random_logits(20, 130, seed=1), Prediction.of(random_logits(20, 130, seed=0))
    torch.testing.assert_close(
        exit_metrics(logits + 90.0, full), exit_metrics(logits.clone(), full), rtol=1e-4, atol=1e-4
    )


def test_extreme_logits_give_finite_metrics():
    logits = 1000 * random_logits(20, 130, seed=1)
    assert exit_metrics(logits.clone(), Prediction.of(random_logits(20, 130, seed=0))).isfinite().all()


@given(st.integers(1, 5), st.sampled_from([1, 63, 64, 65, 128, 130, 192]), st.integers(0, 3), st.integers(0, 10_000))
@settings(deadline=None, max_examples=150)
def test_the_argmax_by_blocks_is_the_first_index_of_the_maximum(n, size, values, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-values, values + 1, (n, size), generator=generator).float()  # with many ties
    index, value = argmax(logits)
    assert index.shape == value.shape == (n, 1)
    assert index[:, 0].tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert value[:, 0].tolist() == [max(row) for row in logits.tolist()]


@pytest.mark.parametrize("vocabulary", [128, 130])
def test_an_exit_that_ties_like_the_full_model_is_right(vocabulary):
    logits = torch.randint(0, 3, (200, vocabulary), generator=torch.Generator().manual_seed(0)).float()
    found = exit_metrics(logits.clone(), Prediction.of(logits))
    assert (found[METRICS.index("correct")] == 1).all()


@pytest.mark.parametrize(("rows", "cached"), [(1, 1), (7, 3), (8, 8), (20, 1000), (1000, 7), (1000, 0)])
def test_the_size_of_a_chunk_does_not_change_the_results(tmp_path, monkeypatch, rows, cached):
    activations, unembedding = make_activations(tmp_path, make_head(130))
    expected = naive_table(activations, unembedding, "pre_norm", TRANSFER)
    for module in (chunks, floor):
        monkeypatch.setattr(module, "ROWS", {"cpu": rows})
    monkeypatch.setattr(chunks, "CACHED_ELEMENTS", {"cpu": 130 * cached})
    assert_same(evaluate(activations, unembedding), expected)


# -------------------------------------------------------------------------------------------------------------- rows


def test_arbitrary_jumps_are_evaluated_on_the_first_sentences_and_the_others_on_all(tmp_path):
    activations, unembedding = make_activations(tmp_path, make_head(128))
    ids = activations.sentence_ids.tolist()
    groups = evaluate(activations, unembedding).groupby(["method", "level", "jump"], dropna=False)["sentence_id"]
    assert {key: group.tolist() for key, group in groups if key[0] == "arbitrary"} == {
        ("arbitrary", k, m): ids[:TRANSFER] for k in range(K) for m in range(K)
    }
    others = {key[:2]: group.tolist() for key, group in groups if key[0] != "arbitrary"}
    methods = ("identity", "n_njtc", "ojfa", "middle", "joint", "jtc")
    assert others == {(method, k): ids for method in methods for k in range(K)}


def test_the_grids_diagonal_is_n_njtc_and_its_selected_row_is_ojfa_on_the_same_sentences(tmp_path):
    found = evaluate(*make_activations(tmp_path, make_head(130)))
    for level in range(K):
        table = found[found["level"] == level]
        for method, jump in (("n_njtc", level), ("ojfa", OJFA)):
            every = table[table["method"] == method]
            arbitrary = table[(table["method"] == "arbitrary") & (table["jump"] == jump)]
            assert (every["jump"] == jump).all()
            assert len(arbitrary) == TRANSFER
            columns = ["sentence_id", *METRICS]
            np.testing.assert_allclose(
                every[columns].head(TRANSFER).astype(float), arbitrary[columns].astype(float), rtol=1e-4, atol=1e-5
            )


def test_first_positions_are_left_out_where_the_variant_says_so(tmp_path):
    unembedding = make_head(128)
    every = evaluate(*make_activations(tmp_path, unembedding))
    kept = evaluate(*make_activations(tmp_path, unembedding, keep="not_first"), transfer=5)
    first = {3 * i + 1 for i in range(N) if (N - 1 - i) % 5 == 0}
    assert len(first) == 8
    for method in ("identity", "jtc", "joint"):
        rows = every[(every["method"] == method) & ~every["sentence_id"].isin(first)]
        found = kept[kept["method"] == method]
        assert found["sentence_id"].tolist() == rows["sentence_id"].tolist()
        np.testing.assert_allclose(found["surprisal"], rows["surprisal"], rtol=1e-4)


@pytest.mark.parametrize("transfer", [1, N, N + 1, 1000])
def test_arbitrary_jumps_are_evaluated_on_as_many_sentences_as_asked_for_or_on_all_that_there_are(tmp_path, transfer):
    found = evaluate(*make_activations(tmp_path, make_head(128)), transfer=transfer)
    counts = found[found["method"] == "arbitrary"].groupby(["level", "jump"]).size()
    assert counts.to_dict() == {(k, m): min(transfer, N) for k in range(K) for m in range(K)}


@pytest.mark.parametrize("gated", [False, True])
def test_the_validation_slice_is_evaluated_as_test_sentences_are(tmp_path, gated):
    train, unembedding = make_activations(tmp_path, make_head(130), split="train")
    jumps = evaluate_held_out(train, unembedding, make_exits(gated), "post_norm", CPU).to_pandas()
    references = evaluate_references_held_out(train, unembedding, CPU).to_pandas()
    first, last = train.rows(0, N - N // 10), train.rows(N - N // 10, N)
    expected = evaluate_references(first, last, unembedding, CPU).to_pandas()
    of_table, expected = (part[part["method"] == "token_table"] for part in (references, expected))
    pd.testing.assert_frame_equal(
        *(part.astype({"method": str}).reset_index(drop=True) for part in (of_table, expected))
    )
    found = by_method(pd.concat([jumps, references[references["method"] == "identity"]]))
    expected = naive_table(last, unembedding, "post_norm", 0, gated)
    assert_same(found, expected[expected["method"] != "jtc"].reset_index(drop=True))


def test_jumps_to_evaluate_on_the_validation_slice_come_with_the_selection_among_them(tmp_path):
    dump = Dump(tmp_path / "unembedding", tmp_path / "positions", [])
    joint, out = tmp_path / "joint", tmp_path / "out"
    for half in ({"jumps": [tmp_path / "level-00"]}, {"selection": tmp_path / "selection.json"}):
        said = error_of(lambda half=half: exit_stages.evaluate_held_out(dump, Compute("cpu"), joint, out, **half))
        assert said == "give --jump for each level and --selection, or neither"


def test_the_transfer_grid_is_the_mean_of_each_jump_at_each_level(tmp_path):
    activations, unembedding = make_activations(tmp_path, make_head(128))
    table, grid = evaluate_jumps(activations, unembedding, make_exits(), "pre_norm", TRANSFER, CPU)
    rows = table.to_pandas().query("method == 'arbitrary'").astype({"surprisal": float})
    expected = rows.groupby(["jump", "level"])[["correct", "surprisal"]].mean().reset_index()
    found = grid.to_pandas()
    assert list(found.columns) == ["jump", "level", "precision", "surprisal"]
    assert len(found) == K * K
    assert found["surprisal"].nunique() == K * K
    assert found[["jump", "level"]].to_numpy().tolist() == expected[["jump", "level"]].to_numpy().tolist()
    np.testing.assert_allclose(found["precision"], expected["correct"], rtol=1e-12)
    np.testing.assert_allclose(found["surprisal"], expected["surprisal"], rtol=1e-6)
