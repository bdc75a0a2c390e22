"""JSON and SVG files that end with a digest of their content, which their readers check."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from onejump.files.atomic import OnejumpError, read_json, require_file, write_text
from onejump.files.digests import DIGEST_KEY

_COMMENT = b"<!-- sha256 %s -->\n"


def write_sealed_json(path: str | Path, value: Mapping) -> None:
    """Write a JSON object atomically, with the digest of all else under `sha256`."""
    write_text(path, json.dumps({**value, DIGEST_KEY: _json_digest(value)}, indent=2) + "\n")


def read_sealed_json(path: str | Path) -> dict:
    """Read what `write_sealed_json` wrote, without the digest.

    Raises:
        OnejumpError: The file is missing, or is not what was written.
    """
    value = read_json(path)
    if value.pop(DIGEST_KEY, None) != _json_digest(value):
        raise _damaged(path)
    return value


def seal_svg(path: str | Path) -> None:
    """Append a comment with the digest of an SVG file."""
    with open(path, "r+b") as file:
        file.write(_COMMENT % _digest(file.read()))


def read_sealed_svg(path: str | Path) -> bytes:
    """Read what `seal_svg` sealed, without the comment.

    Raises:
        OnejumpError: The file is missing, or is not what was sealed.
    """
    content = require_file(path).read_bytes()
    image = content[: -len(_COMMENT % _digest(b""))]
    if content != image + _COMMENT % _digest(image):
        raise _damaged(path)
    return image


def _json_digest(value: object) -> str:
    return _digest(json.dumps(value).encode()).decode()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _damaged(path: str | Path) -> OnejumpError:
    return OnejumpError(
        f"{path}: damaged (it does not match its checksum); remove the file and rerun the stage that makes it"
    )
