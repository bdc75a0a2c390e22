"""What a source of text yields."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A title and paragraphs of plain text. U+FFFC stands where something that is not text was taken out."""

    title: str
    paragraphs: list[str]


def _reason(error: BaseException) -> str:
    """An error's kind and its first line."""
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0].removesuffix(": ")
