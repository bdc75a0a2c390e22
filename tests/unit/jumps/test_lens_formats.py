"""Lenses in the files of other tools: read, written, and refused, with each map computed by hand."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import make_activations, make_levels, normal
from refusals import error_of, files_under
from safetensors.torch import load_file

from onejump.files.tensors import TensorFile
from onejump.jumps.jacobian import jacobian_lenses
from onejump.jumps.lenses import AffineLens, LensFile, save_lens
from onejump.models.unembedding import Unembedding
from onejump.stages import import_lens
from onejump.study_stages import export_lens

ROOT = Path(__file__).parents[3]
K, H = 3, 12
STATES = normal(5, H, seed=1)
WEIGHTS = normal(K, H, H, seed=2)
BIASES = normal(K, H, seed=3)


@pytest.fixture
def unembedding(tmp_path):
    """The file of a model's unembedding; the model is called handmade."""
    make_activations(tmp_path / "model", make_levels(9), [9])
    return tmp_path / "model" / "unembedding.safetensors"


def code_of_the_page():
    """What docs/method.md says turns exported lenses into the files of other tools: for tuned-lens, for Jacobians."""
    page = (ROOT / "docs" / "method.md").read_text()
    (code,) = re.findall(r"^```python\n(import torch\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    imports, tuned, jacobians = re.fullmatch(r"(.*?)\n\n(torch\.save.*?)\n\n(with .*)", code, re.DOTALL).groups()
    return f"{imports}\n{tuned}", f"{imports}\n{jacobians}"


def saved(path, content):
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path)
    return path


def tuned_lens(folder, unembedding, params=(), **changes):
    """A folder as tuned-lens writes it, with some tensors and keys of its config changed."""
    whole = {f"{layer}.weight": WEIGHTS[layer] for layer in range(K)}
    saved(folder / "params.pt", whole | {f"{layer}.bias": BIASES[layer] for layer in range(K)} | dict(params))
    printed = np.array_str(Unembedding.load(unembedding).weight.numpy(), precision=1)
    config = {"base_model_name_or_path": "models/Handmade", "d_model": H, "num_hidden_layers": K, "bias": True}
    config |= {"base_model_revision": None, "unembed_hash": hashlib.sha256(printed.encode()).hexdigest()}
    (folder / "config.json").write_text(json.dumps(config | {"lens_type": "linear_tuned_lens"} | changes))
    return folder


def jacobian_lens(path, layers=range(K - 1), **changes):
    """A file as the Jacobian lens's package writes it."""
    J = {layer: WEIGHTS[layer].half() for layer in layers}
    return saved(path, {"J": J, "n_prompts": 7, "source_layers": list(J), "d_model": H} | changes)


def test_a_tuned_lens_is_what_its_layers_add_to_the_state_of_the_same_level(unembedding, tmp_path):
    source, out = tuned_lens(tmp_path / "theirs", unembedding), tmp_path / "lens.safetensors"
    import_lens(unembedding, "imported_tuned_lens", str(source), out)
    lens = LensFile(out, Unembedding.load(unembedding))
    assert (lens.lens, lens.target) == ("imported_tuned_lens", "pre_norm")
    assert TensorFile(out).value("multiply_adds") is None
    for level in range(K):
        expected = [h + WEIGHTS[level] @ h + BIASES[level] for h in STATES]
        torch.testing.assert_close(lens.at(level)(STATES), torch.stack(expected))


def test_layer_l_of_a_jacobian_lens_is_level_l_plus_1_and_level_0_is_identity(unembedding, tmp_path):
    source, out = jacobian_lens(tmp_path / "theirs.pt"), tmp_path / "lens.safetensors"
    import_lens(unembedding, "imported_jacobian_lens", str(source), out)
    lens = LensFile(out, Unembedding.load(unembedding))
    assert (lens.lens, lens.target) == ("imported_jacobian_lens", "pre_norm")
    assert TensorFile(out).value("prompts") == 7
    torch.testing.assert_close(lens.at(0)(STATES), STATES)
    for layer in range(K - 1):
        expected = [WEIGHTS[layer].half().float() @ h for h in STATES]
        torch.testing.assert_close(lens.at(layer + 1)(STATES), torch.stack(expected))


