"""Prose is kept and cleaned; fragments and remains of markup are dropped."""

import pytest
import sentencex

from onejump.corpus.documents import Document
from onejump.corpus.sentences import usable_sentences
from onejump.corpus.wikitext import GAP


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        ("The cat sat down here.  It  did not\nget up again.", ["The cat sat down here.", "It did not get up again."]),
        ("Dr. Smith met Mr. Jones at noon.", ["Dr. Smith met Mr. Jones at noon."]),
        ('He said that "it was over then."', ['He said that "it was over then."']),
        ('"Was it really over by then?"', ['"Was it really over by then?"']),
        ("In 1990 (or so) it all began (see below).", ["In 1990 (or so) it all began (see below)."]),
        ("Athens ( ; ) is an old city of Greece.", ["Athens is an old city of Greece."]),
        ("Athens () , it seems , is very old .", ["Athens, it seems, is very old."]),
        (
            "Soft\u00adhy\u00adphens and zero\u200bwidth marks all vanish.",
            ["Softhyphens and zerowidth marks all vanish."],
        ),
        ("Élan is what the whole team lacks.", ["Élan is what the whole team lacks."]),
    ],
)
def test_prose_is_kept_and_cleaned(paragraph, sentences):
    assert usable_sentences(Document("T", [paragraph])) == sentences


@pytest.mark.parametrize(
    "paragraph",
    [
        "Too short this is.",
        "A b c d.",
        "History of the old city of Athens",
        "The temples that still stand today are:",
        "the first letter is not a capital one.",
        "\u2013 a dash is no way to begin.",
        "A bracket (that never closes is not kept.",
        "A bracket that closes] first is not kept.",
        "These (two [cross) each] other in the text.",
        'A quotation that "never ends is not kept.',
        "Words " * 200 + "without end.",
        "A link [[that was left]] is not prose.",
        "A template {{that was left}} is not prose.",
        "A cell | of a table is not prose.",
        "See http://example.org for all the rest.",
        "A note <ref>that was left</ref> is not prose.",
        "A heading == that was left is not prose.",
        "A note that was left[3] is not prose.",
        "Athens (, born in Greece) is not whole now.",
        "Its height of , as measured, , is not whole.",
        f"Its height is {GAP} above the sea level.",
    ],
)
def test_what_is_not_prose_is_dropped(paragraph):
    assert usable_sentences(Document("T", [paragraph])) == []


def test_sentences_of_a_document_are_distinct_and_in_order():
    one, two = "The second letter comes first here.", "Another sentence comes after that one."
    assert usable_sentences(Document("T", [one, two, one])) == [one, two]


def test_the_language_chooses_how_sentences_are_split(monkeypatch):
    asked = []
    monkeypatch.setattr(sentencex, "segment", lambda language, text: asked.append(language) or [text])
    usable_sentences(Document("T", ["Der Hund liegt vor der Hütte."]), "de")
    assert asked == ["de"]
