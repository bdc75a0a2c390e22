"""SHA-256 digests of files."""

import hashlib
from pathlib import Path

from onejump.files.atomic import OnejumpError, require_file

DIGEST_KEY = "sha256"


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(require_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: str | Path, sha256: str, name: str | None = None) -> None:
    """Raise OnejumpError unless the file at `path` has this digest; the message calls the file `name`."""
    found = sha256_of_file(path)
    if found != sha256:
        raise OnejumpError(
            f"{name or path}: its sha256 is {found}, expected {sha256}; fetch it again or correct the config"
        )
