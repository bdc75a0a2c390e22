"""The KL fit against the divergence of whole predictions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import CPU, make_joint_rows, make_unembedding
from torch.nn.functional import kl_div, log_softmax

from onejump.files.checkpoints import Checkpoint
from onejump.jumps.exact import fit_exact
from onejump.jumps.jump import FoldedJump, target_of
from onejump.jumps.kl import _Objective, fit_kl
from onejump.jumps.moments import Moments
from onejump.jumps.objective import Rows
from onejump.jumps.settings import KL_VALIDATE_EVERY
from onejump.models.unembedding import Unembedding

H, RANK = 10, 2


def divergence(
    unembedding: Unembedding, target: str, jump: FoldedJump, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """KL(full || exit) over rows at levels 0.., by whole predictions."""
    after = unembedding.project if target == "post_norm" else unembedding.logits
    full = log_softmax(after(y), -1)
    predicted = [jump(h) @ jump.B + jump.gate(level) * unembedding.normalise(h) for level, h in enumerate(x)]
    exits = [log_softmax(after(prediction), -1) for prediction in predicted]
    return torch.stack([kl_div(one, full, reduction="batchmean", log_target=True) for one in exits]).mean()


@pytest.mark.parametrize(("norm_kind", "softcap"), [("rms", None), ("layer", None), ("rms", 3.0)])
@pytest.mark.parametrize(("target", "gates"), [("pre_norm", []), ("post_norm", []), ("post_norm", [0.1, -0.3, 0.8])])
def test_the_divergence_and_its_gradients_are_those_of_whole_predictions(norm_kind, softcap, target, gates):
    unembedding, (x, y) = make_unembedding(norm_kind, softcap), make_joint_rows()
    y = target_of(y, unembedding, target)
    moments = Moments.of(x.flatten(0, 1), y.repeat(3, 1))
    start = fit_exact(moments, moments, RANK).map
    objective = _Objective(start, gates, Rows(x, y), unembedding, target)
    levels, sentences = torch.tensor([2, 0]), torch.tensor([5, 1, 7, 3])
    found = objective.divergence(Rows(x, y), levels, sentences, backward=True)

    parameters = [value.detach().clone().requires_grad_() for value in objective.parameters]
    after = unembedding.project if target == "post_norm" else unembedding.logits
    full, losses = log_softmax(after(y[sentences]), -1), []
    for level in levels.tolist():
        h = x[level, sentences]
        xn = (h - start.mean_x.float()) / start.std_x.float()
        predicted = (xn @ parameters[0] + parameters[1]) @ parameters[2] * objective._scale
        if gates:
            predicted = predicted + parameters[3][level] * unembedding.normalise(h)
        losses.append(kl_div(log_softmax(after(predicted), -1), full, reduction="batchmean", log_target=True))
    loss = torch.stack(losses).mean()
    assert found == pytest.approx(loss.item(), rel=1e-4)
    loss.backward()
    assert len(objective.parameters) == (4 if gates else 3)
    for ours, value in zip(objective.parameters, parameters, strict=True):
        torch.testing.assert_close(ours.grad, value.grad, rtol=2e-3, atol=1e-5)


def test_validation_takes_each_sentence_at_as_many_levels_and_all_levels_as_often():
    unembedding, (x, y) = make_unembedding("rms"), make_joint_rows()
    x = torch.cat([x, x + 0.3, x * 0.7])  # nine levels, three of which each sentence is taken at
    moments = Moments.of(x.flatten(0, 1), y.repeat(9, 1))
    objective = _Objective(fit_exact(moments, moments, RANK).map, [], Rows(x, y), unembedding, "pre_norm")
    n = len(y) // 3 * 3
    jump = objective.result(objective.parameters)[0].jump().fold()
    parts = [divergence(unembedding, "pre_norm", jump, x[group::3, group:n:3], y[group:n:3]) for group in range(3)]
    assert objective.validate(Rows(x[:, :n], y[:n])) == pytest.approx(float(sum(parts)) / 3, rel=1e-4)


@pytest.mark.parametrize(("target", "gates"), [("pre_norm", []), ("post_norm", []), ("post_norm", [0.0, 0.3, 0.7])])
def test_training_on_the_divergence_lowers_it_and_keeps_the_best(target, gates):
    unembedding, (x, y) = make_unembedding("rms"), make_joint_rows(400)
    y = target_of(y, unembedding, target)
    fit, validation = Rows(x[:, :300], y[:300]), Rows(x[:, 300:], y[300:])
    moments = Moments.of(fit.x.flatten(0, 1), fit.y.repeat(3, 1))
    start = fit_exact(moments, moments, RANK).map

    def run():
        return fit_kl(fit, validation, start, unembedding, target, 0, gates, steps=2 * KL_VALIDATE_EVERY)

    def of(map_, gates) -> float:
        jump = replace(map_.jump().fold(), gates=tuple(gates))
        return float(divergence(unembedding, target, jump, validation.x, validation.y))

    result = run()
    assert len(result.validation_curve) == 3 == 1 + len(result.train_curve)
    assert result.validation_curve[0] == pytest.approx(of(start, gates), rel=1e-4)
    kept = of(result.map, result.gates)
    assert kept == pytest.approx(min(result.validation_curve), rel=1e-4)
    assert kept < 0.95 * result.validation_curve[0]
    assert result.best_step == KL_VALIDATE_EVERY * int(np.argmin(result.validation_curve))
    assert len(result.gates) == len(gates)
    assert all(abs(after - before) > 1e-3 for after, before in zip(result.gates, gates, strict=True))
    again = run()
    assert torch.equal(again.map.W, result.map.W)
    assert again.train_curve == result.train_curve


def test_fewer_validation_sentences_than_groups_of_levels_are_enough():
    unembedding, (x, y) = make_unembedding("rms"), make_joint_rows()
    x = torch.cat([x] * 4)  # twelve levels in four groups
    moments = Moments.of(x.flatten(0, 1), y.repeat(12, 1))
    objective = _Objective(fit_exact(moments, moments, RANK).map, [], Rows(x, y), unembedding, "pre_norm")
    jump = objective.result(objective.parameters)[0].jump().fold()
    alone = [divergence(unembedding, "pre_norm", jump, x[i::4, i : i + 1], y[i : i + 1]) for i in range(2)]
    assert objective.validate(Rows(x[:, :2], y[:2])) == pytest.approx(float(sum(alone)) / 2, rel=1e-4)


def test_an_interrupted_fit_goes_on_to_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEJUMP_CHECKPOINT_SECONDS", "0")
    unembedding, (x, y) = make_unembedding("rms"), make_joint_rows(300)
    y = target_of(y, unembedding, "post_norm")
    fit, validation = Rows(x[:, :200], y[:200]), Rows(x[:, 200:], y[200:])
    moments = Moments.of(fit.x.flatten(0, 1), fit.y.repeat(3, 1))
    given = (fit, validation, fit_exact(moments, moments, RANK).map, unembedding, "post_norm", 0, [0.0, 0.3, 0.7])
    expected = fit_kl(*given, steps=3 * KL_VALIDATE_EVERY)

    class Interrupt(Checkpoint):
        def save(self, state):
            super().save(state)
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit_kl(*given, steps=3 * KL_VALIDATE_EVERY, checkpoint=Interrupt(tmp_path / "jump", {}, CPU))
    found = fit_kl(*given, steps=3 * KL_VALIDATE_EVERY, checkpoint=Checkpoint(tmp_path / "jump", {}, CPU))
    assert torch.equal(found.map.W, expected.map.W)
    assert found.gates == expected.gates
    assert (found.train_curve, found.validation_curve) == (expected.train_curve, expected.validation_curve)


@pytest.mark.parametrize("level", [1, None], ids=["level", "joint"])
@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_a_kl_jump_has_the_divergence_that_its_file_reports(study, fitted, level, target):
    (activations, unembedding), (jump, file) = study, fitted(level, "kl", target)
    x = torch.stack([activations.level(k)[-20:] for k in (range(3) if level is None else [level])])
    y = target_of(activations.level(3)[-20:], unembedding, target)
    found = float(divergence(unembedding, target, jump.fold(), x, y))
    assert found == pytest.approx(min(file.value("validation_curve")), rel=1e-3)
