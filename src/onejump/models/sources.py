"""Where a model comes from, how it is loaded, and how it is identified."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from onejump.files.atomic import OnejumpError
from onejump.files.digests import sha256_of_file
from onejump.files.sealed import read_sealed_json
from onejump.models.devices import DTYPES

PROVENANCE_FILE = "onejump.json"
LFS_POINTER = b"version https://git-lfs"
# What a loader of Transformers is to tell, instead of giving random values to what the files lack.
REPORTING = {"output_loading_info": True, "ignore_mismatched_sizes": True}


@dataclass(frozen=True)
class ModelSource:
    """A model in a folder or on the hub."""

    location: str  # a folder in Transformers' format, or a model id on the hub
    revision: str | None = None  # a commit, tag or branch of the hub; None for a folder
    trust_remote_code: bool = False  # whether to run code that comes with the model
    gpus: int = 1  # number of GPUs to spread the blocks over

    def _load(self, factory, **options):
        kind = factory.__name__.removeprefix("AutoModelFor").removeprefix("Auto")
        options |= {"trust_remote_code": self.trust_remote_code}
        return self._find(f"be loaded as {kind}", factory.from_pretrained, **options)

    def _find(self, what: str, function, *names: str, **options):
        """Call a function of Transformers that finds something of the model, and explain its errors."""
        if is_folder("model", self.location):
            options["local_files_only"] = True
        try:
            return function(self.location, *names, revision=self.revision, **options)
        except Exception as error:  # damaged files and code that comes with a model raise almost anything
            trouble = trouble_with_the_hub(error, self.location, self.revision)
            reason = trouble or f"cannot {what} ({first_sentence(error)})"
            unusable = unusable_files(sorted(Path(self.location).glob("*")))
            raise OnejumpError("; ".join([f"model {self.location}: {reason}", *unusable])) from error

    def load_model(self, dtype: str = "float32", device: torch.device | str = "cpu") -> nn.Module:
        """Load the model in evaluation mode, onto `device` or, if `gpus` is not 1, spread over all GPUs.

        Raises:
            OnejumpError: the model cannot be found or loaded, lacks weights, or is not a causal language model.
        """
        from transformers import AutoModelForCausalLM

        options = {"device_map": "auto"} if self.gpus > 1 else {}
        model = self._complete(*self._load(AutoModelForCausalLM, dtype=DTYPES[dtype], **REPORTING, **options))
        return model if self.gpus > 1 else model.to(device)

    def _complete(self, model: nn.Module, loading: Mapping) -> nn.Module:
        """A model in evaluation mode, if its files have all its weights; else an OnejumpError."""
        lost = set(loading["missing_keys"])
        lost |= {
            f"{name} of shape {tuple(wanted)} (has {tuple(own)})" for name, own, wanted in loading["mismatched_keys"]
        }
        if lost:
            raise OnejumpError(f"model {self.location}: lacks {', '.join(sorted(lost))}; download it again")
        return model.eval()

    def load_tensors(self, kind: type, config, tensors: Mapping, dtype: str) -> nn.Module:
        """A model of that class made of these tensors, in evaluation mode; raises as `load_model`."""
        options = {"config": config, "state_dict": tensors, "dtype": DTYPES[dtype], **REPORTING}
        return self._complete(*kind.from_pretrained(None, **options))

    def find_weights(self) -> list[Path] | None:
        """The model's safetensors files, fetched if they are on the hub; None if it has none.

        Raises:
            OnejumpError: the model cannot be found.
        """
        from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
        from transformers.utils.hub import get_checkpoint_shard_files

        what, lenient = "be looked into", {"_raise_exceptions_for_missing_entries": False}
        if single := self._find(what, cached_file, SAFE_WEIGHTS_NAME, **lenient):
            return [Path(single)]
        if not (index := self._find(what, cached_file, SAFE_WEIGHTS_INDEX_NAME, **lenient)):
            return None
        files, _ = self._find(what, get_checkpoint_shard_files, index)
        return list(map(Path, files))

    def load_config(self):
        """The model's config; raises as `load_model`."""
        from transformers import AutoConfig

        return self._load(AutoConfig)

    def load_tokenizer(self):
        """Load the tokenizer; raises as `load_model`."""
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer)

    def load_max_positions(self) -> int | None:
        """Longest input in tokens that the model's config allows, or None if it sets no limit."""
        return getattr(self.load_config().get_text_config(), "max_position_embeddings", None)

    def identity(self) -> tuple[str, str]:
        """Name and exact revision: the hub's commit, or the SHA-256 of a folder's config and weights.

        A folder made by `convert-gguf` is identified by the GGUF file that it was made from.
        """
        folder = Path(self.location)
        if not folder.is_dir():
            from huggingface_hub import try_to_load_from_cache

            # The cache keeps loaded files under their commit, whatever branch or tag was asked for.
            config = try_to_load_from_cache(self.location, "config.json", revision=self.revision)
            return self.location, Path(config).parent.name if isinstance(config, str) else self.revision or "unknown"
        found = digest_of_folder(folder)
        if not (folder / PROVENANCE_FILE).is_file():
            return folder.resolve().name, found
        provenance = read_sealed_json(folder / PROVENANCE_FILE)
        if provenance.get("content") != found:
            raise OnejumpError(
                f"model {self.location}: is not as it was converted from {provenance['model']}; remove the folder and "
                f"convert the file again, or remove {PROVENANCE_FILE} to use it as a model of your own"
            )
        return provenance["model"], provenance["revision"]


def is_folder(kind: str, location: str) -> bool:
    """Whether a model or something else is in a folder, rather than on the hub.

    Raises:
        OnejumpError: the location is no folder, and cannot be a hub id.
    """
    if Path(location).is_dir():
        return True
    if location.startswith((".", "/")) or location.count("/") > 1:
        advice = "correct the path, or give a hub id as 'owner/name'"
        raise OnejumpError(f"{kind} {location}: no such folder; {advice}")
    return False


def trouble_with_the_hub(error: BaseException | None, location: str, revision: str | None) -> str | None:
    """What is wrong and what to do, by the first cause of the error that is one of the hub's."""
    revision = revision or "main"
    advice = {
        "GatedRepoError": "is gated; accept its licence on the hub, and set HF_TOKEN to a token of that account",
        "RevisionNotFoundError": f"has no revision {revision!r}; name a commit, tag or branch that it has",
        "RepositoryNotFoundError": "is not on the hub, or is private; check the id, or set HF_TOKEN",
        "LocalEntryNotFoundError": f"revision {revision!r} is not in the cache and the hub cannot be reached; "
        f"fetch it once where there is a network: hf download {location} --revision {revision}",
    }
    advice["OfflineModeIsEnabled"] = advice["LocalEntryNotFoundError"]
    while error is not None:
        if type(error).__name__ in advice:
            return advice[type(error).__name__]
        error = error.__cause__ or error.__context__
    return None


def digest_of_folder(folder: Path) -> str:
    """SHA-256 of a folder's config and weights."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{file.name} {sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def unusable_files(files: Iterable[Path]) -> Iterator[str]:
    """What is wrong with each weights or tokenizer file that is empty or a Git LFS pointer, and what to do."""
    for file in files:
        if file.suffix not in (".safetensors", ".bin", ".gguf", ".json", ".model") or not file.is_file():
            continue
        with open(file, "rb") as stream:
            start = stream.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            yield f"{file.name} is a Git LFS pointer, not the file itself: run git lfs pull in its folder"
        elif not start:
            yield f"{file.name} is empty: download it again"


def first_sentence(error: Exception) -> str:
    """First sentence of an error's message, or the error's type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]
