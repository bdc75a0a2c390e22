"""Fits of the tuned lens and of LoRA-Lens at all levels."""

import math

import pytest
import torch
from handmade import CPU
from torch.nn.functional import kl_div, log_softmax

from onejump.files.checkpoints import Checkpoint
from onejump.jumps.descent import converged
from onejump.jumps.tuned_lens import fit_kl_lens


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr("onejump.jumps.descent.KL_VALIDATE_EVERY", 5)
    monkeypatch.setattr("onejump.jumps.tuned_lens.KL_VALIDATE_EVERY", 5)


@pytest.mark.parametrize("lens", ["tuned_lens", "lora_lens"])
def test_each_level_has_the_divergence_that_its_file_reports(study, lens):
    activations, unembedding = study
    levels, facts = fit_kl_lens(activations, unembedding, lens, 0, CPU)
    log_p = log_softmax(unembedding.logits(activations.level(3)[-20:]), -1)
    assert len(levels) == 3
    for level, fitted in enumerate(levels):
        course, h = facts[f"level.{level:02d}"], activations.level(level)[-20:]
        assert course["converged"] == converged(course["validation_curve"])
        log_q, identity = (log_softmax(unembedding.logits(of), -1) for of in (fitted(h), h))
        found, before = (float(kl_div(q, log_p, reduction="batchmean", log_target=True)) for q in (log_q, identity))
        assert course["validation_curve"][0] == pytest.approx(before, rel=1e-4)
        assert min(course["validation_curve"]) == pytest.approx(found, rel=1e-3)
        assert found < 0.8 * before
        assert [factor.shape for factor in fitted.factors] == (
            [(12, 12)] if lens == "tuned_lens" else [(12, 1), (1, 12)]
        )
    steps, own = sum(5 * len(facts[f"level.{k:02d}"]["train_curve"]) for k in range(3)), math.prod((12, 12))
    own = own if lens == "tuned_lens" else 24
    validated = (steps // 5 + 3) * 20
    assert facts["multiply_adds"] == 2 * 203 * 12 * 40 + steps * 96 * (2 * 12 * 40 + 3 * own) + validated * (480 + own)


def test_an_interrupted_fit_goes_on_to_the_same_result(study, tmp_path, monkeypatch):
    monkeypatch.setenv("ONEJUMP_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr("onejump.jumps.tuned_lens.descend", _short)
    expected, facts = fit_kl_lens(*study, "lora_lens", 0, CPU)

    class Interrupt(Checkpoint):
        def save(self, state):
            super().save(state)
            if len(state["found"]) == 1:
                raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit_kl_lens(*study, "lora_lens", 0, CPU, Interrupt(tmp_path / "lens", {}, CPU))
    found, again = fit_kl_lens(*study, "lora_lens", 0, CPU, Checkpoint(tmp_path / "lens", {}, CPU))
    assert again == facts
    for one, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, (*one.factors, one.bias), (*other.factors, other.bias)))


def _short(*args, **given):
    from onejump.jumps.descent import descend

    return descend(*args, **given, steps=15)
