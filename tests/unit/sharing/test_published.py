"""A published jump predicts what the study evaluated, on any model that is the base model."""

import functools
import subprocess
import sys

import pandas as pd
import pytest
import torch
from handmade_activations import naive_metrics
from published_study import K
from refusals import error_of
from safetensors.torch import load_file
from tiny_models import HIDDEN_SIZE, VOCABULARY

import onejump

METRICS = ("correct", "surprisal", "exit_surprisal", "kl", "confidence")
PUBLISHED = [
    *(("paper", "joint", "joint"), ("paper", "ojfa", "ojfa"), ("paper", "all", "n_njtc")),
    *(("gated", "ojfa", "ojfa"), ("gated", "all", "n_njtc"), ("alone", "joint", "joint")),
]
# RMSNorm, LayerNorm, LayerNorm with a bias of the output head, and RMSNorm by 1 + w with a soft cap
FAMILIES = ("llama", "gpt2", "phi", "gemma2")


@torch.inference_mode()
def states_of(model, ids) -> tuple[torch.Tensor, torch.Tensor]:
    """`hidden_states` [K+1, T, H] and logits [T, V], as Transformers gives them."""
    found = model(torch.tensor([list(ids)]), output_hidden_states=True)
    return torch.stack(found.hidden_states)[:, 0].float(), found.logits[0].float()


@pytest.mark.parametrize(("variant", "kind", "method"), PUBLISHED)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_the_evaluation_comes_from_the_published_logits(
    study_of, tmp_path, family, variant, kind, method
):
    study = study_of(family)
    model = study.load_model()
    jump = onejump.Jump.from_pretrained(study.publish(tmp_path / "jump", variant, kind)).attach(model)
    evaluation = study.folder / "tiny" / "seed-0" / variant / "evaluation.parquet"
    assert compared(study, model, jump.logits, evaluation, method) == 25 * K * len(METRICS)


@pytest.mark.parametrize("family", FAMILIES)
def test_so_does_every_number_of_the_check_with_a_shortlist(study_of, tmp_path, family):
    study = study_of(family)
    model, folder = study.load_model(), study.publish(tmp_path / "jump")
    jump = onejump.Jump.from_pretrained(folder).attach(model)
    evaluation = study.folder / "tiny" / "seed-0" / "alone" / "shortlist_evaluation.parquet"
    logits = functools.partial(jump.logits, shortlist=True)
    assert compared(study, model, logits, evaluation, "joint_shortlist") == 25 * K * len(METRICS)
    tried = pd.read_parquet(evaluation.with_name("shortlist.parquet")).query("chosen")
    assert jump.config["shortlist"] == tried[["width", "tokens", "agreement", "check"]].to_dict("records")[0]


def compared(study, model, logits, evaluation, method) -> int:
    """Compare an evaluation with the logits of a jump, one sentence after another; how many numbers were compared."""
    table = pd.read_parquet(evaluation).query("method == @method").set_index(["sentence_id", "level"])
    rows = pd.read_parquet(study.folder / "tiny" / "seed-0" / "positions.parquet").query("split == 'test'")
    count = 0
    for row in rows.itertuples():
        states, full = states_of(model, row.input_ids)
        for level in range(K):
            expected = naive_metrics(*(x.double().numpy() for x in (logits(states[level, -1], level), full[-1])))
            for metric in METRICS:
                found = table.loc[(row.sentence_id, level), metric]
                assert found == pytest.approx(expected[metric], abs=1e-5), (metric, level)
                count += 1
    return count


