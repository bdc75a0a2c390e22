"""Jumps that see nothing, or states of other sentences: the nulls, against direct fits."""

import pytest
import torch
from handmade import CPU, naive_optimum, naive_ridge
from refusals import error_of
from torch.nn.functional import kl_div, log_softmax

from onejump.jumps.fitting import fit_jump
from onejump.jumps.inputs import JumpInputs
from onejump.jumps.jump import target_of
from onejump.jumps.moments import validation_start
from onejump.study.fits import FITS

LEVELS = {1: [1], None: [0, 1, 2]}


def true_rows(study, level, target="post_norm"):
    """Normalised states [L, n, H] of the level, or of all, and targets [n, H]: float32."""
    activations, unembedding = study
    states = torch.stack([unembedding.normalise(activations.level(k)) for k in LEVELS[level]])
    return states, target_of(activations.level(3), unembedding, target)


def gates_of(jump, n_levels: int) -> torch.Tensor:
    return torch.zeros(1) if jump.gates is None else jump.gates.detach().expand(n_levels)


def test_shuffled_inputs_are_states_of_other_sentences_of_the_same_slice(study):
    activations = study[0]
    seen, n, cut = JumpInputs(activations, "shuffled", 5), len(activations), validation_start(len(activations))
    orders = []
    for level in range(3):
        true, shuffled = activations.level(level), seen.level(level)
        order = (shuffled[:, None] == true).all(2).int().argmax(1)
        assert torch.equal(true[order], shuffled)
        assert order.sort().values.tolist() == list(range(n))
        assert (order != torch.arange(n)).all()
        assert (order[:cut] < cut).all()
        orders.append(order)
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])
    assert torch.equal(seen.level(3), activations.level(3))
    assert torch.equal(JumpInputs(activations, "shuffled", 5).level(1), seen.level(1))
    assert not torch.equal(JumpInputs(activations, "shuffled", 6).level(1), seen.level(1))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
def test_the_exact_fit_of_shuffled_inputs_is_that_of_the_shuffled_rows(study, fitted, level, target):
    jump, file = fitted(level, "exact", target, seed=2, inputs="shuffled")
    seen, y = JumpInputs(study[0], "shuffled", 2998), true_rows(study, level, target)[1].double()
    x, y = torch.cat([seen.level(k).double()[:-20] for k in LEVELS[level]]), y[:-20].repeat(len(LEVELS[level]), 1)
    assert file.metadata["inputs"] == "shuffled"
    assert file.value("optimum_mse") == pytest.approx(naive_optimum(x, y, 3), rel=1e-6)
    with torch.no_grad():
        found = jump.double()(x)
    torch.testing.assert_close(found, naive_ridge(x, y, 3, file.value("ridge"), x), rtol=1e-4, atol=1e-4)
    assert file.value("train_mse") > 2 * fitted(level, "exact", target)[1].value("train_mse")


