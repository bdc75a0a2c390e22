"""What every source of text yields."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A document of plain text.

    Attributes:
        title: what identifies it within its source.
        paragraphs: its text; U+FFFC marks a place where something other than text was removed.
    """

    title: str
    paragraphs: list[str]


def reason_of(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0].removesuffix(": ")
