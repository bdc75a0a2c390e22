"""What bad input must lead to: an OnejumpError of one line, and nothing left behind."""

from pathlib import Path

import pytest

from onejump.files.atomic import OnejumpError

OTHER_SHA256 = "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"  # the digest of no file in the tests


def error_of(action) -> str:
    """The message of the OnejumpError that `action()` must raise."""
    with pytest.raises(OnejumpError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def files_under(folder: str | Path) -> list[str]:
    """All paths under a folder, relative to it and sorted."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


def flipped(content: bytes, position: int, bit: int) -> bytes:
    """The content with one bit flipped."""
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)
