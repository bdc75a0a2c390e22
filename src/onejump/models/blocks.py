"""A model of which one block at a time is in memory: the others stay in its files until their turn comes.

Transformers' own loader builds the model and converts names and tensors (experts that are stored one by one, for
instance), so that weights are those of the model loaded whole. What belongs to a block is given to it first as a shape
without memory, and as a tensor when the block is loaded.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from onejump.files.atomic import OnejumpError
from onejump.models.architecture import by_blocks
from onejump.models.devices import DTYPES, free_bytes
from onejump.models.passes import removed
from onejump.models.sources import ModelSource, first_sentence
from onejump.models.weights import Weights

WHOLE = "set load: whole"  # what to do about a model that cannot be loaded block by block
UNUSED = "unused"  # the place of weights that are never loaded


class _Unread:
    """A tensor of a file, as Transformers' loader asks for it: `entry[...]`, then `.to(device, dtype)`."""

    def __init__(self, weights: Weights, name: str, absent: bool) -> None:
        self._weights, self._name, self._absent = weights, name, absent

    def __getitem__(self, _) -> "Tensor | _Unread":
        return self if self._absent else self._weights.map(self._name)

    def to(self, device=None, dtype: torch.dtype | None = None) -> Tensor:
        """Only the shape, wherever it is wanted."""
        return self._weights.empty(self._name).to(dtype=dtype)


