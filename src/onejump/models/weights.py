"""The weights of a model as its safetensors files hold them: read tensor by tensor, written file by file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from onejump.files.atomic import OnejumpError
from onejump.models.sources import first_sentence, unusable_files


class Weights:
    """The tensors of a model's files by name; only headers are read before a tensor is asked for."""

    def __init__(self, files: Sequence[str | Path]) -> None:
        """Look into the files.

        Raises:
            OnejumpError: one is missing or not whole.
        """
        from safetensors import SafetensorError, safe_open

        self._files: dict[str, Path] = {}
        self._empty: dict[str, Tensor] = {}
        for file in map(Path, files):
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 - it is no dict
                        self._files[name] = file
                        self._empty[name] = torch.empty_like(opened.get_tensor(name), device="meta")
            except (SafetensorError, OSError) as error:
                raise _unusable(file, error) from error

    @property
    def names(self) -> list[str]:
        """All names."""
        return list(self._files)

    @property
    def parameters(self) -> int:
        """The number of all weights."""
        return sum(tensor.numel() for tensor in self._empty.values())

    def empty(self, name: str) -> Tensor:
        """A tensor's shape and dtype, without memory."""
        return self._empty[name]

    def map(self, name: str) -> Tensor:
        """One tensor as it lies in its file, of which only what is used is read, and may be forgotten again.

        Raises:
            OnejumpError: the file has become unreadable.
        """
        from safetensors import SafetensorError, safe_open

        try:
            # Opened each time: what has been read counts as memory as long as the file is open.
            with safe_open(self._files[name], framework="pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _unusable(self._files[name], error) from error

    def read(self, name: str) -> Tensor:
        """Read one tensor into memory of its own, in the dtype that the file has; raises as `map`."""
        return _copied(self.map(name))


class WeightsWriter:
    """Writes a model into a folder: its config, a file for each group of weights, and at the end their index."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        """Write the config of a model, whose weights may be shapes alone, into a folder that has no weights."""
        from transformers.utils import logging

        logging.disable_progress_bar()  # a bar of no weights
        model.save_pretrained(folder, state_dict={})
        self._folder, self._model = folder, model
        self._files: list[tuple[Path, list[str]]] = []
        self._bytes = 0

    def __enter__(self) -> "WeightsWriter":
        """The writer itself."""
        return self

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write one group, under the model's own names; no two tensors may lie in the same memory."""
        from safetensors.torch import save_file
        from transformers.core_model_loading import revert_weight_conversion

        tensors = revert_weight_conversion(self._model, dict(tensors))
        file = self._folder / f"part-{len(self._files):05d}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
        self._files.append((file, list(tensors)))
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())

    def __exit__(self, kind, error, trace) -> None:
        """Give the files the names that Transformers looks for."""
        from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

        if kind is not None:
            return
        places = {}
        for number, (file, names) in enumerate(self._files, 1):
            final = f"model-{number:05d}-of-{len(self._files):05d}.safetensors"
            file.rename(self._folder / final)
            places |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._bytes}, "weight_map": places}
        (self._folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _copied(mapped: Tensor) -> Tensor:
    """A copy that lies as its original in a cache line: products of some matrices depend on it in their last bits.

    A model loaded whole has its weights where the file has them.
    """
    line, size = 64, mapped.element_size()
    room = torch.empty(mapped.numel() + line // size, dtype=mapped.dtype)
    first = (mapped.data_ptr() - room.data_ptr()) % line // size
    return room[first : first + mapped.numel()].view(mapped.shape).copy_(mapped)


def _unusable(file: Path, error: Exception) -> OnejumpError:
    if not file.is_file():
        return OnejumpError(f"{file}: no such file, but the model's index names it; download the model again")
    hints = list(unusable_files([file])) or ["download it again"]
    return OnejumpError("; ".join([f"{file}: not a whole safetensors file ({first_sentence(error)})", *hints]))
