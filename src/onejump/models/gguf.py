"""Conversion of a GGUF file to a Transformers folder."""

import functools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import gguf
import torch
from torch import nn

from onejump.files.atomic import OnejumpError, require_file, temporary_folder
from onejump.files.digests import check_sha256, sha256_of_file
from onejump.files.sealed import write_sealed_json
from onejump.models.sources import PROVENANCE_FILE, digest_of_folder, first_sentence, unusable_files


def convert_gguf(path: str | Path, folder: str | Path, sha256: str | None = None) -> None:
    """Convert a GGUF file to a Transformers folder, replaced if it exists: float32 safetensors, config and tokenizer.

    Raises:
        OnejumpError: the file is missing, has another digest, lacks tensors, or is not a model that Transformers reads.
    """
    path, folder = require_file(path), Path(folder)
    if sha256 is not None:
        check_sha256(path, sha256)
    model, tokenizer = _load(path)
    with temporary_folder(folder) as scratch:
        model.save_pretrained(temporary := scratch / folder.name)
        tokenizer.save_pretrained(temporary)
        provenance = {"model": path.name, "revision": sha256_of_file(path), "content": digest_of_folder(temporary)}
        write_sealed_json(temporary / PROVENANCE_FILE, provenance)
        for file in temporary.iterdir():  # safetensors makes files that only their owner can read
            file.chmod((temporary / "config.json").stat().st_mode)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)


def _load(path: Path) -> tuple[nn.Module, object]:
    """The model, with plain float32 weights, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.gguf.reader import read_gguf_metadata

    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        facts, names = read_gguf_metadata(path)  # keeps to the file's bounds, which the reader below may not
        blocks = facts.get(f"{facts['general.architecture']}.block_count", 0)
        if blocks > len(names):
            raise ValueError(f"{blocks} blocks cannot be made of {len(names)} tensors")
        with _read_once(path) as reader:
            with torch.device("meta"):  # weights that are replaced at once need no initial values
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**source))
            sizes = {tensor.name: tensor.n_elements for tensor in reader.tensors}
            lost, unused = _compare(sizes, model, facts["general.architecture"])
            if not lost:
                tokenizer = AutoTokenizer.from_pretrained(**source)
                options = {"dtype": torch.float32, "output_loading_info": True}
                loaded, loading = AutoModelForCausalLM.from_pretrained(**source, **options)
                lost, unused = [*lost, *loading["missing_keys"]], [*unused, *loading["unexpected_keys"]]
    except Exception as error:  # damaged headers raise almost anything
        reason = "; ".join([first_sentence(error), *unusable_files([path])])
        raise OnejumpError(
            f"{path}: not a GGUF model that Transformers can read ({reason}); download it again or use another file"
        ) from error
    if lost:
        raise OnejumpError(f"{path}: lacks {', '.join(sorted(lost))}; download it again or use another file")
    if unused:
        print(f"onejump: {path}: the model has no place for {', '.join(sorted(unused))}; left out", file=sys.stderr)
    # The loaded model's config says that it is quantised, and save_pretrained refuses it.
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    return model, tokenizer


def _compare(sizes: Mapping[str, int], model: nn.Module, architecture: str) -> tuple[list[str], list[str]]:
    """Weights of the model that the file does not fill, and tensors of the file that go into no weight.

    Transformers' newer loader reports both. The older one reports no tensor that it leaves out, and fills with zeros
    what is lacking of weights that are joined from several tensors, as those of experts are. `sizes` are numbers of
    elements by the tensors' names in the file.
    """
    from transformers.integrations.gguf.utils import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    if is_gguf_arch_supported(architecture):
        return [], []
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
    once = {"GGUFReader": lambda _: reader, "get_tensor_name_map": functools.cache(gguf.get_tensor_name_map)}
    before = {name: getattr(gguf, name) for name in once}
    vars(gguf).update(once)
    try:
        yield reader
    finally:
        vars(gguf).update(before)