@pytest.mark.parametrize(("family", "variant", "kind"), [("llama", "alone", "joint"), ("gemma2", "gated", "all")])
def test_the_formula_of_the_card_gives_the_logits(study_of, tmp_path, family, variant, kind):
    study = study_of(family)
    model, folder = study.load_model(), study.publish(tmp_path / "jump", variant, kind)
    jump, tensors = onejump.Jump.from_pretrained(folder).attach(model), load_file(folder / "jump.safetensors")
    formula = "y = (h @ P[0] + q[0]) * scales[k] @ B[0]" if kind == "joint" else "y = (h @ P[j] + q[j]) @ B[j]"
    assert f"{formula} + gates[k] * final_norm(h)\n" in (folder / "README.md").read_text()
    states, _ = states_of(model, range(5, 15))
    for level in range(K):
        P, q, B = (tensors[name][level if kind == "all" else 0] for name in ("P", "q", "B"))
        with torch.inference_mode():
            z = (states[level] @ P + q) * (tensors["scales"][level] if kind == "joint" else 1)
            y = z @ B + tensors["gates"][level] * model.model.norm(states[level])
            logits = model.lm_head(y)
        if cap := getattr(model.config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        torch.testing.assert_close(jump.logits(states[level], level), logits, rtol=1e-5, atol=1e-5)


def test_the_metrics_in_the_config_are_the_studys(study, folder):
    jump = onejump.Jump.from_pretrained(folder)
    levels = pd.read_csv(study.folder / "summary" / "levels.csv").query("variant == 'alone'")
    for name, method in (("jump", "joint"), ("identity", "identity")):
        expected = levels[levels["method"] == method].sort_values("level")
        for metric, found in jump.config["metrics"][name].items():
            assert found == pytest.approx(expected[metric].tolist(), abs=1e-6)
    assert jump.config["metrics"]["sentences"] == 25


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_hidden_states_may_have_any_shape_and_dtype(study, folder, shape, dtype):
    jump = onejump.Jump.from_pretrained(folder).attach(study.load_model())
    h = torch.randn(*shape, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = jump.logits(h, 1)
    assert found.shape == (*shape, VOCABULARY) and found.dtype == torch.float32
    rows = [jump.logits(row.float(), 1) for row in h.reshape(-1, HIDDEN_SIZE)]
    if rows:
        torch.testing.assert_close(found.reshape(-1, VOCABULARY), torch.stack(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("variant", "kind"), [("paper", "joint"), ("alone", "joint"), ("gated", "all")])
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 3e-3), ("float64", 1e-5)])
def test_the_model_may_have_any_dtype(study, tmp_path, variant, kind, dtype, tolerance):
    folder = study.publish(tmp_path / "jump", variant, kind)
    states, _ = states_of(study.load_model(), range(5, 15))
    expected, found = (
        onejump.Jump.from_pretrained(folder).attach(model).logits(states[1], 1)
        for model in (study.load_model(), study.load_model(dtype=getattr(torch, dtype)))
    )
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


def test_the_model_is_left_as_it_is(study, folder):
    model = study.load_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    onejump.Jump.from_pretrained(folder).attach(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks] == []


def test_gradients_reach_the_hidden_states(study, folder):
    jump = onejump.Jump.from_pretrained(folder).attach(study.load_model())
    h = torch.randn(3, HIDDEN_SIZE, requires_grad=True)
    jump.logits(h, 2).sum().backward()
    assert h.grad.abs().min() > 0


def test_a_jump_without_a_model_says_so(folder):
    jump = onejump.Jump.from_pretrained(folder)
    said = error_of(lambda: jump.logits(torch.zeros(HIDDEN_SIZE), 0))
    assert said == "the jump has no model; call jump.attach(model) with its base model first"


def test_a_shortlist_that_a_jump_does_not_have_is_refused(study, tmp_path):
    jump = onejump.Jump.from_pretrained(study.publish(tmp_path / "jump", "gated", "all")).attach(study.load_model())
    said = error_of(lambda: jump.logits(torch.zeros(HIDDEN_SIZE), 0, shortlist=True))
    assert said.startswith("the jump was published without a shortlist, which variants with jumps: joint and gate: ")


@pytest.mark.parametrize("kind", ["joint", "all"])
@pytest.mark.parametrize("level", [-1, K, 1.5, "1", None])
def test_a_level_out_of_range_is_refused(study, tmp_path, level, kind):
    jump = onejump.Jump.from_pretrained(study.publish(tmp_path / "jump", "paper", kind)).attach(study.load_model())
    said = error_of(lambda: jump.logits(torch.zeros(HIDDEN_SIZE), level))
    assert said == f"level {level} is out of range; this jump has levels 0..2"


@pytest.mark.parametrize("shape", [(), (HIDDEN_SIZE + 1,), (HIDDEN_SIZE, 2)])
def test_hidden_states_of_another_width_are_refused(study, folder, shape):
    jump = onejump.Jump.from_pretrained(folder).attach(study.load_model())
    said = error_of(lambda: jump.logits(torch.zeros(shape), 0))
    assert said == f"hidden states are {list(shape)}, expected a last dimension of 32"


def test_importing_is_quick_and_needs_neither_torch_nor_snakemake():
    """The least of several times, since the machine may be busy."""
    code = """
import sys, time
start = time.perf_counter()
import onejump
took = time.perf_counter() - start
assert not {"torch", "pandas", "transformers", "numpy", "matplotlib"} & sys.modules.keys()
assert "Jump" in onejump.__all__
from onejump import Jump
assert "torch" in sys.modules and "snakemake" not in sys.modules
assert Jump.__module__.startswith("onejump.")
print(took)
"""
    took = [
        float(subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout)
        for _ in range(2)
    ]
    assert min(took) < 0.2


def test_what_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'jump'"):
        _ = onejump.jump
