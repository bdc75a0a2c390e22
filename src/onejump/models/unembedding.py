"""The unembedding of a causal language model: final norm and output head, all that turns h^K into logits.

It is taken out of the model once and saved, with what some models add (a factor on the logits, soft-capping), so that
no later stage needs the model.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from onejump.files.atomic import OnejumpError
from onejump.files.tensors import TensorFile, write_tensors
from onejump.models.anatomy import Anatomy, probe, relative_difference, tolerance_of
from onejump.models.blocks import load_model
from onejump.models.sources import ModelSource

SMALL = 1e-10  # beside the square root of any norm's eps


@dataclass
class Unembedding:
    """Final norm and output head, as tensors.

    Attributes:
        norm_kind: `rms`, `layer` or `none` (the last block's states go to the output head as they are).
        norm_weight: [H] float32, what the normalised vector is multiplied by (1 + w for Gemma, 1 where there is none).
        norm_bias: [H] float32, or None.
        eps: added to the mean square (`rms`) or variance (`layer`).
        weight: [V, H], the output embedding, in the model's dtype; for OPT-350m times the projection before it.
        bias: [V], or None.
        scale: factor on the logits.
        softcap: c in `c tanh(logits / c)`, or None.
        metadata: model, revision, dtype, n_blocks, parameters, anatomy (the paths of `Anatomy`) and sha256 of the file
            it was read from; or None.
    """

    norm_kind: str
    norm_weight: Tensor
    norm_bias: Tensor | None
    eps: float
    weight: Tensor
    bias: Tensor | None
    scale: float = 1.0
    softcap: float | None = None
    metadata: dict | None = None

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.weight.shape[1]

    def normalise(self, h: Tensor) -> Tensor:
        """The final norm in float32: [..., H] -> [..., H]."""
        h = h.float()
        if self.norm_kind == "none":
            return h
        if self.norm_kind == "layer":
            h = h - h.mean(-1, keepdim=True)
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps) * self.norm_weight
        return h if self.norm_bias is None else h + self.norm_bias

    def finish(self, logits: Tensor) -> Tensor:
        """What the model does to its logits after the linear map: scaling and soft-capping."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def project(self, normed: Tensor) -> Tensor:
        """Output head in float32, from a normalised vector: [..., H] -> [..., V]."""
        return self.finish(nn.functional.linear(normed, self.weight.float(), self.bias))

    def linear(self, normed: Tensor) -> Tensor:
        """The output head's product alone, without bias, factor and cap: [..., H] -> [..., V]."""
        return normed @ self.weight.float().T

    def logits(self, h: Tensor) -> Tensor:
        """Final norm and output head in float32, from a hidden state before the norm: [..., H] -> [..., V]."""
        return self.project(self.normalise(h))

    def to(self, device: torch.device | str) -> "Unembedding":
        """A copy on another device, with its output embedding in float32."""
        moved = copy.copy(self)
        moved.weight = self.weight.float().to(device)
        for name in ("norm_weight", "norm_bias", "bias"):
            tensor = getattr(self, name)
            setattr(moved, name, None if tensor is None else tensor.float().to(device))
        return moved

    def save(self, path: str | Path, metadata: dict) -> str:
        """Write unembedding.safetensors; returns its sha256."""
        tensors = {"norm.weight": self.norm_weight, "weight": self.weight}
        optional = {"norm.bias": self.norm_bias, "bias": self.bias}
        tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
        facts = {"norm_kind": self.norm_kind, "eps": self.eps, "scale": self.scale, "softcap": self.softcap}
        return write_tensors(path, tensors, facts | metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Unembedding":
        """Read unembedding.safetensors.

        Raises:
            OnejumpError: the file is missing or damaged.
        """
        file = _open(path)
        tensors = file.tensors()
        return cls(
            norm_kind=file.metadata["norm_kind"],
            norm_weight=tensors["norm.weight"],
            norm_bias=tensors.get("norm.bias"),
            eps=file.value("eps"),
            weight=tensors["weight"],
            bias=tensors.get("bias"),
            scale=file.value("scale"),
            softcap=file.value("softcap"),
            metadata=_facts(file),
        )

    @staticmethod
    def read_facts(path: str | Path) -> dict:
        """The `metadata` of unembedding.safetensors, without reading a tensor.

        Raises:
            OnejumpError: as `load`.
        """
        return _facts(_open(path))


def _open(path: str | Path) -> TensorFile:
    file = TensorFile(path)
    if "norm_kind" not in file.metadata:
        raise OnejumpError(f"{path}: holds {file.metadata.get('kind', 'something else')}, expected an unembedding")
    return file


def _facts(file: TensorFile) -> dict:
    strings = {key: file.metadata[key] for key in ("model", "revision", "dtype")}
    values = {key: file.value(key) for key in ("n_blocks", "parameters", "anatomy")}
    return strings | values | {"sha256": file.sha256}


def extract_unembedding(model: nn.Module) -> tuple[Unembedding, Anatomy]:
    """Take final norm and output head out of a model, and prove them on a forward pass of the model itself.

    A factor on the logits is estimated on that pass, and a soft cap is one of the config's, whatever their names.

    Raises:
        OnejumpError: as `probe`, or norm and output head are of no known form.
    """
    anatomy, final, logits = probe(model)
    norm, hidden_size, name = anatomy.norm, anatomy.hidden_size, f"{type(model).__name__} is not supported"
    with torch.no_grad():  # tensors of inference mode could not be used where gradients are asked for
        form = ("none", torch.ones(hidden_size), None, 0.0) if norm is None else _read_norm(norm, hidden_size)
        if form is None:
            kind = type(norm).__name__
            raise OnejumpError(f"{name}: its final norm {kind} is neither RMSNorm nor LayerNorm (with w, 1 + w or 1)")
        weight, bias = _compose(anatomy.head)
        n_tokens = logits.shape[-1]  # some models cut off rows that only fill up the matrix
        plain = Unembedding(*form, weight[:n_tokens], None if bias is None else bias[:n_tokens])
        unembedding, difference = _finish_like(plain, final.to(logits.device), logits, model)
    if not difference <= tolerance_of(model):  # NaN too
        raise OnejumpError(
            f"{name}: final norm, output head, a factor and a soft cap do not give the model's own logits (relative "
            f"difference {difference:.1e}), so something else stands between them"
        )
    return unembedding, anatomy


def _compose(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Linear maps in a row as one: the output head and, in OPT-350m, a projection before it."""
    *projections, head = linears
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach().float()
    for linear in reversed(projections):
        if linear.bias is not None:
            bias = weight.float() @ linear.bias.float() + (0 if bias is None else bias)
        weight = weight.float() @ linear.weight.float()
    return weight, bias


def _read_norm(norm: nn.Module, hidden_size: int) -> tuple[str, Tensor, Tensor | None, float] | None:
    """Kind, effective weight, bias and eps of a norm, told by what the module computes, not by its class.

    Returns:
        None for a module that is no such norm.
    """
    norm = copy.deepcopy(norm).float().cpu()
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    weight, bias = (None if tensor is None else tensor.detach().clone() for tensor in (weight, bias))
    if any(tensor is not None and tensor.shape != (hidden_size,) for tensor in (weight, bias)):
        return None
    probe = torch.randn(4, hidden_size, generator=torch.Generator().manual_seed(0)) + 0.5
    centred = probe - probe.mean(-1, keepdim=True)
    unbiased = copy.deepcopy(norm)
    if bias is not None:
        unbiased.bias.zero_()
    small = unbiased(SMALL * probe)
    for kind, direction in (("rms", probe), ("layer", centred)):
        for effective in [torch.ones(hidden_size)] if weight is None else [weight, 1 + weight]:
            # Where the input is next to nothing, a norm multiplies it by w / sqrt(eps).
            estimate = float((SMALL * direction * effective / small).square().nanmedian())
            own = (number for number in vars(norm).values() if isinstance(number, float))
            eps = next((number for number in own if abs(number - estimate) < 1e-3 * estimate), estimate)
            unembedding = Unembedding(kind, effective, bias, eps, torch.empty(0, hidden_size), None)
            inputs = torch.cat([probe, probe * eps**0.5])  # the small ones make a wrong eps visible
            if torch.allclose(unembedding.normalise(inputs), norm(inputs), rtol=1e-4, atol=1e-5):
                return kind, effective, bias, eps
    return None


def _finish_like(plain: Unembedding, final: Tensor, logits: Tensor, model: nn.Module) -> tuple[Unembedding, float]:
    """With the factor and the soft cap that come nearest to the model's logits, and the relative difference left."""
    config = model.config.get_text_config(decoder=True).to_dict()
    numbers = {key: abs(float(v)) for key, v in config.items() if type(v) in (int, float) and v}
    factors = [1.0, *numbers.values(), *(1 / number for number in numbers.values())]
    raw, logits = plain.to(logits.device).logits(final), logits.float()
    found = []
    for cap in (None, *(number for key, number in numbers.items() if "cap" in key)):
        uncapped = logits if cap is None else cap * torch.atanh(logits / cap)
        kept = (logits.abs() < (math.inf if cap is None else 0.99 * cap)).float()  # what is not saturated
        scale = float((raw * uncapped.nan_to_num() * kept).sum() / (raw.square() * kept).sum())
        # In low precision the estimate is only near the config's own number, where it has one.
        scale = next((f for f in factors if abs(scale / f - 1) < tolerance_of(model) / 5), scale)
        unembedding = replace(plain, scale=scale, softcap=cap)
        found.append((unembedding, relative_difference(unembedding.finish(raw), logits)))
    return min(found, key=lambda pair: (math.isnan(pair[1]), pair[1]))


def describe(
    source: ModelSource, dtype: str, blocks: int | None = None, load: str = "whole"
) -> tuple[Unembedding, dict]:
    """Load a model and take out its unembedding, with the facts to save beside it.

    Args:
        source: the model.
        dtype: of its weights, a key of DTYPES.
        blocks: number of blocks that the model must have, or None.
        load: how the model is held, one of LOADS.

    Returns:
        The unembedding, and model, revision, dtype, n_blocks, parameters, block_parameters (mean of a block's,
        without experts that a token is not sent to) and anatomy.

    Raises:
        OnejumpError: as `load_model` and `extract_unembedding`, or the model does not have `blocks` blocks.
    """
    model, streamed = load_model(source, load, dtype)
    with nullcontext() if streamed is None else streamed.on_demand():
        unembedding, anatomy = extract_unembedding(model)
    n_blocks = len(anatomy.blocks)
    if blocks not in (None, n_blocks):
        raise OnejumpError(
            f"model {source.location}: has {n_blocks} blocks, the config says {blocks}; set blocks: {n_blocks}"
        )
    name, revision = source.identity()
    facts = {"model": name, "revision": revision, "dtype": dtype, "n_blocks": n_blocks}
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    facts["block_parameters"] = anatomy.token_weights // n_blocks
    return unembedding, facts | {"anatomy": anatomy.paths}
