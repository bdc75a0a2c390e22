"""The check with a shortlist, against explicit logits and one sentence at a time with the model's own head."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from handmade_activations import H, K, make_activations, make_head, naive_metrics, naive_norm, naive_project, normal
from refusals import error_of

from onejump.exits import chunks, shortlist
from onejump.exits.columns import METRICS
from onejump.exits.evaluation import JumpExits, evaluate_jumps
from onejump.exits.shortlist import (
    Check,
    Preview,
    PreviewedJump,
    ShortlistedJump,
    evaluate_shortlist,
    read_preview,
    save_preview,
    shortest,
    with_shortlist,
)
from onejump.files.tensors import write_tensors
from onejump.jumps.jump import FoldedJump
from onejump.models.fused import fuse

CPU = torch.device("cpu")
VOCABULARY, N_TRAIN, FITTED = 130, 163, 147
GATES = (0.4, -0.2, 0.9)
SCALES = normal(K, 4, seed=43)
JUMP = FoldedJump(
    normal(H, 4, seed=40, scale=0.2), normal(4, seed=41, scale=0.3), normal(4, H, seed=42, scale=0.5), GATES, SCALES
)


@pytest.fixture(params=[("rms", None), ("layer", 20.0)], ids=["rms", "layer, softcap"])
def splits(request, tmp_path, monkeypatch):
    """Training and test activations and the unembedding; lengths of shortlists that suit the small vocabulary."""
    monkeypatch.setattr(shortlist, "TOKENS", (2, 8, 40))
    head = make_head(VOCABULARY, *request.param)
    train, unembedding = make_activations(tmp_path / "train", head, (100, 63), split="train", seed=70)
    return train, make_activations(tmp_path / "test", head)[0], unembedding


def evaluate(train, test, unembedding) -> tuple[pd.DataFrame, pd.DataFrame]:
    table, _, evaluation, _ = evaluate_shortlist(train, test, unembedding, JUMP, "post_norm", CPU)
    return table, evaluation.to_pandas()


def states_of(activations, unembedding, rows: slice) -> np.ndarray:
    """What gates let through at all levels, one row after another."""
    return np.array(
        [
            GATES[level] * naive_norm(unembedding, h)
            for level in range(K)
            for h in activations.level(level)[rows].double().numpy()
        ]
    )


def naive_logits(unembedding, preview: Preview, h: np.ndarray, level: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Of one hidden state, by the whole check with the model's own head, and by the preview."""
    P, q, B = (tensor.double().numpy() for tensor in (JUMP.P, JUMP.q, JUMP.B))
    W, passed = unembedding.weight.double().numpy(), GATES[level] * naive_norm(unembedding, h)
    z = (h @ P + q) * SCALES[level].double().numpy()
    product = passed @ preview.A[:, :width].double().numpy() @ preview.M[:width].double().numpy()
    guess = W @ (z @ B) + product + (0 if unembedding.bias is None else unembedding.bias.double().numpy())
    guess = guess * unembedding.scale
    cap = unembedding.softcap
    return naive_project(unembedding, z @ B + passed), guess if cap is None else cap * np.tanh(guess / cap)


def naive_shortlist(unembedding, preview: Preview, h: np.ndarray, level: int, check: Check) -> np.ndarray:
    whole, logits = naive_logits(unembedding, preview, h, level, check.width)
    leading = np.argsort(-logits)[: check.tokens]
    logits[leading] = whole[leading]
    return logits


def agrees(unembedding, preview: Preview, h: np.ndarray, level: int, check: Check) -> bool:
    """Whether the whole check's token leads and is on the shortlist."""
    whole, logits = naive_logits(unembedding, preview, h, level, check.width)
    token = whole.argmax()
    if token not in np.argsort(-logits)[: check.tokens]:
        return False
    return naive_shortlist(unembedding, preview, h, level, check).argmax() == token


def test_an_output_embedding_in_half_precision_is_previewed_as_its_numbers_say(splits):
    train, _, unembedding = splits
    half = unembedding.weight.bfloat16()
    given = (replace(unembedding, weight=weight) for weight in (half, half.float()))
    found, expected = (Preview.of(train.rows(0, FITTED), one, JUMP, 6, CPU) for one in given)
    torch.testing.assert_close(found.A @ found.M, expected.A @ expected.M)


