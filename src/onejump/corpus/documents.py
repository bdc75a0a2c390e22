"""What every source of text yields."""

import re
from dataclasses import dataclass

GAP = "\ufffc"  # the "object replacement character": part of the sentence, but not text, was here
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """A document of plain text; U+FFFC marks a place where something other than text was removed."""

    title: str  # identifies it within its source
    paragraphs: list[str]


def without_surrogates(text: str) -> str:
    """Return the text with a gap for each surrogate, which is not a character and cannot be stored."""
    return _SURROGATE.sub(GAP, text)


def reason_of(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0].removesuffix(": ")
