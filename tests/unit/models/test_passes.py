"""Forward passes that stand still give what a pass without a stop gives, whatever runs between, and leave no trace."""

import gc
import itertools
import weakref

import pytest
import torch
from levels_by_hand import random_ids
from tiny_models import ALL_FAMILIES, N_BLOCKS, tiny_model

from onejump.models.anatomy import find_anatomy


def levels_of(anatomy, ids) -> list[torch.Tensor]:
    found = []
    anatomy.run(ids, lambda level, h: found.append(h.clone()))
    return found


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_passes_that_take_turns_give_what_each_gives_alone(family):
    """In two orders: all before the same block, and one always a block ahead of the other."""
    anatomy = find_anatomy(tiny_model(family))
    ids = [random_ids((2, 9)), random_ids((1, 17)), random_ids((3, 1))]
    with torch.inference_mode():
        expected = [levels_of(anatomy, one) for one in ids]
        with anatomy.passes() as begin:
            under_way = [begin(one) for one in ids]
            for level in range(N_BLOCKS + 1):
                for one, levels in zip(under_way, expected, strict=True):
                    assert torch.equal(next(one), levels[level])
                    assert one.level == level
            ahead, behind = begin(ids[0]), begin(ids[1])
            next(ahead)
            for level in range(N_BLOCKS):
                assert torch.equal(next(ahead), expected[0][level + 1])
                assert torch.equal(next(behind), expected[1][level])


def test_a_pass_ends_after_the_last_level_without_the_output_head():
    model = tiny_model("llama")
    anatomy = find_anatomy(model)
    model.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("the output head was run"))
    with torch.inference_mode(), anatomy.passes() as begin:
        one = begin(random_ids((1, 4)))
        assert len(list(one)) == N_BLOCKS + 1
        assert one.dead
        with pytest.raises(StopIteration):
            next(one)


def test_what_passes_hold_is_let_go_at_the_end_even_after_an_error():
    model = tiny_model("llama")
    anatomy = find_anatomy(model)
    under_way, states = [], []

    def broken_off() -> None:
        with anatomy.passes() as begin:
            under_way.extend(begin(random_ids((1, 4))) for _ in range(3))
            states.append(weakref.ref(next(under_way[0])))
            list(itertools.islice(under_way[1], 2))
            assert states[0]() is not None  # it is in the frames of the model
            raise ZeroDivisionError

    with torch.inference_mode():
        with pytest.raises(ZeroDivisionError):
            broken_off()
        assert all(one.dead for one in under_way)
        under_way.clear()
        gc.collect()
        assert states[0]() is None
        assert not any(block._forward_pre_hooks or block._forward_hooks for block in anatomy.blocks)
        assert levels_of(anatomy, random_ids((1, 4)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("level", range(1, N_BLOCKS + 1))
def test_a_pass_that_skips_blocks_goes_on_as_one_that_ran_them(family, level):
    anatomy, ids = find_anatomy(tiny_model(family)), random_ids((2, 9))
    with torch.inference_mode(), anatomy.passes() as begin:
        ran, skipped = begin(ids), begin(ids)
        expected = list(itertools.islice(ran, level + 1))[-1]
        skipped.skip_to(level, ran.given)
        assert skipped.level == level
        assert torch.equal(skipped.arguments[0][0], expected)
        assert not any("forward" in vars(block) for block in anatomy.blocks)
        for one, other in zip(ran, skipped, strict=True):
            assert torch.equal(one, other)
