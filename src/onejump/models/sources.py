"""Where a model comes from, how it is loaded, and how it is identified."""

import hashlib
from collections.abc import Iterable, Iterator
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


@dataclass(frozen=True)
class ModelSource:
    """A model in a folder or on the hub."""

    location: str  # a folder in Transformers' format, or a model id on the hub
    revision: str | None = None  # a commit, tag or branch of the hub; None for a folder
    trust_remote_code: bool = False  # whether to run code that comes with the model
    gpus: int = 1  # number of GPUs to spread the blocks over

    def _load(self, factory, **options):
        if is_folder("model", self.location):
            options["local_files_only"] = True
        options |= {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        try:
            return factory.from_pretrained(self.location, **options)
        except Exception as error:  # damaged files and code that comes with a model raise almost anything
            kind = factory.__name__.removeprefix("AutoModelFor").removeprefix("Auto")
            reason = (
                trouble_with_the_hub(error, self.location, self.revision)
                or f"cannot be loaded as {kind} ({first_sentence(error)})"
            )
            unusable = unusable_files(sorted(Path(self.location).glob("*")))
            raise OnejumpError("; ".join([f"model {self.location}: {reason}", *unusable])) from error

    def load_model(self, dtype: str = "float32", device: torch.device | str = "cpu") -> nn.Module:
        """Load the model in evaluation mode, onto `device` or, if `gpus` is not 1, spread over all GPUs.

        Raises:
            OnejumpError: the model cannot be found or loaded, lacks weights, or is not a causal language model.
        """
        from transformers import AutoModelForCausalLM

        options = {"device_map": "auto"} if self.gpus > 1 else {}
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, loading = self._load(AutoModelForCausalLM, dtype=DTYPES[dtype], **options)
        lost = set(loading["missing_keys"])
        lost |= {
            f"{name} of shape {tuple(wanted)} (has {tuple(own)})" for name, own, wanted in loading["mismatched_keys"]
        }
        if lost:
            raise OnejumpError(f"model {self.location}: lacks {', '.join(sorted(lost))}; download it again")
        return model.eval() if self.gpus > 1 else model.to(device).eval()

    def load_tokenizer(self):
        """Load the tokenizer; raises as `load_model`."""
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer)

    def load_config(self):
        """Load the config alone; raises as `load_model`."""
        from transformers import AutoConfig

        return self._load(AutoConfig)

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
