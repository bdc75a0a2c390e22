"""The unembedding of a causal language model: final norm and output head, all that turns h^K into logits.

It is taken out of the model once and saved, with what some models add (a factor on the logits, soft-capping), so that
no later stage needs the model.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from onejump.files.atomic import OnejumpError
from onejump.files.tensors import TensorFile, write_tensors
from onejump.models.anatomy import Anatomy, find_anatomy
from onejump.models.sources import ModelSource


@dataclass
class Unembedding:
    """Final norm and output head, as tensors.

    Attributes:
        norm_kind: `rms` or `layer`.
        norm_weight: [H] float32, what the normalised vector is multiplied by (for Gemma 1 + w).
        norm_bias: [H] float32, or None.
        eps: added to the mean square (`rms`) or variance (`layer`).
        weight: [V, H], the output embedding, in the model's dtype.
        bias: [V], or None.
        scale: factor on the logits.
        softcap: c in `c tanh(logits / c)`, or None.
        metadata: model, revision, dtype, n_blocks, parameters and sha256 of the file it was read from; or None.
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
    return strings | {key: file.value(key) for key in ("n_blocks", "parameters")} | {"sha256": file.sha256}


def _read_norm(norm: nn.Module, hidden_size: int, name: str) -> tuple[str, Tensor, Tensor | None, float]:
    """Kind, effective weight, bias and eps of a norm, told apart by what the module computes, not by its class."""
    norm = copy.deepcopy(norm).float().cpu()
    eps = next((float(getattr(norm, e)) for e in ("eps", "variance_epsilon", "epsilon") if hasattr(norm, e)), None)
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    found = f"{name} is not supported: its final norm {type(norm).__name__}"
    if eps is None or weight is None:
        raise OnejumpError(f"{found} has no weight or no eps")
    if weight.shape != (hidden_size,):
        raise OnejumpError(f"{found} is {tuple(weight.shape)} wide, its output head takes {hidden_size}")
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, hidden_size, generator=generator) + 0.5
    probe = torch.cat([probe, probe * eps**0.5])  # the small ones make a wrong eps visible
    with torch.no_grad():
        expected = norm(probe)
    for kind, effective in (("rms", weight), ("rms", 1 + weight), ("layer", weight)):
        unembedding = Unembedding(kind, effective, bias, eps, torch.empty(0, hidden_size), None)
        if torch.allclose(unembedding.normalise(probe), expected, rtol=1e-4, atol=1e-5):
            return kind, effective, bias, eps
    raise OnejumpError(f"{found} is neither RMSNorm (with w or 1 + w) nor LayerNorm")


def extract_unembedding(model: nn.Module) -> tuple[Unembedding, Anatomy]:
    """Take final norm and output head out of a model, and prove them on a forward pass of the model itself.

    Raises:
        OnejumpError: the architecture is not supported, its head cannot be expressed, or the model is not causal.
    """
    name = type(model).__name__
    n_tokens = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, n_tokens, (1, 8), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % n_tokens
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    with torch.inference_mode():
        before, after = (model(input_ids=tokens.to(model.device)).logits[:, :-1] for tokens in (ids, changed))
    if _relative_difference(after, before) > tolerance:
        raise OnejumpError(f"{name} is not causal: another last token changes the logits before it; use a causal model")

    anatomy = find_anatomy(model)
    config = model.config.get_text_config()
    weight, bias = anatomy.output_head.weight.detach(), anatomy.output_head.bias
    unembedding = Unembedding(
        *_read_norm(anatomy.final_norm, weight.shape[1], name),
        weight=weight,
        bias=None if bias is None else bias.detach().float(),
        scale=getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )
    captured = {}
    with torch.inference_mode(), anatomy.capture(captured.__setitem__):
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    difference = _relative_difference(unembedding.to(model.device).logits(captured[len(anatomy.blocks)]), logits)
    if not difference <= tolerance:  # NaN too
        raise OnejumpError(
            f"{name} is not supported: final norm, output head, logit scale and soft cap do not give the model's own "
            f"logits (relative difference {difference:.1e}), so something else stands between them"
        )
    return unembedding, anatomy


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-30))


def describe(source: ModelSource, dtype: str, blocks: int | None = None) -> tuple[Unembedding, dict]:
    """Load a model and take out its unembedding, with the facts to save beside it.

    Args:
        source: the model.
        dtype: of its weights, a key of DTYPES.
        blocks: number of blocks that the model must have, or None.

    Returns:
        The unembedding, and model, revision, dtype, n_blocks, parameters and block_parameters (of one block).

    Raises:
        OnejumpError: as `ModelSource.load_model` and `extract_unembedding`, or the model does not have `blocks` blocks.
    """
    model = source.load_model(dtype)
    unembedding, anatomy = extract_unembedding(model)
    n_blocks = len(anatomy.blocks)
    if blocks not in (None, n_blocks):
        raise OnejumpError(
            f"model {source.location}: has {n_blocks} blocks, the config says {blocks}; set blocks: {n_blocks}"
        )
    name, revision = source.identity(model)
    facts = {"model": name, "revision": revision, "dtype": dtype, "n_blocks": n_blocks}
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    in_blocks = sum(parameter.numel() for block in anatomy.blocks for parameter in block.parameters())
    return unembedding, facts | {"block_parameters": in_blocks // n_blocks}
