"""Conversion of a GGUF file to a Transformers folder, a block at a time."""

import functools
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gguf
import torch
from torch import Tensor, nn

from onejump.files.atomic import OnejumpError, require_file, temporary_folder
from onejump.files.digests import check_sha256, sha256_of_file
from onejump.files.progress import progress_bar
from onejump.files.sealed import write_sealed_json
from onejump.models.sources import PROVENANCE_FILE, digest_of_folder, first_sentence, unusable_files
from onejump.models.weights import WeightsWriter


def convert_gguf(path: str | Path, folder: str | Path, sha256: str | None = None) -> None:
    """Convert a GGUF file to a Transformers folder, replaced if it exists: float32 safetensors, config and tokenizer.

    Of most architectures one block is in memory at a time; a few (Qwen3.5, LFM2) are converted whole.

    Raises:
        OnejumpError: the file is missing, has another digest, lacks tensors, or is not a model that Transformers reads.
    """
    path, folder = require_file(path), Path(folder)
    if sha256 is not None:
        check_sha256(path, sha256)
    with temporary_folder(folder) as scratch:
        _write(path, temporary := scratch / folder.name)
        provenance = {"model": path.name, "revision": sha256_of_file(path), "content": digest_of_folder(temporary)}
        write_sealed_json(temporary / PROVENANCE_FILE, provenance)
        for file in temporary.iterdir():  # safetensors makes files that only their owner can read
            file.chmod((temporary / "config.json").stat().st_mode)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)


def _write(path: Path, folder: Path) -> None:
    """Write config, plain float32 weights and tokenizer of the file to a new folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.gguf.reader import read_gguf_metadata
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        facts, names = read_gguf_metadata(path)  # keeps to the file's bounds, which the reader below may not
        architecture = facts["general.architecture"]
        blocks = facts.get(f"{architecture}.block_count", 0)
        if blocks > len(names):
            raise ValueError(f"{blocks} blocks cannot be made of {len(names)} tensors")
        with _read_once(path) as reader:
            with torch.device("meta"):  # the weights come from the file
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**source), dtype=torch.float32)
            AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
            if is_gguf_arch_supported(architecture):  # by Transformers' newer loader
                lost, unused = _write_whole(model, source, folder)
            else:
                lost, unused = _compare(
                    {tensor.name: tensor.n_elements for tensor in reader.tensors}, model, architecture
                )
                if not lost:
                    _write_by_blocks(model, path, reader, folder)
    except Exception as error:  # damaged headers raise almost anything
        reason = "; ".join([first_sentence(error), *unusable_files([path])])
        raise OnejumpError(
            f"{path}: not a GGUF model that Transformers can read ({reason}); download it again or use another file"
        ) from error
    if lost:
        raise OnejumpError(f"{path}: lacks {', '.join(sorted(lost))}; download it again or use another file")
    if unused:
        print(f"onejump: {path}: the model has no place for {', '.join(sorted(unused))}; left out", file=sys.stderr)


def _write_whole(model: nn.Module, source: Mapping, folder: Path) -> tuple[list[str], list[str]]:
    """Write the weights at once; returns what the file lacks, and what the model has no place for."""
    loaded, loading = type(model).from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
    # The loaded model's config says that it is quantised, and save_pretrained refuses it.
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    return loading["missing_keys"], loading["unexpected_keys"]


def _write_by_blocks(model: nn.Module, path: Path, reader: gguf.GGUFReader, folder: Path) -> None:
    """Write the weights in one file for each block and each tensor of none; `model` has no memory."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    with WeightsWriter(folder, model) as weights:
        for group in progress_bar(_by_block(reader.tensors), "weights", "block"):
            found = _converted(model, path, reader, group)
            if other := [name for name, tensor in found.items() if tensor.shape != shapes[name]]:
                raise ValueError(f"{other[0]} has the shape {tuple(found[other[0]].shape)}")
            weights.add(found)


def _by_block(tensors: list) -> list[list]:
    """A file's tensors, those of a block together, and each of no block alone."""

    def block(tensor) -> str:
        return (re.match(r"blk\.\d+\.", tensor.name) or [tensor.name])[0]

    return [list(group) for _, group in groupby(sorted(tensors, key=block), block)]


def _converted(model: nn.Module, path: Path, reader: gguf.GGUFReader, tensors: list) -> dict[str, Tensor]:
    """Some tensors of the file as those of the model."""
    from transformers import modeling_gguf_pytorch_utils as loader

    # The vocabulary would be read again for each block, and a progress bar drawn.
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    fields["tokenizer.ggml.tokens"] = SimpleNamespace(parts=[], data=[], types=[])
    part = SimpleNamespace(fields=fields, tensors=tensors)
    with _replaced(gguf, GGUFReader=lambda _: part), _replaced(loader, tqdm=lambda found, **_: found):
        options = {"return_tensors": True, "model_to_load": model, "torch_dtype": torch.float32}
        return loader.load_gguf_checkpoint(path, **options)["tensors"]


def _compare(sizes: Mapping[str, int], model: nn.Module, architecture: str) -> tuple[list[str], list[str]]:
    """Weights of the model that the file does not fill, and tensors of the file that go into no weight.

    Transformers' older loader does not report the tensors that it leaves out, and fills with zeros what is lacking of
    weights that are joined from several tensors, as those of experts are. `sizes` are numbers of elements by the
    tensors' names in the file.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    names = get_gguf_hf_weights_map(model, TENSOR_PROCESSORS.get(architecture, TensorProcessor)())
    weights = {name.removesuffix(".weight"): weight for name, weight in names.items()}
    filled, unused = Counter(), []
    for name, size in sizes.items():
        if weight := weights.get(name.removesuffix(".weight")):
            filled[weight] += size
        else:
            unused.append(name)
    lost = []
    for weight, parameter in model.named_parameters():
        if filled[weight] != parameter.numel():
            lost.append(f"{weight} ({filled[weight]} of {parameter.numel()} numbers)" if filled[weight] else weight)
    return lost, unused


@contextmanager
def _read_once(path: Path) -> Iterator[gguf.GGUFReader]:
    """Halve the time that Transformers takes: it reads the file four times, and lists its tensors for each module."""
    reader = gguf.GGUFReader(path)
    cached = functools.cache(gguf.get_tensor_name_map)
    with _replaced(gguf, GGUFReader=lambda _: reader, get_tensor_name_map=cached):
        yield reader


@contextmanager
def _replaced(module: ModuleType, **functions: object) -> Iterator[None]:
    """Give a module other functions inside the block."""
    before = {name: getattr(module, name) for name in functions}
    vars(module).update(functions)
    try:
        yield
    finally:
        vars(module).update(before)