@pytest.mark.parametrize("width", [1, 4, 16, H])
def test_no_product_of_its_width_is_nearer_to_the_centred_logits_than_the_preview(splits, monkeypatch, width):
    train, _, unembedding = splits
    monkeypatch.setattr(shortlist, "ROWS", 50)
    preview = Preview.of(train.rows(0, FITTED), unembedding, JUMP, width, CPU)
    W = unembedding.weight.double().numpy()
    states = states_of(train, unembedding, slice(0, FITTED))
    logits = states @ W.T
    singular = np.linalg.svd(logits - logits.mean(1, keepdims=True), compute_uv=False)
    error = logits - states @ preview.A.double().numpy() @ preview.M.double().numpy()
    assert (error**2).sum() == pytest.approx((singular[width - 1 :] ** 2).sum(), rel=1e-4)
    np.testing.assert_allclose(error.mean(1), 0, atol=1e-4)


def test_a_smaller_width_is_the_first_columns_of_a_larger_one(splits):
    train, _, unembedding = splits
    small, large = (Preview.of(train, unembedding, JUMP, width, CPU) for width in (4, 16))
    assert torch.equal(small.A, large.A[:, :4])
    torch.testing.assert_close(small.M, large.M[:4])


def test_the_shortest_list_is_found_by_trying_all():
    preview, whole = normal(300, 9, seed=60), normal(300, 9, seed=61)
    whole[0], preview[0] = torch.arange(9.0), torch.arange(9.0)  # the preview's logit may be the whole check's
    found = shortest(preview, whole)
    for row, before, after in zip(found.tolist(), preview, whole, strict=True):
        tried = [with_shortlist(before[None].clone(), after[None], tokens).argmax() for tokens in range(1, 10)]
        on = [after.argmax() in before.topk(tokens).indices for tokens in range(1, 10)]
        same = [bool(listed and token == after.argmax()) for listed, token in zip(on, tried, strict=True)]
        assert row == same.index(True) + 1 and all(same[row - 1 :])
    assert set(found.tolist()) >= {1, 2, 8, 9}


@pytest.mark.parametrize("rows", [7, 1000])
def test_every_agreement_is_counted_one_sentence_after_another(splits, monkeypatch, rows):
    train, test, unembedding = splits
    monkeypatch.setattr(chunks, "ROWS", {"cpu": rows})
    table, _ = evaluate(*splits)
    assert len(table) == 4 * 3 and table["chosen"].sum() == 1
    preview = Preview.of(train.rows(0, FITTED), unembedding, JUMP, H, CPU)
    for row in table.itertuples():
        check = Check(row.width, row.tokens)
        assert row.check == (4 + row.width) * (H + VOCABULARY) + row.tokens * H
        found = []
        for part, kept in ((train, slice(FITTED, None)), (test, slice(None))):
            same = np.array(
                [
                    [agrees(unembedding, preview, h, level, check) for h in part.level(level)[kept].double().numpy()]
                    for level in range(K)
                ]
            )
            found += [same.mean(), same.mean(1).min()]
        assert (row.agreement, row.worst_agreement) == pytest.approx(tuple(found[:2]), rel=1e-12)
        assert row.test_agreement == (pytest.approx(found[2]) if row.chosen else pytest.approx(np.nan, nan_ok=True))
    assert 0.1 < table["agreement"].min() < 0.9 < table["agreement"].max()


def test_the_chosen_check_is_evaluated_one_sentence_after_another(splits):
    train, test, unembedding = splits
    table, found = evaluate(*splits)
    row = table[table["chosen"]].iloc[0]
    preview = Preview.of(train.rows(0, FITTED), unembedding, JUMP, H, CPU)
    full = [naive_project(unembedding, naive_norm(unembedding, h)) for h in test.level(K).double().numpy()]
    expected = [
        naive_metrics(naive_shortlist(unembedding, preview, h, level, Check(row["width"], row["tokens"])), full[i])
        for level in range(K)
        for i, h in enumerate(test.level(level).double().numpy())
    ]
    assert list(found.columns) == ["level", "method", "jump", "sentence_id", *METRICS]
    assert set(found["method"]) == {"joint_shortlist"} and found["jump"].isna().all()
    assert found["sentence_id"].tolist() == K * test.sentence_ids.tolist()
    for name in METRICS:
        values = [row[name] for row in expected]
        np.testing.assert_allclose(found[name], values, rtol=2e-4, atol=2e-5, err_msg=name)


