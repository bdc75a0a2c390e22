"""A model at its true dimensions with random weights, so that a study can be rehearsed without the real ones."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from onejump.files.atomic import read_json
from onejump.models.devices import DTYPES
from onejump.models.sources import ModelSource

PREFIX = "random:"
# Prime, so that no two rows of a matrix are alike although the numbers repeat.
POOL = 4_194_301
# From one matrix's first number to the next one's: a whole number of cache lines, and no multiple of a usual width.
STEP = 64 * 67


@dataclass(frozen=True)
class RandomSource(ModelSource):
    """A model with random weights; its location is `random:FILE`, where FILE is a config.json."""

    @property
    def _config(self) -> dict:
        return read_json(self.location.removeprefix(PREFIX))

    def load_model(self, dtype: str = "float32", device: torch.device | str = "cpu") -> nn.Module:
        """Build the model; all its matrices share one piece of memory, as large as the largest of them needs."""
        model = empty_model(self._config, DTYPES[dtype])
        _fill(model, device)
        model.tie_weights()
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        return model.eval()

    def find_weights(self) -> list:
        """No files: all blocks together need no more memory than one."""
        return []

    def load_tokenizer(self) -> Callable:
        """Words to token ids, by their checksums."""
        size = self._config["vocab_size"]
        return lambda texts: {"input_ids": [[zlib.crc32(word.encode()) % size for word in t.split()] for t in texts]}

    def load_max_positions(self) -> int | None:
        """The longest input that the config allows, in tokens; None where it states none."""
        return self._config.get("n_positions") or self._config.get("max_position_embeddings")

    def identity(self) -> tuple[str, str]:
        """The config file, and that the weights are random."""
        return self.location.removeprefix(PREFIX), "random weights"


def empty_model(config: dict, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The causal language model of a config.json, its parameters on the `meta` device: shapes without memory."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)


def _fill(model: nn.Module, device: torch.device | str, std: float = 0.02) -> None:
    """Give random matrices, norms of 1 and biases of 0 to a model whose parameters have no memory yet.

    Each matrix is a window of one long row of normal numbers, and begins STEP after the one before it.
    """
    places = [(owner, *named) for owner in model.modules() for named in owner.named_parameters(recurse=False)]
    sizes = [parameter.numel() for _, _, parameter in places if parameter.ndim > 1]
    length = max(sizes) + STEP * len(sizes)
    pool = (torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * std).to(places[0][2].dtype)
    numbers = pool.repeat(-(-length // POOL)).to(device)
    start = 0
    for owner, name, parameter in places:
        shape, dtype = parameter.shape, parameter.dtype
        if parameter.ndim > 1:
            tensor, start = numbers[start : start + parameter.numel()].view(shape), start + STEP
        else:
            tensor = torch.full(shape, float("bias" not in name), dtype=dtype, device=device)
        setattr(owner, name, nn.Parameter(tensor, requires_grad=False))
