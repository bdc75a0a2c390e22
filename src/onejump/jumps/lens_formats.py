"""Lenses of other tools, read from their files, and the study's own, written for them.

- tuned-lens 0.2.0 (Belrose et al. 2023): a folder with `config.json`, which names the base model, and `params.pt`:
  `l.weight` [H, H] and `l.bias` [H] of layers 0..K-1, for `h + weight h + bias`. Its layer l is level l.
- the Jacobian lens (Gurnee et al. 2026): a file with `J`, layer -> [H, H] for `J h`, of layers 0..K-2, and `n_prompts`,
  `source_layers` and `d_model`. Its layer l is what block l puts out, level l + 1: level 0 has no map.

Both tools keep `.pt` files, in which PyTorch names tensors by a pickle. They are read with `weights_only`, which builds
tensors and plain containers and refuses all else, so that nothing in a file is run. What is written is safetensors with
the same names and shapes; docs/method.md has the lines that turn it into theirs.
"""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onejump.files.atomic import OnejumpError, read_json, require_file, write_json
from onejump.files.digests import sha256_of_file
from onejump.files.tensors import TensorFile, write_tensors
from onejump.jumps.lenses import AffineLens, LensFile
from onejump.models.sources import first_sentence
from onejump.models.unembedding import Unembedding

# As tuned-lens calls its files, and the one kind of lens that such a config stands for.
CONFIG, PARAMS, LENS_TYPE = "config.json", "params.pt", "linear_tuned_lens"
# What is written for it, and for the Jacobian lens.
EXPORTED_PARAMS, EXPORTED_JACOBIANS = "params.safetensors", "lens.safetensors"


def read_tuned_lens(folder: Path, unembedding: Unembedding) -> tuple[list[AffineLens], dict]:
    """The maps of levels 0..K-1 of a tuned-lens folder, which predict `pre_norm`, and facts for their file.

    Raises:
        OnejumpError: a file is missing, damaged, of another form, or holds more than tensors; or the lens has other
            dimensions or another base model.
    """
    path, facts = folder / CONFIG, unembedding.metadata
    H, K, model = unembedding.hidden_size, facts["n_blocks"], facts["model"]
    config = {"lens_type": LENS_TYPE} | read_json(path)
    for key, expected in {"lens_type": LENS_TYPE, "d_model": H, "num_hidden_layers": K}.items():
        if (found := config.get(key)) != expected:
            raise OnejumpError(f"{path}: {key} is {found}, expected {expected}; give a tuned lens of {model}")
    _require_base_model(path, config.get("base_model_name_or_path"), model)
    found, expected = config.get("unembed_hash"), unembedding_hash(unembedding)
    if found not in (None, expected):
        raise OnejumpError(
            f"{path}: unembed_hash is {found}, expected {expected} of {model}; give a lens of this very model, or "
            "remove the hash if it is one"
        )
    shapes = {
        f"{layer}.{part}": shape for layer in range(K) for part, shape in {"weight": (H, H), "bias": (H,)}.items()
    }
    maps = _tensors(folder / PARAMS, _load(folder / PARAMS), shapes, model)
    levels = [AffineLens((maps[f"{level}.weight"].T,), maps[f"{level}.bias"], residual=True) for level in range(K)]
    return levels, {"source_sha256": sha256_of_file(folder / PARAMS), "multiply_adds": None}


def read_jacobian_lens(path: Path, unembedding: Unembedding) -> tuple[list[AffineLens], dict]:
    """The maps of levels 0..K-1 of a Jacobian lens's file, which predict `pre_norm`, and facts for their file.

    Level 0, for which such a file has no map, is identity.

    Raises:
        OnejumpError: as `read_tuned_lens`.
    """
    H, K, model = unembedding.hidden_size, unembedding.metadata["n_blocks"], unembedding.metadata["model"]
    found = _load(path)
    form = {"J": dict, "n_prompts": int}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in form.items()):
        keys = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise OnejumpError(
            f"{path}: holds {keys}, expected J, n_prompts, source_layers and d_model; give what JacobianLens.save wrote"
        )
    about = found.get("metadata")  # which TransformerLens adds
    about = about if isinstance(about, dict) else {}
    if "model_name" in about:
        _require_base_model(path, about["model_name"], model)
    if (target := about.get("target_layer", K - 1)) != K - 1:
        raise OnejumpError(
            f"{path}: predicts layer {target}, expected the last one, {K - 1}; give a lens of that layer"
        )
    given = {f"J[{layer}]": matrix for layer, matrix in found["J"].items()}
    maps = _tensors(path, given, {f"J[{layer}]": (H, H) for layer in range(K - 1)}, model)
    levels = [AffineLens((torch.eye(H),)), *(AffineLens((matrix.T,)) for matrix in maps.values())]
    return levels, {"source_sha256": sha256_of_file(path), "multiply_adds": None, "prompts": found["n_prompts"]}


