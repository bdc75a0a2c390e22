"""Causal language models of Transformers: load one, find its parts, and take out its head.

The *head* is all that turns the final representation h^K into logits: the final norm, the output embedding, and what
some models add (logit scaling, soft-capping). It is saved apart, so that no later stage needs the model.
"""

import copy
import functools
import hashlib
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from onejump.artifacts import (
    OnejumpError,
    TensorFile,
    check_sha256,
    read_json,
    require_file,
    sha256_of_file,
    write_json,
    write_tensors,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FINAL_NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
PROVENANCE_FILE = "onejump.json"


def resolve_device(name: str) -> torch.device:
    """The device named, or for `auto` the best one here: CUDA, else Apple MPS, else the CPU.

    Raises:
        OnejumpError: PyTorch does not know the device, or cannot use it here.
    """
    if name == "auto":
        usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        name = next(kind for kind, works in usable.items() if works)
    try:
        tensor = torch.zeros(1, device=name)
        float(tensor)  # a device that holds no values, such as meta, is none
        return tensor.device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OnejumpError(f"device {name!r} cannot be used here ({reason}); use auto, cpu, cuda or mps") from error


def describe_device(device: torch.device, threads: int) -> str:
    """The device's name as its maker has it, and for a CPU the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.machine()} GPU"
    info = Path("/proc/cpuinfo")  # the platform module knows the name of a CPU on no Linux
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {threads} thread{'s' * (threads > 1)}"


# ----------------------------------------------------------------------------------------------------------- convert


def convert_gguf(gguf: str | Path, folder: str | Path, sha256: str | None = None) -> None:
    """Turn a GGUF file into a Transformers folder (safetensors weights in float32, config, tokenizer).

    Raises:
        OnejumpError: the file is missing, has another digest than `sha256`, or is not a model that Transformers reads.
    """
    import gguf as library
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf, folder = require_file(gguf), Path(folder)
    if sha256 is not None:
        check_sha256(gguf, sha256)
    # Transformers would read the file three times, and list its tensors' names once for each of the model's modules.
    once = {name: functools.cache(getattr(library, name)) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        with mock.patch.multiple(library, **once):
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise OnejumpError(f"{gguf}: not a GGUF model that Transformers can read ({_first_line(error)})") from error
    # A model loaded from GGUF refuses save_pretrained while its config says that it is quantised.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    with torch.device("meta"):  # no time lost on random weights
        plain = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings))
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / PROVENANCE_FILE, {"model": gguf.name, "revision": sha256_of_file(gguf)})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------------- load


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        location: a folder in Transformers' format, or a model id on the hub.
        revision: a commit, tag or branch of the hub; None for a folder.
        trust_remote_code: whether code that comes with the model may run.
        gpus: GPUs that the blocks are spread over.
    """

    location: str
    revision: str | None = None
    trust_remote_code: bool = False
    gpus: int = 1

    def _load(self, factory, **options):
        if Path(self.location).is_dir():
            options["local_files_only"] = True
        elif self.location.startswith((".", "/")) or self.location.count("/") > 1:
            raise OnejumpError(
                f"model {self.location}: no such folder; mend the path, or name a hub id as 'owner/name'"
            )
        try:
            return factory.from_pretrained(
                self.location, revision=self.revision, trust_remote_code=self.trust_remote_code, **options
            )
        except (ValueError, OSError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            kind = factory.__name__.removeprefix("AutoModelFor").removeprefix("Auto")
            reason = self._trouble_with_the_hub(error) or f"cannot be loaded as {kind} ({_first_line(error)})"
            raise OnejumpError(f"model {self.location}: {reason}") from error

    def _trouble_with_the_hub(self, error: BaseException) -> str | None:
        """What to do about an error of the hub, told by the kind of the first of its causes that we know."""
        revision = self.revision or "main"
        advice = {
            "GatedRepoError": "is gated; accept its licence on the hub, and set HF_TOKEN to a token of that account",
            "RevisionNotFoundError": f"has no revision {revision!r}; name a commit, tag or branch that it has",
            "RepositoryNotFoundError": "is not on the hub, or is private; check the id, or set HF_TOKEN",
            "LocalEntryNotFoundError": f"revision {revision!r} is not in the cache and the hub cannot be reached; "
            f"fetch it once where it can: hf download {self.location} --revision {revision}",
        }
        advice["OfflineModeIsEnabled"] = advice["LocalEntryNotFoundError"]
        while error is not None:
            if type(error).__name__ in advice:
                return advice[type(error).__name__]
            error = error.__cause__ or error.__context__
        return None

    def load_model(self, dtype: str = "float32", device: torch.device | str = "cpu") -> nn.Module:
        """Load the model in evaluation mode, on one device or with its blocks spread over the GPUs there are.

        Raises:
            OnejumpError: it cannot be found or loaded, or is not a causal language model.
        """
        from transformers import AutoModelForCausalLM

        options = {"device_map": "auto"} if self.gpus > 1 else {}
        model, loading = self._load(AutoModelForCausalLM, dtype=DTYPES[dtype], output_loading_info=True, **options)
        if loading["missing_keys"]:
            missing = ", ".join(sorted(loading["missing_keys"]))
            raise OnejumpError(f"model {self.location}: its files lack {missing}; fetch the model again")
        return model.eval() if self.gpus > 1 else model.to(device).eval()

    def load_tokenizer(self):
        """Load the tokenizer; errors as in `load_model`."""
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer)

    def load_max_positions(self) -> int | None:
        """The longest input that the model's config allows, in tokens; None where it states none."""
        from transformers import AutoConfig

        return getattr(self._load(AutoConfig).get_text_config(), "max_position_embeddings", None)

    def identity(self, model: nn.Module) -> tuple[str, str]:
        """Name and exact revision: the hub's commit, or the SHA-256 of a folder's config and weights."""
        folder = Path(self.location)
        if not folder.is_dir():
            from huggingface_hub import try_to_load_from_cache

            # Loaded files lie in the hub's cache under their commit, whatever branch or tag was asked for.
            config = try_to_load_from_cache(self.location, "config.json", revision=self.revision)
            return self.location, Path(config).parent.name if isinstance(config, str) else self.revision or "unknown"
        if (folder / PROVENANCE_FILE).is_file():
            provenance = read_json(folder / PROVENANCE_FILE)
            return provenance["model"], provenance["revision"]
        digest = hashlib.sha256()
        for file in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
            digest.update(f"{file.name} {sha256_of_file(file)}\n".encode())
        return folder.resolve().name, digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# ----------------------------------------------------------------------------------------------------------- anatomy


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal language model that this project needs.

    Attributes:
        backbone: the module that owns blocks and final norm; called with token ids, it runs all but the output head.
        blocks: the K transformer blocks.
        final_norm: the norm between the last block and the output head.
        output_head: the linear map to the vocabulary.
    """

    backbone: nn.Module
    blocks: nn.ModuleList
    final_norm: nn.Module
    output_head: nn.Module

    @contextmanager
    def capture(self, take) -> Iterator[None]:
        """While the context lasts, each forward pass calls `take(k, h)` with h^k [B, T, H] for k = 0..K.

        h^k is what enters block k, and h^K what enters the final norm: Transformers' own `hidden_states[-1]` is
        taken after that norm.
        """

        def hook_for(level: int):
            def hook(module, args, kwargs):
                take(level, args[0] if args else kwargs["hidden_states"])

            return hook

        modules = [*self.blocks, self.final_norm]
        handles = [m.register_forward_pre_hook(hook_for(k), with_kwargs=True) for k, m in enumerate(modules)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find blocks, final norm and output head from the module structure.

    Raises:
        OnejumpError: the structure is not the expected one; the message names the class and what was looked for.
    """
    name = type(model).__name__
    n_blocks = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    owners = [
        (owner, child)
        for owner in model.modules()
        for child in owner.children()
        if isinstance(child, nn.ModuleList) and len(child) == n_blocks
    ]
    if len(owners) != 1:
        raise OnejumpError(
            f"{name} is not supported: looked for one torch.nn.ModuleList with num_hidden_layers = {n_blocks} blocks, "
            f"found {len(owners)}"
        )
    backbone, blocks = owners[0]
    norms = [
        getattr(backbone, norm) for norm in FINAL_NORM_NAMES if isinstance(getattr(backbone, norm, None), nn.Module)
    ]
    if len(norms) != 1:
        raise OnejumpError(
            f"{name} is not supported: looked for one final norm beside the blocks, named "
            f"{' or '.join(FINAL_NORM_NAMES)}, found {len(norms)}"
        )
    output_head = model.get_output_embeddings()
    if not isinstance(output_head, nn.Linear):
        raise OnejumpError(
            f"{name} is not supported: looked for a torch.nn.Linear as output head, found {type(output_head).__name__}"
        )
    return Anatomy(backbone, blocks, norms[0], output_head)


# -------------------------------------------------------------------------------------------------------------- head


@dataclass
class Head:
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
        metadata: model, revision, K and the file's sha256 where the head was read from a file.
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

    def to(self, device: torch.device | str) -> "Head":
        """The head on another device, its output embedding in float32."""
        moved = copy.copy(self)
        moved.weight = self.weight.float().to(device)
        for name in ("norm_weight", "norm_bias", "bias"):
            tensor = getattr(self, name)
            setattr(moved, name, None if tensor is None else tensor.float().to(device))
        return moved

    def save(self, path: str | Path, metadata: dict) -> str:
        """Write head.safetensors; returns its sha256."""
        tensors = {"norm.weight": self.norm_weight, "weight": self.weight}
        optional = {"norm.bias": self.norm_bias, "bias": self.bias}
        tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
        facts = {"norm_kind": self.norm_kind, "eps": self.eps, "scale": self.scale, "softcap": self.softcap}
        return write_tensors(path, tensors, facts | metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Head":
        """Read head.safetensors.

        Raises:
            OnejumpError: the file is missing or damaged.
        """
        file = TensorFile(path)
        if "norm_kind" not in file.metadata:
            raise OnejumpError(f"{path}: holds {file.metadata.get('kind', 'something else')}, expected a head")
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
            metadata={
                "model": file.metadata["model"],
                "revision": file.metadata["revision"],
                "dtype": file.metadata["dtype"],
                "n_blocks": file.value("n_blocks"),
                "parameters": file.value("parameters"),
                "sha256": file.sha256,
            },
        )


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
        head = Head(kind, effective, bias, eps, torch.empty(0, hidden_size), None)
        if torch.allclose(head.normalise(probe), expected, rtol=1e-4, atol=1e-5):
            return kind, effective, bias, eps
    raise OnejumpError(f"{found} is neither RMSNorm (with w or 1 + w) nor LayerNorm")


def extract_head(model: nn.Module) -> tuple[Head, Anatomy]:
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
    head = Head(
        *_read_norm(anatomy.final_norm, weight.shape[1], name),
        weight=weight,
        bias=None if bias is None else bias.detach().float(),
        scale=getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )
    captured = {}
    with torch.inference_mode(), anatomy.capture(captured.__setitem__):
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    difference = _relative_difference(head.to(model.device).logits(captured[len(anatomy.blocks)]), logits)
    if not difference <= tolerance:  # NaN too
        raise OnejumpError(
            f"{name} is not supported: final norm, output head, logit scale and soft cap do not give the model's own "
            f"logits (relative difference {difference:.1e}), so something else stands between them"
        )
    return head, anatomy


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-30))


def save_head(source: ModelSource, dtype: str, path: str | Path, blocks: int | None = None) -> None:
    """Stage `extract-head`: load a model and write its head.safetensors.

    Raises:
        OnejumpError: as `ModelSource.load_model` and `extract_head`, or the model does not have `blocks` blocks.
    """
    model = source.load_model(dtype)
    head, anatomy = extract_head(model)
    name, revision = source.identity(model)
    n_blocks = len(anatomy.blocks)
    in_blocks = sum(parameter.numel() for block in anatomy.blocks for parameter in block.parameters())
    if blocks not in (None, n_blocks):
        raise OnejumpError(
            f"model {source.location}: has {n_blocks} blocks, the config says {blocks}; set blocks: {n_blocks}"
        )
    facts = {"model": name, "revision": revision, "dtype": dtype, "n_blocks": n_blocks}
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    facts["block_parameters"] = in_blocks // n_blocks
    head.save(path, facts)
