"""Gated jumps by squared error, against a general optimiser and against whole predictions."""

import itertools

import numpy as np
import pytest
import torch
from handmade import CPU, naive_optimum, naive_ridge, standardise
from refusals import error_of

from onejump.analysis.claims import n_parameters
from onejump.analysis.oracle import evaluate_oracle
from onejump.analysis.scores import score_jumps
from onejump.jumps.fitting import fit_jump
from onejump.jumps.inputs import JumpInputs
from onejump.jumps.jump import target_of
from onejump.jumps.settings import ALTERNATIONS

LEVELS = {1: [1], None: [0, 1, 2]}


def rows_of(study, level):
    """Standardised inputs and normalised states of the level, or of all one below the other, and targets."""
    activations, unembedding = study
    x = torch.cat([activations.level(k) for k in LEVELS[level]]).double()
    y = target_of(activations.level(3), unembedding, "post_norm").double().repeat(len(LEVELS[level]), 1)
    number = torch.arange(len(LEVELS[level])).repeat_interleave(len(activations))
    fitted = torch.arange(len(activations)).repeat(len(LEVELS[level])) < len(activations) - 20
    return x, unembedding.normalise(x.float()).double(), y, number, fitted


def predict(jump, x, n, number):
    folded = jump.fold()
    gates = jump.gates.detach()
    return (x.float() @ folded.P + folded.q) @ folded.B + gates[
        number if len(gates) > 1 else 0 * number, None
    ] * n.float()