def write_tuned_lens(folder: Path, path: Path, unembedding: Unembedding) -> None:
    """Write the lens of a study's file as a tuned-lens folder, in float32, with `params.safetensors`.

    Raises:
        OnejumpError: the lens predicts the state behind the final norm; or as `LensFile`.
    """
    facts, H, params = unembedding.metadata, unembedding.hidden_size, {}
    for level, own in enumerate(_levels(path, unembedding)):
        params[f"{level}.weight"] = _whole(own, residual=True).T.contiguous()
        params[f"{level}.bias"] = torch.zeros(H) if own.bias is None else own.bias
    config = {"base_model_name_or_path": facts["model"], "base_model_revision": facts["revision"], "d_model": H}
    config |= {"num_hidden_layers": facts["n_blocks"], "bias": True, "lens_type": LENS_TYPE}
    write_tensors(folder / EXPORTED_PARAMS, params, {})
    write_json(folder / CONFIG, config | {"unembed_hash": unembedding_hash(unembedding)})


def write_jacobian_lens(folder: Path, path: Path, unembedding: Unembedding) -> None:
    """Write the lens of a study's file as a Jacobian lens: `lens.safetensors`, in float32 and without level 0.

    Raises:
        OnejumpError: the lens has a bias; or as `write_tuned_lens`.
    """
    _, *levels = _levels(path, unembedding)
    if levels[0].bias is not None:
        raise OnejumpError(f"{path}: has a bias, which a Jacobian lens has no place for; write it as a tuned lens")
    J = {str(layer): _whole(level, residual=False).T.contiguous() for layer, level in enumerate(levels)}
    write_tensors(folder / EXPORTED_JACOBIANS, J, {"n_prompts": TensorFile(path).value("prompts")})


READERS = {"imported_tuned_lens": read_tuned_lens, "imported_jacobian_lens": read_jacobian_lens}
WRITERS = {"tuned_lens": write_tuned_lens, "jacobian_lens": write_jacobian_lens}


def unembedding_hash(unembedding: Unembedding) -> str:
    """By which tuned-lens knows a base model: SHA-256 of the output embedding as NumPy prints it, with one digit."""
    return hashlib.sha256(np.array2string(unembedding.weight.float().numpy(), precision=1).encode()).hexdigest()


def _require_base_model(path: Path, name: object, model: str) -> None:
    """Compare the last parts of two names: a hub id, a folder, or a GGUF file, whose name goes on after a dot."""
    found, own = (Path(str(one)).name.lower() for one in (name, model))
    if found != own and not own.startswith(f"{found}."):
        raise OnejumpError(
            f"{path}: its base model is {name}, expected {model}; give a lens of that model, or correct the name there "
            "if it is the same"
        )


def _levels(path: Path, unembedding: Unembedding) -> list[AffineLens]:
    """The maps of a study's lens, if it is one that other tools can apply: they do so before the final norm."""
    lens = LensFile(path, unembedding)
    if lens.target != "pre_norm":
        raise OnejumpError(f"{path}: predicts the target {lens.target}, expected pre_norm; give a lens for that target")
    return [lens.at(level) for level in range(unembedding.metadata["n_blocks"])]


def _whole(lens: AffineLens, residual: bool) -> Tensor:
    """W [H, H], with which `h W`, or `h + h W`, is the lens without its bias."""
    W = functools.reduce(torch.matmul, lens.factors)
    return W + (lens.residual - residual) * torch.eye(len(W))


def _load(path: Path) -> object:
    require_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files, and pickles that are refused, raise almost anything
        raise OnejumpError(
            f"{path}: cannot be read as plain tensors ({first_sentence(error)}); give the file as its tool wrote it"
        ) from error


def _tensors(path: Path, found: object, shapes: Mapping[str, tuple[int, ...]], model: str) -> dict[str, Tensor]:
    """The tensors of these names and shapes, in float32, if they are all that is there."""
    found, names = found if isinstance(found, dict) else {}, list(shapes)
    odd = [f"has no {name}" for name in names if name not in found]
    odd += [f"also has {name}" for name in found if name not in shapes]
    if odd:
        raise OnejumpError(f"{path}: {odd[0]}, expected {names[0]} to {names[-1]}; give a lens of {model}")
    for name, shape in shapes.items():
        if (own := tuple(getattr(found[name], "shape", ()))) != shape:
            raise OnejumpError(f"{path}: {name} has shape {own}, expected {shape}; give a lens of {model}")
        if not found[name].isfinite().all():
            raise OnejumpError(f"{path}: {name} has NaN or infinite values, expected none; fit the lens again")
    return {name: found[name].float() for name in shapes}
