"""Published jumps on the Hugging Face hub: downloading one, and uploading a folder."""

from pathlib import Path

from onejump.files.atomic import OnejumpError
from onejump.models.sources import first_sentence, is_folder, trouble_with_the_hub
from onejump.sharing.folder import CONFIG, TENSORS


def folder_of(location: str, revision: str | None) -> Path:
    """The folder of a published jump: `location` itself, or where the hub's cache has it, downloaded if need be.

    Raises:
        OnejumpError: there is no such folder, or no such repository or revision, or the hub cannot be reached.
    """
    if is_folder("jump", location):
        return Path(location)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(location, revision=revision, allow_patterns=[CONFIG, TENSORS]))
    except Exception as error:  # a wrong id, no network, a full disk
        reason = trouble_with_the_hub(error, location, revision) or f"cannot be fetched ({first_sentence(error)})"
        raise OnejumpError(f"jump {location}: {reason}") from error


def push(folder: Path, repository: str) -> str:
    """Upload a folder to a repository of the hub, made if need be, in one commit; its address.

    Raises:
        OnejumpError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        return api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="A jump, published by onejump"
        ).commit_url
    except Exception as error:  # no token, no right, no network, a wrong id
        advice = "set HF_TOKEN to a token that may write there, and HF_HUB_OFFLINE to 0"
        raise OnejumpError(
            f"{repository}: {folder} is whole, but cannot be uploaded ({first_sentence(error)}); {advice}"
        ) from error
