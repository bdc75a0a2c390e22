"""Split documents into usable sentences."""

import re

from onejump.corpus.documents import GAP, Document

_ZERO_WIDTH = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")  # not the joiners, which many scripts need
# The full-width forms of ( , ; : ) . ! ? and the Chinese comma for lists are written as escapes.
_EMPTY_PARENTHESES = re.compile("[(\uff08]\\s*(?:[,;:\uff0c\uff1b\uff1a\u3001]\\s*)*[)\uff09]|\\[\\s*\\]")
_SPACE_BEFORE_STOP = re.compile(r"\s+(?=[,;.!?](?:\s|$))")
# Stops of Latin, Chinese and Japanese, Indian, Armenian, Arabic, Ethiopic and Burmese, then closing quotes.
_ENDING = re.compile("[.!?。\uff0e\uff01\uff1f।॥\u0589\u06d4؟።፧။][\"'\u201d\u2019\u00bb)\\]\uff09」』》〉】]*$")
_DEBRIS = re.compile(
    rf"{GAP}|\[\[|\]\]|[{{}}|]|https?:|www\.|<[a-zA-Z/!]|==|\(\s*[,;:)]|\[[\s\d]*\]|&[a-z]+;|,\s*([,;]|\.(?!\.))"
    "|\uff08\\s*[\uff0c\uff1b\uff1a\u3001\uff09]|\uff0c\\s*[\uff0c\uff1b。]"
)
_OPENING = dict(zip(")]\uff09」』》〉】", "([\uff08「『《〈【", strict=True))
_NO_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff]")  # between words
_NO_STOPS = {"th", "lo"}  # languages in which a space, not a stop, ends a clause
_CLAUSE_END = re.compile("(?<=[\u0e00-\u0eff]) (?=[\u0e00-\u0eff])")


def usable_sentences(document: Document, language: str = "en") -> list[str]:
    """Return the distinct prose sentences of a document, in order, with single spaces.

    A sentence is usable if it starts with a digit, an opening quote or a letter that is not lower-case, ends with a
    stop of its script, has at least 5 words (or 10 letters of a script without spaces between words) and 20 to 1,000
    characters, has balanced brackets and quotes, and contains no remains of markup. Thai and Lao have no stops, so
    their clauses count as sentences. Empty parentheses are removed first.
    """
    import sentencex

    sentences = {}
    for paragraph in document.paragraphs:
        text = _EMPTY_PARENTHESES.sub("", _ZERO_WIDTH.sub("", paragraph))
        text = _SPACE_BEFORE_STOP.sub("", " ".join(text.split()))
        parts = _CLAUSE_END.split(text) if language in _NO_STOPS else sentencex.segment(language, text)
        for sentence in parts:
            sentence = sentence.strip()
            if _is_prose(sentence) and (language in _NO_STOPS or _ENDING.search(sentence)):
                sentences[sentence] = None
    return list(sentences)


def _is_prose(sentence: str) -> bool:
    first = sentence.lstrip("\"'\u201c\u2018«„¿¡([\uff08「『《〈【")[:1]
    return (
        20 <= len(sentence) <= 1000
        and (len(sentence.split()) >= 5 or len(_NO_SPACES.findall(sentence)) >= 10)
        and first.isalnum()
        and not first.islower()
        and _DEBRIS.search(sentence) is None
        and _is_balanced(sentence)
    )


def _is_balanced(sentence: str) -> bool:
    expected = []
    for character in sentence:
        if character in _OPENING.values():
            expected.append(character)
        elif character in _OPENING and (not expected or expected.pop() != _OPENING[character]):
            return False
    return not expected and sentence.count('"') % 2 == 0