FORMS = {
    "whole": [AffineLens((WEIGHTS[level],), BIASES[level]) for level in range(K)],
    "residual": [AffineLens((WEIGHTS[level][:, :2], WEIGHTS[level][:2]), BIASES[level], True) for level in range(K)],
    "shared, without a bias": [AffineLens((WEIGHTS[0],))],
}


@pytest.mark.parametrize("form", FORMS)
def test_any_lens_before_the_norm_is_written_as_a_tuned_lens_and_read_back(unembedding, tmp_path, monkeypatch, form):
    levels, own, out = FORMS[form] * (K // len(FORMS[form])), Unembedding.load(unembedding), tmp_path / "jtc-for-others"
    save_lens(tmp_path / "lens", "jtc", FORMS[form], "pre_norm", own, {})
    export_lens(unembedding, tmp_path / "lens", "tuned_lens", out)
    params = load_file(out / "params.safetensors")
    assert set(params) == {f"{layer}.{part}" for layer in range(K) for part in ("weight", "bias")}
    for layer in range(K):
        found = [h + params[f"{layer}.weight"] @ h + params[f"{layer}.bias"] for h in STATES]
        torch.testing.assert_close(torch.stack(found), levels[layer](STATES), rtol=1e-4, atol=1e-5)
    theirs = json.loads((tuned_lens(tmp_path / "theirs", unembedding) / "config.json").read_text())
    config = json.loads((out / "config.json").read_text())
    assert config == theirs | {"base_model_name_or_path": "handmade", "base_model_revision": "1"}
    monkeypatch.chdir(tmp_path)
    exec(code_of_the_page()[0], {})
    import_lens(unembedding, "imported_tuned_lens", str(out), tmp_path / "again")
    again = LensFile(tmp_path / "again", own)
    for level in range(K):
        torch.testing.assert_close(again.at(level)(STATES), levels[level](STATES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lens", ["jacobian_lens", "jacobian_lens_low_rank", "jacobian_lens_mean"])
def test_jacobian_lenses_are_written_without_level_0_and_read_back(unembedding, tmp_path, monkeypatch, lens):
    levels, own, out = jacobian_lenses(WEIGHTS)[lens], Unembedding.load(unembedding), tmp_path / "jacobian-for-others"
    save_lens(tmp_path / "lens", lens, levels, "pre_norm", own, {"prompts": 4})
    export_lens(unembedding, tmp_path / "lens", "jacobian_lens", out)
    monkeypatch.chdir(tmp_path)
    exec(code_of_the_page()[1], {})
    found = torch.load(out / "lens.pt", weights_only=True)
    assert [found[key] for key in ("n_prompts", "source_layers", "d_model")] == [4, [0, 1], H]
    import_lens(unembedding, "imported_jacobian_lens", str(out / "lens.pt"), tmp_path / "again")
    again = LensFile(tmp_path / "again", own)
    for level in range(1, K):
        expected = levels[level if len(levels) > 1 else 0](STATES)
        theirs = torch.stack([found["J"][level - 1] @ h for h in STATES])
        torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.at(level)(STATES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "target", "message"),
    [
        ("jacobian_lens", "pre_norm", "has a bias, which a Jacobian lens has no place for; write it as a tuned lens"),
        ("jacobian_lens", "post_norm", "predicts the target post_norm, expected pre_norm; give a lens for that target"),
        ("tuned_lens", "post_norm", "predicts the target post_norm, expected pre_norm; give a lens for that target"),
    ],
)
def test_what_a_form_cannot_hold_is_refused(unembedding, tmp_path, form, target, message):
    lens = tmp_path / "lens"
    save_lens(lens, "jtc", FORMS["whole"], target, Unembedding.load(unembedding), {})
    before = files_under(tmp_path)
    assert error_of(lambda: export_lens(unembedding, lens, form, tmp_path / "out")) == f"{lens}: {message}"
    assert files_under(tmp_path) == before


WRONG_TUNED_LENSES = {
    "width": ({"d_model": 16}, {}, "config.json: d_model is 16, expected 12; give a tuned lens of handmade"),
    "levels": ({"num_hidden_layers": 4}, {}, "config.json: num_hidden_layers is 4, expected 3; give a tuned lens of"),
    "type": ({"lens_type": "mlp"}, {}, "config.json: lens_type is mlp, expected linear_tuned_lens; give a tuned lens"),
    "model": ({"base_model_name_or_path": "a/b"}, {}, "config.json: its base model is a/b, expected handmade; give a"),
    "head": ({"unembed_hash": "0a"}, {}, "config.json: unembed_hash is 0a, expected "),
    "extra": ({}, {"3.weight": WEIGHTS[0]}, "params.pt: also has 3.weight, expected 0.weight to 2.bias; give a lens"),
    "shape": ({}, {"1.bias": BIASES}, "params.pt: 1.bias has shape (3, 12), expected (12,); give a lens of handmade"),
    "no tensor": ({}, {"1.bias": 4}, "params.pt: 1.bias has shape (), expected (12,); give a lens of handmade"),
    "NaN": ({}, {"1.bias": BIASES[0] * torch.nan}, "params.pt: 1.bias has NaN or infinite values, expected none; fit"),
}


@pytest.mark.parametrize("wrong", WRONG_TUNED_LENSES)
def test_a_tuned_lens_of_another_model_or_form_is_refused(unembedding, tmp_path, wrong):
    changes, params, message = WRONG_TUNED_LENSES[wrong]
    source = tuned_lens(tmp_path / "theirs", unembedding, params, **changes)
    found = error_of(lambda: import_lens(unembedding, "imported_tuned_lens", str(source), tmp_path / "out"))
    assert found.startswith(f"{source}/{message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["handmade", "org/HandMade", "/models/handmade"])
def test_a_base_model_is_known_by_the_last_part_of_its_name(unembedding, tmp_path, name):
    source = tuned_lens(tmp_path / "theirs", unembedding, base_model_name_or_path=name, unembed_hash=None)
    import_lens(unembedding, "imported_tuned_lens", str(source), tmp_path / "out")


def test_a_tuned_lens_without_a_file_is_refused(unembedding, tmp_path):
    source = tuned_lens(tmp_path / "theirs", unembedding)
    for name in ("params.pt", "config.json"):
        (source / name).unlink()
        found = error_of(lambda: import_lens(unembedding, "imported_tuned_lens", str(source), tmp_path / "out"))
        assert found == f"{source / name}: no such file; run the stage that makes it, or correct the path"


WRONG_JACOBIAN_LENSES = {
    "checkpoint": ({"J": None}, "holds J, n_prompts, source_layers, d_model, expected J, n_prompts, source_layers and"),
    "some layers": ({"layers": [1]}, "has no J[0], expected J[0] to J[1]; give a lens of handmade"),
    "last layer": ({"layers": range(3)}, "also has J[2], expected J[0] to J[1]; give a lens of handmade"),
    "width": ({"J": {0: BIASES, 1: BIASES}}, "J[0] has shape (3, 12), expected (12, 12); give a lens of handmade"),
    "model": ({"metadata": {"model_name": "gpt2"}}, "its base model is gpt2, expected handmade; give a lens of that"),
    "target": ({"metadata": {"target_layer": 1}}, "predicts layer 1, expected the last one, 2; give a lens of that"),
}


@pytest.mark.parametrize("wrong", WRONG_JACOBIAN_LENSES)
def test_a_jacobian_lens_of_another_model_or_form_is_refused(unembedding, tmp_path, wrong):
    changes, message = WRONG_JACOBIAN_LENSES[wrong]
    source = jacobian_lens(tmp_path / "theirs.pt", **changes)
    found = error_of(lambda: import_lens(unembedding, "imported_jacobian_lens", str(source), tmp_path / "out"))
    assert found.startswith(f"{source}: {message}")
    assert not (tmp_path / "out").exists()


class Runs:
    """What leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


def test_a_file_that_would_run_something_or_is_damaged_is_refused(unembedding, tmp_path):
    source, trace = tmp_path / "theirs.pt", tmp_path / "trace"
    for content in (lambda: torch.save(Runs(trace), source), lambda: source.write_bytes(b"PK"), source.unlink):
        content()
        found = error_of(lambda: import_lens(unembedding, "imported_jacobian_lens", str(source), tmp_path / "out"))
        assert found.startswith(f"{source}: ")
        assert "cannot be read as plain tensors (" in found or "no such file" in found
        assert not trace.exists()
        assert not (tmp_path / "out").exists()
