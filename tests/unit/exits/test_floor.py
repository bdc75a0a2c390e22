"""The floor, against distributions counted one sentence at a time."""

import numpy as np
import pandas as pd
import pytest
import torch
from handmade_activations import K, make_activations, make_head, naive_metrics, naive_norm, naive_project
from scipy.optimize import minimize_scalar

from onejump.exits import chunks, floor
from onejump.exits.columns import METRICS, REFERENCE_METHODS
from onejump.exits.floor import BACK_OFF, inverse_temperature, inverse_temperatures
from onejump.exits.metrics import Prediction
from onejump.exits.references import evaluate_references

CPU = torch.device("cpu")


@pytest.fixture(params=[None, 20.0], ids=["plain", "softcap"])
def splits(request, tmp_path):
    """Training and test activations, and the unembedding."""
    head = make_head(130, softcap=request.param)
    train, unembedding = make_activations(tmp_path / "train", head, (40, 23), split="train", seed=70)
    return train, make_activations(tmp_path / "test", head)[0], unembedding


def evaluate(train, test, unembedding) -> pd.DataFrame:
    """The references' table."""
    return evaluate_references(train, test, unembedding, CPU).to_pandas()


def evaluate_floor(train, test, unembedding) -> dict[str, np.ndarray]:
    """METRICS [metric, N] of each method that does not depend on the level, which is the same at each."""
    found = {}
    for method, rows in evaluate(train, test, unembedding).groupby("method", observed=True):
        if method in ("constant", "constant_by_position", "token_table"):
            levels = [level[list(METRICS)].to_numpy(float).T for _, level in rows.groupby("level")]
            assert len(levels) == K
            assert all(np.array_equal(level, levels[0]) for level in levels)
            found[method] = levels[0]
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def naive_logits(activations, unembedding, level: int = K) -> list[np.ndarray]:
    return [naive_project(unembedding, naive_norm(unembedding, h)) for h in activations.level(level).double().numpy()]


def naive_floor(train, test, unembedding) -> dict[str, list[dict]]:
    """Metrics of each method for each test sentence."""
    known = [softmax(logits) for logits in naive_logits(train, unembedding)]
    positions, tokens = train.positions.tolist(), train.token_ids.tolist()
    constant = np.mean(known, 0)
    found = {"constant": [], "constant_by_position": [], "token_table": []}
    for i, full in enumerate(naive_logits(test, unembedding)):
        first = int(test.positions[i]) == 0
        alike = [p for p, position in zip(known, positions, strict=True) if (position == 0) == first]
        after = [p for p, token in zip(known, tokens, strict=True) if token == int(test.token_ids[i])]
        predictions = {
            "constant": constant,
            "constant_by_position": np.mean(alike, 0),
            "token_table": (np.sum(after, 0) + BACK_OFF * constant) / (len(after) + BACK_OFF),
        }
        for name, prediction in predictions.items():
            found[name].append(naive_metrics(np.log(prediction), full))
    return found


@pytest.mark.parametrize("rows", [1, 8, 1000])
def test_the_floor_is_what_counting_gives(splits, monkeypatch, rows):
    for module in (chunks, floor):
        monkeypatch.setattr(module, "ROWS", {"cpu": rows})
    train, test, unembedding = splits
    assert set(test.token_ids.tolist()) - set(train.token_ids.tolist()) == set()
    found = evaluate_floor(train, test, unembedding)
    for method, rows in naive_floor(train, test, unembedding).items():
        for metric, values in zip(METRICS, found[method], strict=True):
            np.testing.assert_allclose(values, [row[metric] for row in rows], rtol=2e-4, atol=2e-5, err_msg=method)


def test_a_token_that_training_never_saw_falls_back_to_the_constant(splits):
    train, test, unembedding = splits
    test.token_ids = test.token_ids + 1000
    found = evaluate_floor(train, test, unembedding)
    np.testing.assert_allclose(found["token_table"], found["constant"], rtol=1e-5)


def test_without_first_positions_in_training_they_are_predicted_by_all(splits):
    train, test, unembedding = splits
    train.positions = train.positions + 1
    found = evaluate_floor(train, test, unembedding)
    np.testing.assert_allclose(found["constant_by_position"], found["constant"], rtol=1e-5)


def test_no_other_constant_has_a_smaller_divergence_on_the_training_sentences(splits):
    train, _, unembedding = splits
    best = evaluate_floor(train, train, unembedding)["constant"][METRICS.index("kl")].mean()
    known = [softmax(logits) for logits in naive_logits(train, unembedding)]
    generator = np.random.default_rng(0)
    for _ in range(20):
        other = softmax(np.log(np.mean(known, 0)) + 0.1 * generator.standard_normal(130))
        divergence = np.mean([(p * np.log(p / other)).sum() for p in known])
        assert divergence > best


def test_temperatures_have_the_smallest_divergence(splits):
    train, _, unembedding = splits
    slice_ = train.rows(len(train) - len(train) // 10, len(train))
    full = [softmax(logits) for logits in naive_logits(slice_, unembedding)]
    for level, found in enumerate(inverse_temperatures(train, unembedding, CPU)):
        identity = naive_logits(slice_, unembedding, level)

        def divergence(s: float, identity=identity) -> float:
            return np.mean([(p * np.log(p / softmax(s * q))).sum() for p, q in zip(full, identity, strict=True)])

        candidates = np.geomspace(found / 2, found * 2, 41)
        assert min(map(divergence, candidates)) >= divergence(found) - 1e-9
        assert abs(found - 1) > 0.01


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e2, 1e4])
def test_a_temperature_is_found_for_logits_of_any_size(size):
    """Gemma's early states give logits of hundreds: all probability is on one token, and the divergence is enormous."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 300, generator=generator)
    full = Prediction.of(logits + torch.randn(40, 300, generator=generator))
    found = inverse_temperature(size * logits, full)
    p, q = full.probabilities.double().numpy(), logits.double().numpy()

    def divergence(log_s: float) -> float:
        return -np.mean([(own * np.log(softmax(np.exp(log_s) * other))).sum() for own, other in zip(p, q, strict=True)])

    best = minimize_scalar(divergence, bounds=(np.log(1e-2), np.log(1e2)), method="bounded").x
    assert found * size == pytest.approx(np.exp(best), rel=2e-3)


def test_logits_that_speak_against_the_full_model_are_all_but_ignored():
    logits = torch.tensor([[3.0, 1.0, 0.0]])
    full = Prediction.of(-logits)
    assert 0 < inverse_temperature(logits, full) < 1e-3


def test_temperature_changes_the_probabilities_of_identity_and_not_its_predictions(splits):
    table = evaluate(*splits)
    assert set(table["method"]) == set(REFERENCE_METHODS)
    identity, tempered = (
        table[table["method"] == method].reset_index() for method in ("identity", "identity_temperature")
    )
    for name in ("correct", "correct_at_5", "exit_surprisal"):
        assert identity[name].equals(tempered[name])
    assert tempered["kl"].mean() < identity["kl"].mean()
