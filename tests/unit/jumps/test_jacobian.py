"""The Jacobian lens against derivatives that PyTorch's own function takes, one prompt at a time."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from tiny_models import FAMILIES, HIDDEN_SIZE, N_BLOCKS, tiny_model
from torch.autograd.functional import jacobian

from onejump import stages
from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.jumps.jacobian import FIRST, draw_prompts, jacobian_lenses, mean_jacobians
from onejump.models.anatomy import Anatomy, find_anatomy
from onejump.parameters import Compute, Model

PROMPTS = [[3, 14, 15, 92, 65], [35, 89, 7], [9, 3, 23, 84, 62, 64, 33]]


def naive(anatomy: Anatomy, ids: list[int], level: int) -> torch.Tensor:
    """Derivatives of h^K at all later positions by h^k, from a pass in which h^k is replaced: [H, H]."""

    def final(h: torch.Tensor) -> torch.Tensor:
        def enter(module, args):
            found.append(args[0])

        def replaced(module, args, kwargs):
            return ((h, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": h})

        found = []
        hooks = [anatomy.blocks[level].register_forward_pre_hook(replaced, with_kwargs=True)]
        hooks.append(anatomy.norm.register_forward_pre_hook(enter))
        try:
            anatomy.model(input_ids=torch.tensor([ids]), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return found[0]

    with torch.no_grad():
        states = {}
        anatomy.run(torch.tensor([ids]), lambda k, h: states.setdefault(k, h.clone()))
    whole = jacobian(final, states[level])[0, :, :, 0]  # [T, H, T, H]
    return whole[FIRST:, :, FIRST:].sum(0).mean(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_level_has_the_mean_derivative_of_the_final_state(monkeypatch, family):
    monkeypatch.setattr("onejump.jumps.jacobian.JACOBIAN_ELEMENTS", 5 * 7 * HIDDEN_SIZE)  # so that passes are several
    anatomy = find_anatomy(tiny_model(family))
    found = mean_jacobians(anatomy, PROMPTS)
    assert found.shape == (N_BLOCKS, HIDDEN_SIZE, HIDDEN_SIZE)
    for level in range(N_BLOCKS):
        expected = torch.stack([naive(anatomy, ids, level) for ids in PROMPTS]).mean(0)
        torch.testing.assert_close(found[level], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_an_interrupted_computation_goes_on_to_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEJUMP_CHECKPOINT_SECONDS", "0")
    anatomy, cpu = find_anatomy(tiny_model("llama")), torch.device("cpu")
    expected = mean_jacobians(anatomy, PROMPTS)

    class Interrupt(Checkpoint):
        def save(self, state):
            super().save(state)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mean_jacobians(anatomy, PROMPTS, checkpoint=Interrupt(tmp_path / "lens", {}, cpu))
    assert torch.equal(mean_jacobians(anatomy, PROMPTS, checkpoint=Checkpoint(tmp_path / "lens", {}, cpu)), expected)


def test_blocks_without_derivatives_are_refused_in_one_line():
    anatomy = find_anatomy(tiny_model("llama"))
    forward = anatomy.blocks[1].forward
    anatomy.blocks[1].forward = lambda h, **given: forward(h, **given).detach()
    with pytest.raises(OnejumpError, match=r"^LlamaForCausalLM: its blocks cannot be differentiated \(.*\); leave"):
        mean_jacobians(anatomy, PROMPTS)


def test_prompts_are_training_sentences_of_the_text_that_is_asked_for():
    columns = {
        "split": ["train", "test", "train", "train", "train"],
        "input_ids": [[1, 2], [3, 4], [5], [6, 7], [8, 9]],
    }
    table = pa.table(columns | {"origin": ["corpus", "corpus", "corpus", "generated", "corpus"]})
    assert sorted(draw_prompts(table, 9, "both", 0)) == [[1, 2], [6, 7], [8, 9]]  # of one token there is no derivative
    assert draw_prompts(table, 9, "generated", 0) == [[6, 7]]
    assert len(draw_prompts(pa.table(columns), 2, "both", 0)) == 2
    drawn = {tuple(draw_prompts(table, 1, "corpus", seed)[0]) for seed in range(9)}
    assert drawn == {(1, 2), (8, 9)}
    with pytest.raises(OnejumpError, match="has no training sentence of more than 1 tokens"):
        draw_prompts(table.slice(1, 2), 9, "both", 0)


def test_an_unknown_lens_is_refused_before_a_model_is_loaded():
    given = (Model("no/such-model"), Compute("cpu"), Path("unembedding"), Path("positions"))
    with pytest.raises(OnejumpError, match=r"^--lens jtc: expected one of jacobian_lens, jacobian_lens_low_rank"):
        stages.fit_jacobian_lens(*given, ["jtc"], [Path("out")])


def test_the_lens_is_cut_by_its_singular_values_and_averaged_over_levels():
    J = torch.randn(3, 250, 250, generator=torch.Generator().manual_seed(0))
    h = torch.randn(4, 250, generator=torch.Generator().manual_seed(1))
    lenses = jacobian_lenses(J)
    assert [len(levels) for levels in lenses.values()] == [3, 3, 1]
    for level in range(3):
        torch.testing.assert_close(lenses["jacobian_lens"][level](h), h @ J[level].T)
        U, S, Vh = torch.linalg.svd(J[level].double())
        S[2:] = 0  # of rank floor(250 / 100)
        expected = (h.double() @ (U * S @ Vh).T).float()
        torch.testing.assert_close(lenses["jacobian_lens_low_rank"][level](h), expected, rtol=1e-4, atol=1e-4)
        assert [part.shape for part in lenses["jacobian_lens_low_rank"][level].factors] == [(250, 2), (2, 250)]
    torch.testing.assert_close(lenses["jacobian_lens_mean"][0](h), h @ J.mean(0).T)
