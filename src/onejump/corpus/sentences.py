"""From paragraphs to usable sentences."""

import re

from onejump.corpus.documents import Document
from onejump.corpus.wikitext import GAP

_ZERO_WIDTH = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


_EMPTY_PARENTHESES = re.compile(r"\(\s*(?:[,;:]\s*)*\)|\[\s*\]")


_SPACE_BEFORE_STOP = re.compile(r"\s+(?=[,;.!?](?:\s|$))")


_ENDING = re.compile(r"[.!?][\"'”’»)\]]*$")


_DEBRIS = re.compile(
    rf"{GAP}|\[\[|\]\]|[{{}}|]|https?:|www\.|<[a-zA-Z/!]|==|\(\s*[,;:)]|\[[\s\d]*\]|&[a-z]+;|,\s*([,;]|\.(?!\.))"
)


_BRACKETS = {")": "(", "]": "["}


def usable_sentences(document: Document, language: str = "en") -> list[str]:
    """The distinct prose sentences of a document, in order, with single spaces.

    Usable is what starts with an upper-case letter, a digit or an opening quote, ends in . ! or ?, has at least 5
    words and 20 to 1,000 characters, balanced brackets and quotes, and no left-over of markup.

    Args:
        document: paragraphs of plain text; empty parentheses in them are mended first.
        language: code of the language whose rules `sentencex` splits by.
    """
    import sentencex

    sentences = {}
    for paragraph in document.paragraphs:
        text = _EMPTY_PARENTHESES.sub("", _ZERO_WIDTH.sub("", paragraph))
        text = _SPACE_BEFORE_STOP.sub("", " ".join(text.split()))
        for sentence in sentencex.segment(language, text):
            sentence = sentence.strip()
            if _is_prose(sentence):
                sentences[sentence] = None
    return list(sentences)


def _is_prose(sentence: str) -> bool:
    first = sentence.lstrip("\"'“‘«„¿¡([")[:1]
    return (
        20 <= len(sentence) <= 1000
        and len(sentence.split()) >= 5
        and first.isalnum()
        and not first.islower()
        and _ENDING.search(sentence) is not None
        and _DEBRIS.search(sentence) is None
        and _is_balanced(sentence)
    )


def _is_balanced(sentence: str) -> bool:
    expected = []
    for character in sentence:
        if character in "([":
            expected.append(character)
        elif character in ")]" and (not expected or expected.pop() != _BRACKETS[character]):
            return False
    return not expected and sentence.count('"') % 2 == 0