@pytest.mark.parametrize("fit", ["exact", "kl"])
@pytest.mark.parametrize("gate", ["none", "level", "shared", "fixed"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_jump_without_inputs_is_a_bias_in_the_form_of_a_jump(study, fitted, level, gate, fit):
    jump, file = fitted(level, fit, "post_norm", rank=None, gate=gate, inputs="none")
    assert (file.metadata["inputs"], file.metadata["gate"], file.value("rank")) == ("none", gate, 1)
    assert (jump.bn.weight == 0).all()
    folded = jump.fold()
    assert (folded.P == 0).all()
    states, y = true_rows(study, level)
    bias = folded(states[0], 0) @ folded.B
    predicted = bias + gates_of(jump, len(states))[:, None, None] * states
    errors = (predicted - y).double().square().sum(2).mean(0)
    assert file.value("train_mse") == pytest.approx(float(errors[:-20].mean()), rel=1e-4)
    assert file.value("validation_mse") == pytest.approx(float(errors[-20:].mean()), rel=1e-4)
    if file.value("gap") is not None:
        assert file.value("gap") == pytest.approx(0, abs=1e-6) or fit == "kl"
    else:  # a gate has another optimum than the fit's start, or one of 1 is worse than the mean
        assert (fit, gate) in {("kl", "level"), ("kl", "shared"), ("kl", "fixed"), ("exact", "fixed")}


@pytest.mark.parametrize(("level", "gate"), [(1, "level"), (None, "level"), (None, "shared")])
def test_gate_and_bias_by_squared_error_are_near_least_squares(study, monkeypatch, level, gate):
    monkeypatch.setattr("onejump.jumps.gates.ALTERNATIONS", 60)
    jump, facts = fit_jump(*study, level, "exact", "post_norm", None, "mixed", 0, CPU, gate=gate, inputs="none")
    states, y = true_rows(study, level)
    n_levels, (n, width) = len(states), y[:-20].shape
    design = torch.zeros(n_levels, n, width, n_levels + width, dtype=torch.float64)
    for k in range(n_levels):
        design[k, :, :, k if gate == "level" else 0] = states[k, :-20]
    design[..., n_levels:] = torch.eye(width)
    target = y[:-20].double().expand(n_levels, n, width)
    design, target = design.flatten(0, 2), target.flatten()
    solution = torch.linalg.lstsq(design, target[:, None], driver="gelsd").solution
    best = float((design @ solution - target[:, None]).square().sum()) / (n_levels * n)
    assert facts["train_mse"] == pytest.approx(best, rel=1e-4)
    torch.testing.assert_close(jump.gates, solution[: len(jump.gates), 0].float(), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("gate", ["none", "level", "shared", "fixed"])
def test_gate_and_bias_by_divergence_are_near_what_a_general_optimiser_finds(study, fitted, gate):
    jump = fitted(None, "kl", "post_norm", rank=None, gate=gate, inputs="none")[0]
    unembedding = study[1]
    states, y = (part[..., :-20, :] for part in true_rows(study, None))
    full = log_softmax(unembedding.project(y), -1).expand(3, -1, -1)

    def divergence(bias, gates):
        logits = unembedding.project(bias + gates[:, None, None] * states)
        return kl_div(log_softmax(logits, -1), full, reduction="sum", log_target=True) / full[..., 0].numel()

    n_gates = {"none": 0, "level": 3, "shared": 1, "fixed": 0}[gate]
    bias, gates = torch.zeros(12, requires_grad=True), torch.zeros(n_gates, requires_grad=True)
    constant = torch.full((1,), float(gate == "fixed"))
    optimiser = torch.optim.LBFGS([bias, gates], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = divergence(bias, gates if n_gates else constant)
        loss.backward()
        return loss

    optimiser.step(closure)
    best, start = closure().item(), divergence(torch.zeros(12), constant).item()
    folded = jump.fold()
    found = divergence((folded(y[:1], 0) @ folded.B)[0], gates_of(jump, 3)).item()
    assert best <= found < best + 0.03 * (start - best)


@pytest.mark.parametrize("fit", [name for name, facts in FITS.items() if not facts.gated])
@pytest.mark.parametrize("inputs", ["none", "shuffled"])
def test_fits_that_take_no_other_inputs_refuse_them(study, fit, inputs):
    message = error_of(lambda: fit_jump(*study, 1, fit, "post_norm", 1, "mixed", 0, CPU, inputs=inputs))
    assert message == f"inputs are {inputs} with fit {fit}, expected fit exact or kl"


def test_a_rank_of_a_jump_without_inputs_is_refused(study):
    message = error_of(lambda: fit_jump(*study, 1, "exact", "post_norm", 3, "mixed", 0, CPU, inputs="none"))
    assert message == "rank is 3 with inputs none, expected 1, since all that is left of the jump is a bias"


def test_inputs_of_no_known_kind_are_refused(study):
    message = error_of(lambda: fit_jump(*study, 1, "exact", "post_norm", 3, "mixed", 0, CPU, inputs="words"))
    assert message == "inputs are words, expected states, none, shuffled"
