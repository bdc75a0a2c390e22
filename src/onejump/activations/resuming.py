"""What a checkpoint holds of passes that stand before a block, and how they come to stand there again.

That is what the block before has given to each batch. Passes that resume begin anew with all earlier blocks giving
just that, so they are where they were if the model keeps nothing else from one block to the next. Whether it does is
tried before a checkpoint is written: a pass that skips must reach the block with the same arguments.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onejump.models.passes import Pass

logger = logging.getLogger(__name__)


def resumable(under_way: Sequence[Pass], trial: Pass) -> bool:
    """Whether what each pass was given by the block that it has passed last is enough for a checkpoint.

    Args:
        under_way: passes that stand before the same block.
        trial: a new pass of the last one's batch.
    """
    level, standing = under_way[-1].level, under_way[-1]
    if level == 0 or not all(_plain(one.given) for one in under_way):
        return False
    trial.skip_to(level, standing.given)
    found = _alike(trial.arguments, standing.arguments)
    trial.throw()
    if not found:
        logger.warning("this model keeps more than hidden states between its blocks, so no checkpoint is written")
    return found


def resume(one: Pass, level: int, given: object, device: torch.device) -> None:
    """Let a new pass stand before a block, from what a checkpoint holds."""
    one.skip_to(level, _restored(given, device))


def _plain(value: object) -> bool:
    """Whether a checkpoint can hold a value."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, Tensor | bool | int | float | str)


def _restored(value: object, device: torch.device) -> object:
    """A value of a checkpoint on the device; its lists were tuples."""
    if isinstance(value, list):
        return tuple(_restored(item, device) for item in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _alike(one: object, other: object) -> bool:
    """Whether two values hold the same tensors and numbers, in objects of the same types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if one is other or not hasattr(one, "__dict__") or callable(one):
        return one is other or callable(one) or one == other
    return _alike(vars(one), vars(other))