def test_a_shortlist_of_all_tokens_is_the_whole_check(splits, monkeypatch):
    monkeypatch.setattr(shortlist, "TOKENS", (1000,))
    _, test, unembedding = splits
    table, found = evaluate(*splits)
    assert set(table["tokens"]) == {VOCABULARY} and table["width"][table["chosen"]].item() == 4
    assert (table["agreement"] == 1).all() and table["test_agreement"].max() == 1
    whole, _ = evaluate_jumps(test, unembedding, JumpExits((), None, JUMP), "post_norm", 0, CPU)
    whole = whole.to_pandas()
    for name in METRICS:
        if name.startswith("correct"):
            assert found[name].equals(whole[name])
        else:
            np.testing.assert_allclose(found[name], whole[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("wanted", [0.5, 0.9, 1.1])
def test_the_cheapest_check_that_agrees_enough_is_chosen_or_the_one_that_agrees_most(splits, monkeypatch, wanted):
    monkeypatch.setattr(shortlist, "SHORTLIST_AGREEMENT", wanted)
    table, _ = evaluate(*splits)
    enough = [row for row in table.itertuples() if row.agreement >= wanted]
    best = min(enough, key=lambda row: row.check) if enough else max(table.itertuples(), key=lambda row: row.agreement)
    assert table.index[table["chosen"]].tolist() == [best.Index]


def test_the_validation_slice_is_evaluated_as_the_test_sentences_are(splits, monkeypatch):
    train, _, unembedding = splits
    monkeypatch.setattr(shortlist, "SHORTLIST_AGREEMENT", 0.9)
    held_out = train.rows(FITTED, N_TRAIN)
    _, before, after, _ = evaluate_shortlist(train, held_out, unembedding, JUMP, "post_norm", CPU)
    assert before.equals(after) and len(before) == K * (N_TRAIN - FITTED)


def test_tokens_off_the_shortlist_keep_the_previews_logits(splits):
    train, test, unembedding = splits
    jump = PreviewedJump(unembedding, JUMP, "post_norm", Preview.of(train, unembedding, JUMP, 8, CPU))
    x = test.level(1)
    whole, preview = jump.logits(x, 1, [8])
    logits = with_shortlist(preview.clone(), whole, 5)
    listed = preview >= preview.topk(5, 1).values[:, -1:]
    assert torch.equal(logits, torch.where(listed, whole, preview))


def test_a_jump_without_gates_is_refused(splits):
    ungated = FoldedJump(JUMP.P, JUMP.q, JUMP.B)
    said = error_of(lambda: evaluate_shortlist(*splits, ungated, "post_norm", CPU))
    assert said == "the jump has no gates, so its fused check needs no shortlist; give a gated joint jump"


@pytest.mark.parametrize("n", [0, 1, 5])
def test_the_chosen_check_gives_the_logits_that_were_evaluated_from_its_file(splits, tmp_path, n):
    train, test, unembedding = splits
    table, *_, preview = evaluate_shortlist(train, test, unembedding, JUMP, "post_norm", CPU)
    (chosen,) = table[table["chosen"]].to_dict("records")
    save_preview(tmp_path / "preview", preview, unembedding, chosen)
    E, facts = read_preview(tmp_path / "preview", unembedding)
    assert facts == {name: chosen[name] for name in ("width", "tokens", "agreement", "check")}
    assert E.shape == (H, facts["width"] - 1)
    (fused,) = fuse(unembedding, [JUMP.B], "post_norm")
    again = Preview.from_components(E, unembedding)
    jump = ShortlistedJump(unembedding, JUMP, fused, again, facts["tokens"])
    wide = Preview.of(train.rows(0, FITTED), unembedding, JUMP, H, CPU)
    for level in range(K):
        x = test.level(level)[:n]
        expected = [
            naive_shortlist(unembedding, wide, h, level, Check(facts["width"], facts["tokens"]))
            for h in x.double().numpy()
        ]
        expected = np.array(expected).reshape(n, VOCABULARY)
        np.testing.assert_allclose(jump.logits(x, level), expected, rtol=1e-4, atol=1e-4)


def test_only_the_preview_of_the_models_own_head_is_read(splits, tmp_path):
    *_, unembedding = splits
    write_tensors(tmp_path / "jump", {}, {"kind": "jump"})
    assert "holds jump, expected a preview" in error_of(lambda: read_preview(tmp_path / "jump", unembedding))
    write_tensors(tmp_path / "other", {}, {"kind": "preview", "unembedding_sha256": "0"})
    assert "was fitted for the unembedding 0, not for " in error_of(
        lambda: read_preview(tmp_path / "other", unembedding)
    )
