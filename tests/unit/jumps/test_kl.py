"""The KL fit against the divergence of whole predictions."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import CPU, make_joint_rows, make_unembedding, normal
from torch.nn.functional import kl_div, log_softmax

from onejump.analysis.claims import n_parameters
from onejump.files.checkpoints import Checkpoint
from onejump.jumps.descent import converged, validation_rows
from onejump.jumps.divergence import FullModel
from onejump.jumps.exact import fit_exact
from onejump.jumps.jump import FoldedJump, target_of
from onejump.jumps.jump_divergence import JumpDivergence
from onejump.jumps.kl import fit_kl
from onejump.jumps.moments import Moments
from onejump.jumps.objective import Rows
from onejump.jumps.settings import KL_VALIDATE_EVERY
from onejump.models.unembedding import Unembedding

H, RANK = 10, 2


def divergence(
    unembedding: Unembedding,
    target: str,
    jump: FoldedJump,
    x: torch.Tensor,
    y: torch.Tensor,
    levels: Sequence[int] = (0, 1, 2),
) -> torch.Tensor:
    """KL(full || exit) over rows at these levels, by whole predictions."""
    after = unembedding.project if target == "post_norm" else unembedding.logits
    full, predicted = log_softmax(after(y), -1), []
    for level, h in zip(levels, x, strict=True):
        z = h @ jump.P + jump.q
        if jump.scales is not None:
            z = z * jump.scales[level]
        predicted.append(z @ jump.B + jump.gate(level) * unembedding.normalise(h))
    exits = [log_softmax(after(prediction), -1) for prediction in predicted]
    return torch.stack([kl_div(one, full, reduction="batchmean", log_target=True) for one in exits]).mean()


@pytest.mark.parametrize(("norm_kind", "softcap"), [("rms", None), ("layer", None), ("rms", 3.0)])
@pytest.mark.parametrize(
    ("target", "gates", "fit_gates", "fit_scales"),
    [
        ("pre_norm", [], False, False),
        ("post_norm", [], False, False),
        ("post_norm", [0.1, -0.3, 0.8], True, False),
        ("post_norm", [0.4], True, False),
        ("post_norm", [1.0], False, False),
        ("pre_norm", [], False, True),
        ("post_norm", [0.1, -0.3, 0.8], True, True),
        ("post_norm", [1.0], False, True),
    ],
    ids=["pre_norm", "post_norm", "level", "shared", "fixed", "scales", "level, scales", "fixed, scales"],
)
def test_the_divergence_and_its_gradients_are_those_of_whole_predictions(
    monkeypatch, norm_kind, softcap, target, gates, fit_gates, fit_scales
):
    monkeypatch.setattr("onejump.jumps.divergence.BLOCK", 3)  # so that the rows are in several blocks
    unembedding, (x, y) = make_unembedding(norm_kind, softcap), make_joint_rows()
    unembedding.bias = normal(23, seed=8)
    y, states = target_of(y, unembedding, target), x.flip(1)  # what gates see need not be what the jump sees
    moments = Moments.of(x.flatten(0, 1), y.repeat(3, 1))
    start = fit_exact(moments, moments, RANK).map
    rows = Rows(x, y, states)
    compute = JumpDivergence(start, gates, fit_gates, fit_scales, rows, unembedding, target)
    if fit_scales:
        compute.parameters[-1].data.copy_(normal(3, RANK, seed=9))
    levels, sentences = torch.tensor([2, 0, 2, 1, 0, 2, 2]), torch.tensor([5, 5, 1, 7, 3, 3, 0])
    given = (rows, FullModel.of(y, unembedding, target), levels, sentences)
    found = compute.gradients(*given)
    assert compute(compute.parameters, *given) == found

    parameters = [value.detach().clone().requires_grad_() for value in compute.parameters]
    gate = parameters[3] if fit_gates else torch.tensor(gates)
    after = unembedding.project if target == "post_norm" else unembedding.logits
    losses = []
    for level, sentence in zip(levels.tolist(), sentences.tolist(), strict=True):
        xn = (x[level, sentence] - start.mean_x.float()) / start.std_x.float()
        z = (xn @ parameters[0] + parameters[1]) * (parameters[-1][level] if fit_scales else 1)
        predicted = z @ parameters[2] * compute._scale
        if gates:
            predicted = predicted + gate[level if len(gate) > 1 else 0] * unembedding.normalise(states[level, sentence])
        log_p, log_q = log_softmax(after(y[sentence]), -1), log_softmax(after(predicted), -1)
        losses.append(kl_div(log_q, log_p, reduction="sum", log_target=True))
    loss = torch.stack(losses).mean()
    assert found == pytest.approx(loss.item(), rel=1e-4)
    loss.backward()
    assert len(compute.parameters) == 3 + fit_gates + fit_scales
    for ours, value in zip(compute.parameters, parameters, strict=True):
        torch.testing.assert_close(ours.grad, value.grad, rtol=2e-3, atol=1e-5)


def test_validation_takes_each_sentence_at_as_many_levels_and_all_levels_as_often(monkeypatch):
    monkeypatch.setattr("onejump.jumps.descent.KL_VALIDATION_LEVELS", 3)
    rows = Rows(torch.zeros(9, 30, H), torch.zeros(30, H))
    levels, sentences = validation_rows(rows)
    assert len({*zip(levels.tolist(), sentences.tolist(), strict=True)}) == 90
    assert levels.bincount().tolist() == [10] * 9
    assert sentences.bincount().tolist() == [3] * 30


def test_validation_does_not_take_alternate_sentences_at_alternate_levels():
    levels, sentences = validation_rows(Rows(torch.zeros(30, 600, H), torch.zeros(600, H)))
    for parity in (0, 1):
        at_level = levels[sentences % 2 == parity].bincount(minlength=30)
        assert at_level.min() >= 3 and at_level.max() <= 17


def test_fewer_validation_sentences_than_groups_of_levels_still_take_all_levels(monkeypatch):
    monkeypatch.setattr("onejump.jumps.descent.KL_VALIDATION_LEVELS", 3)
    levels, sentences = validation_rows(Rows(torch.zeros(12, 2, H), torch.zeros(2, H)))
    assert sorted(levels.tolist()) == list(range(12))
    assert sentences.bincount().tolist() == [6, 6]


@pytest.mark.parametrize(
    ("last", "expected"),
    [([3.0, 2.99], True), ([2.99, 2.98], False), ([3.5, 3.1], True), ([2.98, 3.2], False), ([3.0], False)],
    ids=["little", "much", "worse", "much, and then worse", "too few steps"],
)
def test_a_fit_has_converged_if_its_last_quarter_changes_little(last, expected):
    assert converged([9.0, 4.0, 3.5, 3.2, 3.1, 3.0, 3.05, *last]) == expected


def test_a_fit_ends_at_its_plateau(monkeypatch):
    unembedding, (x, y) = make_unembedding("rms"), make_joint_rows(300)
    moments = Moments.of(x.flatten(0, 1), y.repeat(3, 1))
    rows, start = Rows(x, y), fit_exact(moments, moments, RANK).map
    monkeypatch.setattr("onejump.jumps.descent.KL_VALIDATE_EVERY", 5)
    result = fit_kl(rows, rows, start, unembedding, "pre_norm", 0, steps=1000)
    assert converged(result.descent.validation_curve)
    assert not converged(result.descent.validation_curve[:-1])
    assert len(result.descent.validation_curve) < 200


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("target", "gates"), [("pre_norm", []), ("post_norm", []), ("post_norm", [0.0, 0.3, 0.7])])
def test_training_on_the_divergence_lowers_it_and_keeps_the_best(monkeypatch, target, gates, scaled):
    monkeypatch.setattr("onejump.jumps.descent.KL_VALIDATION_LEVELS", 3)
    unembedding, (x, y) = make_unembedding("rms"), make_joint_rows(400)
    y = target_of(y, unembedding, target)
    fit, validation = (Rows(x[:, part], y[part], x[:, part]) for part in (slice(300), slice(300, None)))
    moments = Moments.of(fit.x.flatten(0, 1), fit.y.repeat(3, 1))
    start = fit_exact(moments, moments, RANK).map

    def run():
        choices = {"fit_scales": scaled, "steps": 2 * KL_VALIDATE_EVERY}
        return fit_kl(fit, validation, start, unembedding, target, 0, gates, **choices)

    def of(map_, gates, scales=None) -> float:
        jump = replace(map_.jump().fold(), gates=tuple(gates), scales=scales)
        return float(divergence(unembedding, target, jump, validation.x, validation.y))

    result = run()
    assert len(result.descent.validation_curve) == 3 == 1 + len(result.descent.train_curve)
    assert result.descent.validation_curve[0] == pytest.approx(of(start, gates), rel=1e-4)
    kept = of(result.map, result.gates, result.scales.float() if scaled else None)
    assert kept == pytest.approx(min(result.descent.validation_curve), rel=1e-4)
    assert kept < 0.95 * result.descent.validation_curve[0]
    assert result.descent.best_step == KL_VALIDATE_EVERY * int(np.argmin(result.descent.validation_curve))
    assert len(result.gates) == len(gates)
    assert all(abs(after - before) > 1e-3 for after, before in zip(result.gates, gates, strict=True))
    assert (result.scales is None) != scaled
    assert not scaled or (result.scales - 1).abs().min() > 1e-4
    again = run()
    assert torch.equal(again.map.W, result.map.W)
    assert again.descent.train_curve == result.descent.train_curve


def test_an_interrupted_fit_goes_on_to_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEJUMP_CHECKPOINT_SECONDS", "0")
    unembedding, (x, y) = make_unembedding("rms"), make_joint_rows(300)
    y = target_of(y, unembedding, "post_norm")
    fit, validation = (Rows(x[:, part], y[part], x[:, part]) for part in (slice(200), slice(200, None)))
    moments = Moments.of(fit.x.flatten(0, 1), fit.y.repeat(3, 1))
    given = (fit, validation, fit_exact(moments, moments, RANK).map, unembedding, "post_norm", 0, [0.0, 0.3, 0.7])
    choices = {"fit_scales": True, "steps": 3 * KL_VALIDATE_EVERY}
    expected = fit_kl(*given, **choices)

    class Interrupt(Checkpoint):
        def save(self, state):
            super().save(state)
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit_kl(*given, **choices, checkpoint=Interrupt(tmp_path / "jump", {}, CPU))
    found = fit_kl(*given, **choices, checkpoint=Checkpoint(tmp_path / "jump", {}, CPU))
    assert torch.equal(found.map.W, expected.map.W)
    assert found.gates == expected.gates and torch.equal(found.scales, expected.scales)
    assert found.descent.facts() == expected.descent.facts()


@pytest.mark.parametrize(
    ("level", "scales"), [(1, "none"), (None, "none"), (None, "level")], ids=["level", "joint", "scaled"]
)
@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_a_kl_jump_has_the_divergence_that_its_file_reports(study, fitted, level, target, scales):
    (activations, unembedding), (jump, file) = study, fitted(level, "kl", target, scales=scales)
    assert n_parameters(file) == 2 * 12 * 3 + 4 * 12 + (9 if scales == "level" else 0)
    y, levels = target_of(activations.level(3)[-20:], unembedding, target), [0, 1, 2] if level is None else [level]
    taken, sentences = validation_rows(Rows(torch.zeros(len(levels), len(y), 1), y))
    parts = [sentences[taken == i] for i in range(len(levels))]  # of the validation slice, a level each
    found = sum(
        float(divergence(unembedding, target, jump.fold(), activations.level(k)[None, -20:][:, part], y[part], [k]))
        * len(y[part])
        for k, part in zip(levels, parts, strict=True)
    )
    assert found / len(y) == pytest.approx(min(file.value("validation_curve")), rel=1e-3)
