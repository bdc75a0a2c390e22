"""Blocks that lag behind give what a plain pass gives, whatever has waited where; and what was run is counted."""

import pytest
import torch
from levels_by_hand import random_ids, run_with_hooks
from tiny_models import ALL_FAMILIES, N_BLOCKS, tiny_model
from transformers import DynamicCache

from onejump.models.anatomy import find_anatomy
from onejump.models.segments import Segments

# Tokens that are added, and how many segments they and all that wait run through.
COURSE = [(5, 1), (1, 3), (2, 1), (1, 2), (1, 1), (1, 2), (1, 3), (3, 2), (1, 3)]


@pytest.fixture
def texts_of():
    """A function that begins texts in the segments between some levels of a model."""
    contexts = []

    def begin(model, bounds) -> Segments:
        anatomy = find_anatomy(model)
        contexts.append(anatomy.passes())
        return Segments(anatomy, contexts[-1].__enter__(), DynamicCache(config=model.config), bounds)

    yield begin
    for context in contexts:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_states_are_those_of_a_plain_pass_whatever_has_waited(family, texts_of):
    model = tiny_model(family)
    ids = random_ids((2, sum(n for n, _ in COURSE)))
    levels, plain = run_with_hooks(model, family, ids)
    texts, seen, total = texts_of(model, [0, 1, 2, N_BLOCKS]), [0, 0, 0], 0
    with torch.no_grad():
        for added, deep in COURSE:
            texts.add(ids[:, total : total + added])
            total += added
            for number in range(deep):
                found = texts.run(number, added)
                expected = levels[number + 1][:, seen[number] : total]
                if number + 1 == N_BLOCKS:
                    expected = plain.logits[:, total - added : total]
                assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
                seen[number] = total
            assert texts.seen == seen


def test_what_was_run_is_counted(texts_of):
    texts = texts_of(tiny_model("llama"), [0, 2, N_BLOCKS])
    with torch.no_grad():
        for added, deep in ((4, 1), (1, 1), (1, 2), (1, 1)):
            texts.add(random_ids((2, added)))
            for number in range(deep):
                texts.run(number)
    assert texts.cost.block_calls == 4 * 2 + 1
    assert texts.cost.block_tokens == 2 * (3 * 2 + 2 * 1)  # two texts; the third token takes the second one along


def test_tokens_can_be_forgotten(texts_of):
    model = tiny_model("llama")
    texts, ids, other = texts_of(model, [0, 2, N_BLOCKS]), random_ids((1, 6)), random_ids((1, 3), seed=1)
    with torch.no_grad():
        texts.add(ids)
        texts.run(0)
        texts.run(1)
        texts._cache.crop(-2)
        texts.keep(4)
        texts.add(other)
        texts.run(0)
        found = texts.run(1, 3)
        expected = model(torch.cat([ids[:, :4], other], 1)).logits[:, 4:]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_cache_is_as_it_was_after_an_error(texts_of):
    model = tiny_model("llama")
    texts = texts_of(model, [0, 1, N_BLOCKS])
    layers = texts._cache.layers
    texts.add(random_ids((1, 3)))
    handle = model.model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        texts.run(0)
    handle.remove()
    assert texts._cache.layers is layers
