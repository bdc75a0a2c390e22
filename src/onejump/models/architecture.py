"""The dimensions of a model and the number of its weights, without the weights.

    python -m onejump.models.architecture config.json

counts them on a model whose parameters are shapes alone. The config files that come with the project hold what it
prints under `onejump`, so that a plan needs no PyTorch.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from onejump.files.atomic import OnejumpError, read_json, write_json

ARCHITECTURES = Path(__file__).parent / "architectures"
LOADS = ("auto", "whole", "blocks")  # how a model is held while it runs
LARGEST_WHOLE = 4e9  # bytes of weights that `auto` holds at once, so that a job stays within a common 8 GB


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a causal language model."""

    name: str  # of the config
    n_blocks: int  # K
    hidden_size: int  # H
    vocabulary: int  # V
    block_parameters: int  # weights of one block; of a mixture of experts all, though a token uses few of them
    other_parameters: int  # weights outside the blocks, shared ones counted once

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.n_blocks * self.block_parameters + self.other_parameters


def by_blocks(load: str, weights: float, gpus: int = 1, free: float = math.inf) -> bool:
    """Whether a model is held one block at a time.

    `auto` holds the whole model where its weights take at most LARGEST_WHOLE and half of the free memory, or where they
    are spread over several GPUs. A plan, which does not know the free memory, never plans too little.

    Args:
        load: one of LOADS.
        weights: bytes of all weights in memory.
        gpus: that the blocks are spread over.
        free: bytes of the device that are free.
    """
    return load == "blocks" or (load == "auto" and gpus == 1 and weights > min(LARGEST_WHOLE, free / 2))


def architecture_file(name: str | Path) -> Path:
    """The config file of a name: one that comes with the project, or the path of a config.json.

    Raises:
        OnejumpError: there is none.
    """
    path = ARCHITECTURES / f"{name}.json"
    if path.is_file():
        return path
    if not Path(name).is_file():
        known = ", ".join(sorted(file.stem for file in ARCHITECTURES.glob("*.json")))
        raise OnejumpError(f"architecture {name}: no such config; name one of {known}, or a config.json")
    return Path(name)


def load_architecture(name: str | Path) -> Architecture:
    """The dimensions of a model, named as `architecture_file` takes it.

    The weights of a config that does not hold its counts are counted once, in a process of its own, and the counts are
    kept in the user's cache.

    Raises:
        OnejumpError: there is no such config, or no model can be built from it.
    """
    file = architecture_file(name)
    if (counts := read_json(file).get("onejump")) is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onejump"
        kept = cache / f"{hashlib.sha256(file.read_bytes()).hexdigest()}.json"
        counts = None
        with suppress(OSError, OnejumpError):
            counts = read_json(kept)
        if counts is None:
            counts = _count_in_a_process(file)
            with suppress(OSError):  # where the cache cannot be written, each plan counts anew
                write_json(kept, counts)
    return Architecture(str(name), **counts)


def _count_in_a_process(file: Path) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-m", "onejump.models.architecture", file], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OnejumpError(f"{file}: its weights cannot be counted ({reason}); give a model's whole config.json")
    return json.loads(done.stdout)


def find_architecture(name: str, model: Mapping) -> Architecture:
    """The dimensions of a model of a study.

    They are those of the `architecture` that the study names, of the model's config.json where that is here already,
    or of the config of the model's name that comes with the project; failing all, Llama-2-7B's, called `assumed`.

    Raises:
        OnejumpError: as `load_architecture`, for the architecture that the study names.
    """
    if "architecture" in model:
        return load_architecture(model["architecture"])
    ((kind, source),) = model["source"].items()
    if kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(source["id"], "config.json", revision=source["revision"])
    else:
        file = Path(source if kind == "path" else f"resources/models/{source['sha256']}") / "config.json"
    for candidate in (str(file), name):
        with suppress(OnejumpError):  # there is no such file, or the model needs code of its own
            return load_architecture(candidate)
    return replace(load_architecture("llama-2-7b"), name="llama-2-7b, assumed")


def count_parameters(config: dict) -> dict[str, int]:
    """Dimensions and numbers of weights of the model of a config.json, as `Architecture` takes them.

    The blocks are taken to be the list of modules with the most weights: a model of shapes alone cannot be run.
    """
    from torch import nn

    from onejump.models.random_weights import empty_model

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    model = empty_model(config)
    model.tie_weights()
    blocks = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=count)
    vocabulary, hidden_size = model.get_output_embeddings().weight.shape
    return {
        "n_blocks": len(blocks),
        "hidden_size": hidden_size,
        "vocabulary": vocabulary,
        "block_parameters": count(blocks) // len(blocks),
        "other_parameters": count(model) - count(blocks),
    }


if __name__ == "__main__":
    print(json.dumps(count_parameters(read_json(sys.argv[1]))))