def general_optimum(xn, n, y, number, rank: int) -> float:
    """The smallest squared error that an optimiser finds for all parameters at once, from several starts."""
    best, n_levels, width = np.inf, int(number.max()) + 1, xn.shape[1]
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        shapes = ((width, rank), (rank,), (rank, width), (n_levels,))
        parameters = [torch.randn(s, generator=generator, dtype=torch.float64) * 0.3 for s in shapes]
        for part in parameters:
            part.requires_grad_()
        optimiser = torch.optim.LBFGS(parameters, max_iter=3000, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def error(parameters=parameters):
            A, c, B, gates = parameters
            return ((xn @ A + c) @ B + gates[number, None] * n - y).square().sum(1).mean()

        def closure(optimiser=optimiser, error=error):
            optimiser.zero_grad()
            loss = error()
            loss.backward()
            return loss

        optimiser.step(closure)
        best = min(best, error().item())
    return best


@pytest.mark.parametrize(("level", "gate"), [(1, "level"), (None, "level"), (None, "shared")])
def test_the_alternation_ends_near_what_a_general_optimiser_finds(study, monkeypatch, level, gate):
    monkeypatch.setattr("onejump.jumps.exact.RIDGES", (0.0,))
    monkeypatch.setattr("onejump.jumps.gates.ALTERNATIONS", 40)
    jump, facts = fit_jump(*study, level, "exact", "post_norm", 3, "mixed", 0, CPU, gate=gate)
    assert len(jump.gates) == (3 if (level, gate) == (None, "level") else 1)
    x, n, y, number, rows = rows_of(study, level)
    x, n, y, number = x[rows], n[rows], y[rows], number[rows] * (gate == "level")
    found = float((predict(jump, x, n, number).double() - y).square().sum(1).mean())
    assert found == pytest.approx(facts["train_mse"], rel=1e-4)
    assert found <= 1.002 * general_optimum(standardise(x), n, y, number, 3)


@pytest.mark.parametrize(("level", "gate"), [(1, "level"), (None, "level"), (None, "shared"), (1, "shared")])
@pytest.mark.parametrize("inputs", ["states", "shuffled"])
def test_the_alternation_by_moments_is_that_by_rows(study, monkeypatch, level, gate, inputs):
    monkeypatch.setattr("onejump.jumps.exact.RIDGES", (0.0,))
    choices = {"gate": gate, "inputs": inputs}
    jump, facts = fit_jump(*study, level, "exact", "post_norm", 3, "mixed", 7, CPU, **choices)
    x, n, y, number, rows = rows_of(study, level)
    if inputs == "shuffled":
        seen = JumpInputs(study[0], inputs, 7998)
        x = torch.cat([seen.level(k) for k in LEVELS[level]]).double()
    number = number * (gate == "level")
    starts = torch.tensor([k / 3 for k in LEVELS[level]], dtype=torch.float64)
    gates = starts if gate == "level" else starts.mean()[None]
    x_fit, n_fit, y_fit, number_fit = x[rows], n[rows], y[rows], number[rows]
    for _ in range(ALTERNATIONS - 1):
        left = y_fit - naive_ridge(x_fit, y_fit - gates[number_fit, None] * n_fit, 3, 0.0, x_fit)
        sums = [[part[number_fit == k].sum() for k in range(len(gates))] for part in (n_fit * left, n_fit.square())]
        gates = torch.tensor(sums[0]) / torch.tensor(sums[1])
    torch.testing.assert_close(jump.gates.double(), gates, rtol=1e-5, atol=1e-6)
    predicted = naive_ridge(x_fit, y_fit - gates[number_fit, None] * n_fit, 3, 0.0, x) + gates[number, None] * n
    errors = (predicted - y).square().sum(1)
    assert facts["train_mse"] == pytest.approx(float(errors[rows].mean()), rel=1e-6)
    assert facts["validation_mse"] == pytest.approx(float(errors[~rows].mean()), rel=1e-6)
    torch.testing.assert_close(predict(jump, x, n, number).double(), predicted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_a_fixed_gate_leaves_the_exact_fit_to_what_an_open_one_does_not_let_through(study, level):
    jump, facts = fit_jump(*study, level, "exact", "post_norm", 3, "mixed", 0, CPU, gate="fixed")
    x, n, y, _, rows = rows_of(study, level)
    assert jump.gates.tolist() == [1.0]
    assert facts["optimum_mse"] == pytest.approx(naive_optimum(x[rows], (y - n)[rows], 3), rel=1e-6)
    predicted = naive_ridge(x[rows], (y - n)[rows], 3, facts["ridge"], x)
    torch.testing.assert_close(
        predict(jump, x, n, torch.zeros(len(x), dtype=int)).double(), predicted + n, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("level", LEVELS)
def test_more_rounds_never_make_the_error_larger(study, monkeypatch, level):
    monkeypatch.setattr("onejump.jumps.exact.RIDGES", (0.0,))
    errors = []
    for rounds in (1, 2, 3, 5, 8):
        monkeypatch.setattr("onejump.jumps.gates.ALTERNATIONS", rounds)
        _, facts = fit_jump(*study, level, "exact", "post_norm", 3, "mixed", 0, CPU, gate="level")
        errors.append(facts["train_mse"])
        assert facts["gap"] == pytest.approx(0, abs=1e-9)
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("fit", ["exact", "kl"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("gate", ["level", "shared", "fixed"])
def test_a_file_holds_the_gates_and_the_error_of_the_whole_prediction(study, fitted, level, gate, fit):
    jump, file = fitted(level, fit, "post_norm", gate=gate)
    assert (file.metadata["gate"], file.metadata["inputs"]) == (gate, "states")
    n_gates = len(LEVELS[level]) if gate == "level" else 1
    assert jump.gates.shape == (n_gates,)
    assert (jump.gates == 1).all() == (gate == "fixed")
    assert n_parameters(file) == 2 * 12 * 3 + 4 * 12 + n_gates
    x, n, y, number, rows = rows_of(study, level)
    errors = (predict(jump, x, n, number).double() - y).square().sum(1)
    assert float(errors[rows].mean()) == pytest.approx(file.value("train_mse"), rel=1e-4)
    assert float(errors[~rows].mean()) == pytest.approx(file.value("validation_mse"), rel=1e-4)
    folded = jump.fold()
    assert [folded.gate(k) for k in range(3)] == jump.gates.tolist() * (3 // n_gates)


def test_scores_and_errors_of_gated_jumps_are_those_of_whole_predictions(study, fitted):
    activations, unembedding = study
    jumps = [fitted(level, "exact", "post_norm", gate="level")[0].fold() for level in range(3)]
    joint = fitted(None, "exact", "post_norm", gate="level")[0].fold()
    found = score_jumps(activations, unembedding, jumps, "post_norm", CPU)
    y = target_of(activations.level(3), unembedding, "post_norm")
    errors = torch.zeros(4, dtype=torch.float64)
    for level in range(4):
        x = activations.level(level)
        for m, jump in enumerate([*jumps, joint]):
            gate = jump.gate(level) if level < 3 or len(jump.gates) == 1 else np.nan
            whole = jump(x, level) @ jump.B + gate * unembedding.normalise(x)
            if m < 3:
                expected = torch.nn.functional.cosine_similarity(whole, y, 1)
                torch.testing.assert_close(found[m, level], expected, rtol=1e-3, atol=1e-5)
            if level < 3:
                errors[m] += (whole - y).double().square().sum(1).mean() / 3
    given = (activations, unembedding, jumps, joint, found, "1..K", "post_norm", CPU)
    np.testing.assert_allclose(evaluate_oracle(*given)["mse"].to_numpy(), errors, rtol=1e-4)


@pytest.mark.parametrize(
    ("fit", "target"), [("adam", "post_norm"), ("exact_logits", "post_norm"), ("exact", "pre_norm")]
)
def test_gates_where_there_can_be_none_are_refused(study, fit, target):
    message = error_of(lambda: fit_jump(*study, 1, fit, target, 3, "mixed", 0, CPU, gate="level"))
    assert message == (
        f"gate is level with fit {fit} and target {target}, expected fit exact or kl and target post_norm"
    )


def test_a_gate_of_no_known_kind_is_refused(study):
    message = error_of(lambda: fit_jump(*study, 1, "exact", "post_norm", 3, "mixed", 0, CPU, gate="wide"))
    assert message == "gate is wide, expected none, level, shared, fixed"
