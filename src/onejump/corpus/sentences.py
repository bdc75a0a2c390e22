"""Split documents into usable sentences."""

import re

from onejump.corpus.documents import Document
from onejump.corpus.wikitext import GAP

_ZERO_WIDTH = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_EMPTY_PARENTHESES = re.compile(r"\(\s*(?:[,;:]\s*)*\)|\[\s*\]")
_SPACE_BEFORE_STOP = re.compile(r"\s+(?=[,;.!?](?:\s|$))")
_ENDING = re.compile("[.!?][\"'\u201d\u2019\u00bb)\\]]*$")
_DEBRIS = re.compile(
    rf"{GAP}|\[\[|\]\]|[{{}}|]|https?:|www\.|<[a-zA-Z/!]|==|\(\s*[,;:)]|\[[\s\d]*\]|&[a-z]+;|,\s*([,;]|\.(?!\.))"
)
_BRACKETS = {")": "(", "]": "["}


def usable_sentences(document: Document, language: str = "en") -> list[str]:
    """Return the distinct prose sentences of a document, in order, with single spaces.

    A sentence is usable if it starts with an upper-case letter, a digit or an opening quote, ends with . ! or ?, has
    at least 5 words and 20 to 1,000 characters, has balanced brackets and quotes, and contains no remains of markup.

    Args:
        document: the document; empty parentheses in it are removed first.
        language: code of the language whose rules split the text.
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
    first = sentence.lstrip("\"'\u201c\u2018«„¿¡([")[:1]
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
