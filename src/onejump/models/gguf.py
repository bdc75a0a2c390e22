"""Conversion of a GGUF file to a Transformers folder."""

import functools
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import torch

from onejump.files.atomic import OnejumpError, require_file, write_json
from onejump.files.digests import check_sha256, sha256_of_file
from onejump.models.sources import PROVENANCE_FILE, first_line


def convert_gguf(path: str | Path, folder: str | Path, sha256: str | None = None) -> None:
    """Convert a GGUF file to a Transformers folder: weights as float32 safetensors, config and tokenizer.

    Args:
        path: the GGUF file.
        folder: the folder to write; replaced if it exists.
        sha256: expected digest of the file, or None to accept any.

    Raises:
        OnejumpError: the file is missing, has another digest, or is not a model that Transformers can read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, folder = require_file(path), Path(folder)
    if sha256 is not None:
        check_sha256(path, sha256)
    try:
        with _read_once():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise OnejumpError(f"{path}: not a GGUF model that Transformers can read ({first_line(error)})") from error
    # save_pretrained refuses a model loaded from GGUF as long as its config says that it is quantised.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    with torch.device("meta"):  # weights that are replaced at once need no initial values
        plain = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings))
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / PROVENANCE_FILE, {"model": path.name, "revision": sha256_of_file(path)})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _read_once() -> Iterator[None]:
    """Halve the time that Transformers takes: it reads the file three times, and lists its tensors for each module."""
    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in slow.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)
