"""A model at its true dimensions with random weights in real files, so that a study is rehearsed without its own."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from onejump.files.atomic import require_room
from onejump.models.devices import DTYPES
from onejump.models.weights import WeightsWriter

# Prime, so that no two rows of a matrix are alike although the numbers repeat.
POOL = 4_194_301
STEP = 64 * 67  # from one matrix's first number to the next one's; no multiple of a usual width
STD = 0.02


def save_random_model(config: dict, dtype: str, words: Sequence[str], folder: Path) -> None:
    """Write a causal language model to a new folder in Transformers' format.

    It has its config, random matrices, norms of 1 and biases of 0 in a safetensors file for each block and each tensor
    outside the blocks, and a tokenizer of words. One of these files is in memory at a time.

    Args:
        config: as in a config.json.
        dtype: of the weights, a key of DTYPES.
        words: what the tokenizer knows; fewer than the vocabulary has tokens.
        folder: which does not exist.

    Raises:
        OnejumpError: the weights do not fit on the disk.
    """
    model = empty_model(config, DTYPES[dtype])
    model.tie_weights()
    numbers = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).mul(STD).to(DTYPES[dtype])
    # Shared parameters are listed once; buffers that a model is built with have values.
    tensors = dict(model.named_parameters())
    tensors |= {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    require_room(folder, sum(tensor.nbytes for tensor in tensors.values()))
    with WeightsWriter(folder, model) as weights:
        starts = {name: number * STEP for number, name in enumerate(tensors)}
        for _, names in groupby(tensors, _place):
            weights.add({name: _filled(name, tensors[name], numbers, starts[name]) for name in names})
    _tokenizer(words).save_pretrained(folder)


def empty_model(config: dict, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The causal language model of a config.json, its parameters on the `meta` device: shapes without memory."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)


def _place(name: str) -> str:
    """What a tensor's name says of its place: the block, or the whole name."""
    return (re.match(r".*?\.\d+\.", name) or [name])[0]


def _filled(name: str, tensor: Tensor, numbers: Tensor, start: int) -> Tensor:
    """A tensor with values: those that it has, or of a matrix the numbers from `start` on."""
    if not tensor.is_meta:
        return tensor
    if tensor.ndim < 2:
        return torch.full(tensor.shape, float("bias" not in name), dtype=tensor.dtype)
    return numbers.roll(-start).repeat(-(-tensor.numel() // POOL))[: tensor.numel()].view(tensor.shape)


def _tokenizer(words: Sequence[str]):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: token for token, word in enumerate(["<unk>", *words])}, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
