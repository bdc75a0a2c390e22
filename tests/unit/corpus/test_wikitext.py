"""Wikitext becomes what a reader sees."""

import pytest

from onejump.corpus.documents import GAP, Document
from onejump.corpus.sentences import usable_sentences
from onejump.corpus.wikitext import clean_wikitext, work_in_vain


@pytest.mark.parametrize(
    ("wikitext", "paragraphs"),
    [
        ("'''Bold''' and ''italic'' text.", ["Bold and italic text."]),
        ("See [[Greece|the Greek]] [[city]]s now.", ["See the Greek citys now."]),
        ("One [[:Category:Dogs|dog]] &amp; two&nbsp;cats.", ["One dog & two\xa0cats."]),
        ("An [http://a.org outer link] and [http://b.org].", ["An outer link and ."]),
        ("Before.\n== Heading ==\nAfter.", ["Before.", "After."]),
        ("One line\nand its next.\n\nAnother paragraph.", ["One line and its next.", "Another paragraph."]),
        ("{{Infobox|a={{b|{{c}}}}|d=[[e]]}}\n'''Athens''' is old.", ["Athens is old."]),
        ("{{Infobox}}'''Athens''' is old.", ["Athens is old."]),
        ("Athens ({{IPA|x}}; {{lang|el|y}}) is old.", ["Athens is old."]),
        ("Athens{{sfn|Ann|p=2}} is old.{{citation needed}} Yes. {{cn}}", ["Athens is old. Yes."]),
        ("It is {{convert|3|km}} long.", [f"It is {GAP} long."]),
        ("Let <math>x^2</math> be <code>even()</code>.", [f"Let {GAP} be {GAP}."]),
        ("Before.\n{|\n! head\n|-\n| cell || {{x}}\n|}\nAfter.", ["Before.", "After."]),
        ("Old<ref name=a>A [[b]] {{cite|c}}.</ref> city<ref name=a/>.", ["Old city."]),
        ("Before.\n* item [[one]]\n** deep {{x}}\n# two\n: three\n; term : four\nAfter.", ["Before.", "After."]),
        ("[[File:A.jpg|thumb|A caption with [[link]]s.]]\nText [[Image:b.png]]here.", ["Text here."]),
        ("Text.\n[[Category:Dogs]]\n[[fr:Chien]]\n__NOTOC__", ["Text."]),
        ("Before.\n<gallery>\nA.jpg|Caption here.\n</gallery>\nAfter.", ["Before.", "After."]),
        ("Seen <!-- not\n seen --> here.", ["Seen  here."]),
        ("H<sub>2</sub>O is <small>small</small>.", ["H2O is small."]),
        ("First.<br/>Second.<blockquote>Third.</blockquote>Fourth.", ["First.", "Second.", "Third.", "Fourth."]),
        ("Raw <nowiki>[[brackets]]</nowiki> stay.", ["Raw [[brackets]] stay."]),
        ("A smile &#xD83D;&#xDE00; here, &#x263a; there.", [f"A smile {GAP}{GAP} here, \u263a there."]),
    ],
)
def test_wikitext_becomes_what_a_reader_sees(wikitext, paragraphs):
    assert clean_wikitext(wikitext) == paragraphs


def test_a_whole_article_gives_only_its_prose():
    article = """{{Infobox city|name=Athens|pop={{formatnum:5}}}}
'''Athens''' ({{lang-el|Αθήνα}}) is the [[capital city|capital]] of [[Greece]].<ref>{{cite book|title=A Book.}}</ref>
[[File:Athens.jpg|thumb|This is the caption of a picture.]]

== History ==
{{main|History of Athens}}
The city was old when Plato<ref name="x"/> was born there. It covers {{convert|39|km2}} of land today.
* This is one item of a list.
{| class="wikitable"
| This is a cell of the table.
|}
== References ==
<references/>
[[Category:Capitals in Europe]]
"""
    assert usable_sentences(Document("Athens", clean_wikitext(article))) == [
        "Athens is the capital of Greece.",
        "The city was old when Plato was born there.",
    ]


@pytest.mark.parametrize(
    ("wikitext", "work"),
    [
        ("{{a|[[b]]|<b>c</b>}} [http://d e] <!-- f -->\n{|\n| g\n|}\n", 0),
        ("{{a\n|b={{c|\n|}}\n|}}<br><ref name=d/><B>e</b>\n* item\n<li>f", 0),
        ("{{a", 3),
        (" {{a|<i>b}}", 6),  # <i> at 5 is not closed before the template is
        ("[[a|{|b", 7),  # a table begins only at the start of a line
        ("{|\n|}}\n:{|\n", 11 + 4),
        ("<b>" * 10, sum(range(3, 31, 3))),
        ("}} ]] </b> |}", 0),
    ],
)
def test_work_in_vain_is_the_text_after_each_opening_that_is_not_closed(wikitext, work):
    assert work_in_vain(wikitext) == work


def test_an_article_whose_parsing_would_take_long_is_refused():
    for opening in ("{{a|", "{|\n", "<b>", "[[a|", "[http://a "):
        clean_wikitext(opening * 100)
        with pytest.raises(ValueError, match="too many unclosed"):
            clean_wikitext(opening * 100_000)
