"""Where hidden states wait between two blocks: on the device, in the host's memory, or in a memory-mapped file.

Of states that wait elsewhere the tensors stay where the model's own frames hold them. Only the memory behind them is
given back, and it is filled again before their pass goes on.
"""

import logging
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from onejump.files.atomic import OnejumpError, require_room
from onejump.models.devices import free_bytes
from onejump.models.passes import Pass, first_tensor

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


class OnDevice:
    """States wait on the device, where they are."""

    in_file = False

    def running(self, one: Pass) -> AbstractContextManager:
        """In this context, and only there, a pass may go on to the next part."""
        return nullcontext()

    def given(self, one: Pass) -> object:
        """What the block before has given to a pass that stands, for a checkpoint."""
        return one.given


class Offloaded(OnDevice):
    """States wait in the host's memory, or in files without a name in a folder."""

    def __init__(self, folder: Path | None) -> None:
        """Into a folder; or with None into the host's memory."""
        self.in_file, self._folder = folder is not None, folder
        self._held: dict[Pass, dict[int, tuple[StorageWeakRef, Tensor]]] = defaultdict(dict)  # by the storage's address
        self._spare: dict[int, list[Tensor]] = defaultdict(list)  # copies that hold nothing now, by size

    @contextmanager
    def running(self, one: Pass) -> Iterator[None]:
        """The states of a pass are on the device in this context."""
        held = self._held.pop(one, {}).values()
        for ref, copy in held:
            if not ref.expired():
                _fill(_storage(ref), copy)
            self._spare[len(copy)].append(copy)
        yield
        args, kwargs = one.arguments
        entering = first_tensor(args, kwargs).untyped_storage()
        # States of earlier levels are still needed where the model keeps them, as the first ones are. What a checkpoint
        # on the CPU has given back cannot be resized.
        refs = [*(ref for ref, _ in held), *[StorageWeakRef(entering)] * entering.resizable()]
        for ref in {ref.cdata: ref for ref in refs if not ref.expired()}.values():
            self._held[one][ref.cdata] = ref, self._emptied(_storage(ref))

    def _emptied(self, storage: torch.UntypedStorage) -> Tensor:
        """A copy of what a storage held."""
        spare, size = self._spare[storage.nbytes()], storage.nbytes()
        copy = spare.pop() if spare else new_tensor((size,), torch.uint8, self._folder)
        copy.copy_(_bytes(storage))
        storage.resize_(0)
        return copy

    def given(self, one: Pass) -> object:
        """What the block before has given, from the copies."""
        return self._copied(one.given, self._held[one])

    def _copied(self, value: object, held: Mapping) -> object:
        if isinstance(value, list | tuple):
            return [self._copied(item, held) for item in value]
        if not isinstance(value, Tensor) or value.untyped_storage()._cdata not in held:
            return value
        _, copy = held[value.untyped_storage()._cdata]
        view = value.storage_offset(), value.shape, value.stride()
        return torch.empty(0, dtype=value.dtype).set_(copy.untyped_storage(), *view)


def find_place(needed: float, device: torch.device, block: float, output: float, folder: Path) -> OnDevice:
    """Where states wait: the first of device, host and a file in a folder that keeps as much room as they take.

    Args:
        needed: bytes of the states of all sentences.
        device: of the model.
        block: bytes of a block, of which one is to come onto the device, and the next one into the host's memory.
        output: bytes that the host's memory is to take beside.
        folder: for the file.

    Raises:
        OnejumpError: the folder's disk has no room either.
    """
    host = free_bytes(CPU) - output - block
    if needed <= ((host if device.type == "cpu" else free_bytes(device)) - block) / 2:
        return OnDevice()
    in_memory = device.type != "cpu" and needed <= host / 2
    if not in_memory:
        require_room(folder / "states", needed)
    place = "the host's memory" if in_memory else f"a file in {folder}"
    logger.warning("the states of sentences under way, %.1f GB, wait in %s", needed / 1e9, place)
    return Offloaded(None if in_memory else folder)


def new_tensor(shape: Sequence[int], dtype: torch.dtype, folder: Path | None) -> Tensor:
    """A tensor of any values, in the host's memory or in a memory-mapped file that has lost its name in a folder.

    Raises:
        OnejumpError: the folder's disk has no room.
    """
    if folder is None:
        return torch.empty(*shape, dtype=dtype)
    size = math.prod(shape)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS; a disk that is full later would end the process
            try:
                os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
            except OSError as error:
                raise OnejumpError(f"{folder}: no room for states ({error.strerror}); make room") from error
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(*shape)


def _storage(ref: StorageWeakRef) -> torch.UntypedStorage:
    return torch.UntypedStorage._new_with_weak_ptr(ref.cdata)


def _fill(storage: torch.UntypedStorage, copy: Tensor) -> None:
    storage.resize_(len(copy))
    _bytes(storage).copy_(copy)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    """All of a storage [n], uint8."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
