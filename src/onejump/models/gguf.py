"""From a GGUF file to a Transformers folder."""

import functools
import os
import shutil
import uuid
from pathlib import Path
from unittest import mock

import torch

from onejump.files.atomic import OnejumpError, require_file, write_json
from onejump.files.digests import check_sha256, sha256_of_file
from onejump.models.sources import PROVENANCE_FILE, _first_line


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
