"""Level k is what enters block k, and a model whose parts are not found is refused by name."""

import pytest
import torch
from levels_by_hand import random_ids, relative_error, run_with_hooks
from refusals import error_of
from tiny_models import ALL_FAMILIES, HIDDEN_SIZE, N_BLOCKS, VOCABULARY, tiny_model
from torch import nn

from onejump.models.anatomy import find_anatomy
from onejump.models.unembedding import extract_unembedding


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_levels_are_what_enters_each_block_and_the_final_norm(family):
    model, ids, captured = tiny_model(family), random_ids((2, 9)), {}
    anatomy = find_anatomy(model)
    with torch.inference_mode(), anatomy.capture(captured.__setitem__):
        anatomy.backbone(input_ids=ids, use_cache=False)
    entered, output = run_with_hooks(model, family, ids)
    assert captured.keys() == entered.keys() == set(range(N_BLOCKS + 1))
    assert all(torch.equal(captured[level], entered[level]) for level in entered)
    states = output.hidden_states
    assert len(states) == N_BLOCKS + 1
    assert all(torch.equal(captured[level], states[level]) for level in range(N_BLOCKS))


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_transformers_last_hidden_state_is_the_norm_of_the_final_representation_and_not_it(family):
    model = tiny_model(family)
    unembedding, _ = extract_unembedding(model)
    entered, output = run_with_hooks(model, family, random_ids((2, 9)))
    final = entered[N_BLOCKS]
    assert relative_error(unembedding.normalise(final), output.hidden_states[-1]) < 1e-5
    assert relative_error(final, output.hidden_states[-1]) > 0.1


def test_level_0_is_the_embedding_with_what_the_architecture_adds_to_it():
    ids = random_ids((1, 7))
    llama, gpt2, gemma = (tiny_model(family) for family in ("llama", "gpt2", "gemma2"))
    with torch.inference_mode():
        expected = {
            "llama": llama.model.embed_tokens.weight[ids],
            "gpt2": gpt2.transformer.wte.weight[ids] + gpt2.transformer.wpe.weight[:7],
            "gemma2": gemma.model.embed_tokens.weight[ids] * HIDDEN_SIZE**0.5,
        }
    for model, (_, level_0) in zip((llama, gpt2, gemma), expected.items(), strict=True):
        captured = {}
        anatomy = find_anatomy(model)
        with torch.inference_mode(), anatomy.capture(captured.__setitem__):
            anatomy.backbone(input_ids=ids)
        assert torch.allclose(captured[0], level_0, rtol=1e-6)


def test_hooks_are_gone_after_a_capture_even_when_the_pass_raises():
    model, taken = tiny_model("llama"), []
    anatomy = find_anatomy(model)
    with pytest.raises(ZeroDivisionError), anatomy.capture(lambda level, h: taken.append(1 / level)):
        model(input_ids=random_ids((1, 4)))
    model(input_ids=random_ids((1, 4)))
    assert taken == []


def test_an_output_head_that_is_not_linear_is_refused_by_name():
    model = tiny_model("llama")
    model.lm_head = nn.Sequential(nn.Linear(HIDDEN_SIZE, VOCABULARY))
    message = error_of(lambda: find_anatomy(model))
    assert message.endswith("looked for a torch.nn.Linear as output head, found Sequential")


@pytest.mark.parametrize("n_lists", [0, 2])
def test_blocks_that_are_not_found_or_found_twice_are_refused_by_name(n_lists):
    model = tiny_model("llama")
    model.model.more = nn.ModuleList([nn.Identity()] * 3)
    if n_lists == 0:
        model.config.num_hidden_layers = 5
    message = error_of(lambda: find_anatomy(model))
    assert message.startswith("LlamaForCausalLM is not supported")
    assert message.endswith(f"found {n_lists}")


def test_two_final_norms_are_refused_by_name():
    model = tiny_model("llama")
    model.model.ln_f = nn.LayerNorm(HIDDEN_SIZE)
    assert error_of(lambda: find_anatomy(model)).endswith("found 2")