class Blocks:
    """A model whose blocks are loaded one at a time.

    Attributes:
        model: in evaluation mode; a block's weights are on `meta` while it is not loaded.
    """

    def __init__(
        self,
        source: ModelSource,
        weights: Weights,
        dtype: str,
        device: torch.device | str = "cpu",
        path: str | None = None,
        unused: Sequence[str] = (),
    ) -> None:
        """Load everything outside the blocks.

        Args:
            source: the model.
            weights: its files.
            dtype: of the model in memory.
            device: for all that is loaded.
            path: of the list of blocks; by default that of the list of modules with the most weights.
            unused: paths of modules that are not needed.

        Raises:
            OnejumpError: the model cannot be loaded in this way, or lacks weights.
        """
        self._source, self._weights, self._dtype, self._device = source, weights, DTYPES[dtype], torch.device(device)
        outline = self._outline()
        path = path or _largest_list(outline)
        if path not in dict(outline.named_modules()):
            raise OnejumpError(f"model {source.location}: has no {path}, as its unembedding says; extract it again")
        places = _places(outline, path, unused)
        targets = self._targets(outline, places)
        self._names: dict[int, list[str]] = {k: [] for k in range(len(outline.get_submodule(path)))}
        entries = {}
        for name, target in targets.items():
            place = places[target]
            entries[name] = _Unread(weights, name, absent=place is not None)
            if place in self._names:
                self._names[place].append(name)
        self.model = source.load_tensors(type(outline), outline.config, entries, dtype)
        if self._device.type != "cpu":
            self.model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(self._device))
        self._blocks = self.model.get_submodule(path)
        self._empty: list[tuple[nn.Module, str, Tensor]] = []  # what stands in the loaded block's places otherwise
        self._reader, self._ahead = ThreadPoolExecutor(1), {}

    def _outline(self) -> nn.Module:
        """The model without any memory."""
        from transformers import AutoModelForCausalLM

        config = self._source.load_config()
        if getattr(config, "quantization_config", None) is not None:
            raise self._refusal("its weights are quantised")
        if getattr(config, "transformers_weights", None) is not None:
            raise self._refusal("its config names a file of weights")
        try:
            with torch.device("meta"):
                options = {"dtype": self._dtype, "trust_remote_code": self._source.trust_remote_code}
                model = AutoModelForCausalLM.from_config(config, **options)
        except Exception as error:  # models make what they like of a device without values
            raise self._refusal(f"it cannot be built without memory ({first_sentence(error)})") from error
        model.tie_weights()
        return model

    def _refusal(self, why: str) -> OnejumpError:
        return OnejumpError(f"model {self._source.location}: cannot be loaded block by block, since {why}; {WHOLE}")

    def _targets(self, outline: nn.Module, places: dict[str, object]) -> dict[str, str]:
        """Name of a tensor in the files -> that in the model; of several that are joined or split, the first one."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        conversions = get_model_conversion_mapping(outline)
        kinds = [[one for one in conversions if isinstance(one, kind)] for kind in (WeightRenaming, WeightConverter)]
        own, found = outline.state_dict(), {}
        for name in self._weights.names:
            target, _ = rename_source_key(name, *kinds, outline.base_model_prefix, own)
            if target not in own and name in own:
                target, _ = rename_source_key(name, [], [], outline.base_model_prefix, own)
            if target in places:
                found[name] = target
        return found

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    @property
    def largest(self) -> int:
        """Bytes in memory of the largest block."""
        sizes = (sum(self._weights.empty(name).numel() for name in names) for names in self._names.values())
        return max(sizes) * self._dtype.itemsize

    @contextmanager
    def loaded(self, k: int) -> Iterator[None]:
        """Block k is in memory; the next one is being read meanwhile.

        Raises:
            OnejumpError: the block cannot be loaded.
        """
        self._load(k)
        try:
            yield
        finally:
            self._drop()

    @contextmanager
    def on_demand(self) -> Iterator[None]:
        """Any forward pass loads each block when it comes to it, and drops it when it has passed."""
        numbers = {block: k for k, block in enumerate(self._blocks)}
        hooks = [
            hook
            for block in numbers
            for hook in (
                block.register_forward_pre_hook(lambda block, _: self._load(numbers[block]), prepend=True),
                block.register_forward_hook(lambda *_: self._drop()),
            )
        ]
        with removed(hooks):
            yield

    def _read(self, k: int) -> dict[str, Tensor]:
        return {name: self._weights.read(name) for name in self._names[k]}

    def _load(self, k: int) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig
        from transformers.utils import logging

        ahead: Future = self._ahead.pop(k, None) or self._reader.submit(self._read, k)
        tensors = ahead.result()
        del ahead
        self._ahead.clear()
        block, model = self._blocks[k], self.model
        self._empty = [place for place in _tensors(block) if place[-1].is_meta]
        plan = LoadStateDictConfig(
            dtype=self._dtype,
            dtype_plan=model._get_dtype_plan(self._dtype),
            device_map={"": self._device},
            weight_mapping=get_model_conversion_mapping(model),
        )
        logging.disable_progress_bar()  # a bar for each block
        try:
            found, _ = convert_and_load_state_dict_in_model(model, tensors, plan)
        except torch.OutOfMemoryError as error:
            size = f"{self.largest / 1e9:,.1f} GB for a block"
            raise OnejumpError(
                f"block {k} does not fit on the device; use one with {size}, or a smaller dtype"
            ) from error
        tensors.clear()
        lost = sorted({name for _, name, tensor in _tensors(block) if tensor.is_meta})
        if lost or found.conversion_errors or found.mismatched_keys:
            raise self._refusal(f"the files' tensors of block {k} alone do not give its {', '.join(lost) or 'weights'}")
        if k + 1 < len(self):
            self._ahead[k + 1] = self._reader.submit(self._read, k + 1)

    def _drop(self) -> None:
        while self._empty:
            setattr(*self._empty.pop())


def load_model(
    source: ModelSource,
    load: str,
    dtype: str,
    device: torch.device | str = "cpu",
    path: str | None = None,
    unused: Sequence[str] = (),
) -> tuple[nn.Module, Blocks | None]:
    """A model whole, or as `Blocks`, by `load`: one of LOADS; see `by_blocks`. The rest is as `Blocks` takes it.

    Raises:
        OnejumpError: it cannot be loaded, or not in the way that is asked for.
    """
    files = source.find_weights() if load != "whole" and source.gpus == 1 else []
    if files:
        weights = Weights(files)
        needed = weights.parameters * DTYPES[dtype].itemsize
        if by_blocks(load, needed, free=free_bytes(torch.device(device))):
            blocks = Blocks(source, weights, dtype, device, path, unused)
            return blocks.model, blocks
    if load == "blocks":
        why = f"gpus is {source.gpus}" if source.gpus > 1 else "it has no safetensors files"
        raise OnejumpError(f"model {source.location}: cannot be loaded block by block, since {why}; {WHOLE}")
    model = source.load_model(dtype, device)
    if files is None:
        print(f"onejump: model {source.location}: has no safetensors files, so it is held whole", file=sys.stderr)
    return model, None


def _largest_list(model: nn.Module) -> str:
    """The path of the list of modules with the most weights: a model without memory cannot be run to find blocks."""
    sizes = {
        path: sum(parameter.numel() for parameter in module.parameters())
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    if not sizes:
        raise OnejumpError(f"{type(model).__name__} is not supported: looked for a torch.nn.ModuleList, found none")
    return max(sizes, key=sizes.get)


def _places(model: nn.Module, path: str, unused: Sequence[str]) -> dict[str, object]:
    """Name of a tensor in the model -> the number of the block, if it is in no other place; UNUSED; or None."""
    places: dict[str, object] = {}
    shared: dict[int, set] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        places[name] = UNUSED if any(name.startswith(f"{part}.") for part in unused) else None
        if name.startswith(f"{path}."):
            places[name] = int(name[len(path) + 1 :].partition(".")[0])
        shared.setdefault(id(tensor), set()).add(places[name])
    return {name: places[name] if len(shared[id(tensor)]) == 1 else None for name, tensor in named}


def _tensors(block: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Each tensor of a block's state: its owner, its name there, and the tensor."""
    for owner in block.modules():
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                yield owner, name, tensor
