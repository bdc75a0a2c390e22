"""A stand-in for an accelerator that has no float64 and whose name no table lists."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = torch.device("privateuseone", 0)


class _OnDevice(Tensor):
    """A tensor on the device; its values are kept on the CPU."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "_OnDevice":
        if values.dtype == torch.float64:
            raise TypeError("Cannot convert a tensor of this device to float64")
        return Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=DEVICE, requires_grad=False
        )

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    """Run an operation on the CPU; its results are on the device if the operands are, or if it asks for the device."""
    tensors = []
    tree_map_only(Tensor, tensors.append, (args, kwargs))
    device = kwargs.get("device")
    here = [tensor for tensor in tensors if isinstance(tensor, _OnDevice)]
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, _OnDevice) and tensor.dim() > 0]
    if here and elsewhere and function is not torch.ops.aten.copy_.default:
        raise RuntimeError(f"{function}: operands on {DEVICE} and {elsewhere[0].device}")
    on_device = bool(here) if device is None else torch.device(device).type == DEVICE.type
    if device is not None:
        kwargs = kwargs | {"device": "cpu"}
    plain_args, plain_kwargs = tree_map_only(_OnDevice, lambda tensor: tensor.values, (args, kwargs))
    found = function(*plain_args, **plain_kwargs)
    if function._schema.is_mutable:  # the result is one of the operands
        same = {id(tensor.values): tensor for tensor in here}
        return tree_map_only(Tensor, lambda tensor: same.get(id(tensor), tensor), found)
    return tree_map_only(Tensor, _OnDevice, found) if on_device else found


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


@contextmanager
def strange_device() -> Iterator[torch.device]:
    """The device, which works inside the block and stays known to PyTorch after it."""
    _setup_privateuseone_for_python_backend("strange")
    with _Mode():
        yield DEVICE
