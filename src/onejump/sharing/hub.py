"""Where published jumps are: in a folder, with onejump itself, or on the Hugging Face hub; and uploading a folder."""

from pathlib import Path

from onejump.files.atomic import OnejumpError
from onejump.models.sources import first_sentence, is_folder, trouble_with_the_hub
from onejump.sharing.folder import CONFIG, TENSORS

READY = Path(__file__).parent / "ready"  # the jumps that come with onejump: a folder each, whose name is its short name


def folder_of(location: str, revision: str | None) -> Path:
    """The folder of a published jump.

    An existing folder is itself. Else a name without a slash is that of a ready jump, and one with a slash is a
    repository on the hub: where its cache has it, downloaded if need be.

    Raises:
        OnejumpError: there is no such folder, ready jump, repository or revision, or the hub cannot be reached.
    """
    if is_folder("jump", location):
        return Path(location)
    if "/" not in location:
        return _ready(location)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(location, revision=revision, allow_patterns=[CONFIG, TENSORS]))
    except Exception as error:  # a wrong id, no network, a full disk
        reason = trouble_with_the_hub(error, location, revision) or f"cannot be fetched ({first_sentence(error)})"
        raise OnejumpError(f"jump {location}: {reason}") from error


def _ready(name: str) -> Path:
    known = sorted(path.name for path in READY.iterdir() if path.is_dir())
    if name not in known:
        raise OnejumpError(
            f"jump {name}: no such folder, and none of the jumps that come with onejump ({', '.join(known)}); name one "
            "of these, or give a folder or a hub id as 'owner/name'"
        )
    return READY / name


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
