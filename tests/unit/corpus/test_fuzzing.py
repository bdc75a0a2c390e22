"""Whatever stands in a dump, a page or a text file, the result is documents and sentences, or a refusal in one line."""

import bz2
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onejump.corpus.documents import Document
from onejump.corpus.mediawiki import MediawikiDump
from onejump.corpus.sentences import usable_sentences
from onejump.corpus.text_files import LocalFiles
from onejump.corpus.wikitext import clean_wikitext
from onejump.files.atomic import OnejumpError
from onejump.study.languages import LANGUAGES

MARKUP = [
    *(
        "{{",
        "}}",
        "{|",
        "|}",
        "|-",
        "|",
        "||",
        "!",
        "[[",
        "]]",
        "[",
        "]",
        "http://a.b",
        "File:",
        "{{{",
        "}}}",
        "=",
        "==",
    ),
    *(
        "<b>",
        "</b>",
        "<ref>",
        "</ref>",
        "<ref name=",
        "/>",
        ">",
        "<br>",
        "<!--",
        "-->",
        "<nowiki>",
        "</nowiki>",
        "<math>",
    ),
    *(
        "&amp;",
        "&#x41;",
        "&#xD83D;",
        "&#0;",
        "&#x110000;",
        "&nosuch;",
        "&#",
        "''",
        "'''",
        '"',
        "*",
        "#",
        ":",
        ";",
        "\n",
    ),
    *(
        "----",
        "__TOC__",
        "{{sfn|a}}",
        "\x00",
        "\ufffc",
        "\u200b",
        "A whole sentence stands here. ",
        "(",
        ")",
        " ",
        "-{",
    ),
]
wikitext = st.lists(st.one_of(st.sampled_from(MARKUP), st.text(max_size=5)), max_size=60).map("".join)


@settings(deadline=None, max_examples=300)
@given(wikitext)
def test_any_wikitext_gives_paragraphs_and_any_paragraphs_give_sentences(text):
    paragraphs = clean_wikitext(text)
    for language in ("en", "zh", "th", "hy"):
        for sentence in usable_sentences(Document("T", paragraphs), language):
            assert sentence.encode().decode() == sentence
            assert "\n" not in sentence


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text(max_size=300), max_size=3), st.sampled_from(LANGUAGES))
def test_any_text_in_any_language_gives_sentences(paragraphs, language):
    assert all(20 <= len(sentence) <= 1000 for sentence in usable_sentences(Document("T", paragraphs), language))


PAGE = b"<page><title>A</title><ns>0</ns><id>1</id><revision><id>1</id><text>A whole sentence.</text></revision></page>"
DUMP = b'<mediawiki xml:lang="en"><siteinfo><namespaces/></siteinfo>' + PAGE * 3 + b"</mediawiki>"
ROWS = b'{"title": "A", "text": "A whole sentence."}\n' * 3
# Bytes to be put in place of others: (where, how many, what).
edits = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 20),
        st.one_of(
            st.binary(max_size=10),
            st.sampled_from([b"<page>", b"</page>", b"<revision>", b"</revision>", b"</mediawiki>", b"<ns>1</ns>"]),
            st.sampled_from([b"&#xD800;", b"&nbsp;", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b'"\\ud800"', b"[1]", b"null"]),
        ),
    ),
    max_size=4,
)


def edited(content, edits):
    for where, length, new in edits:
        start = int(where * len(content))
        content = content[:start] + new + content[start + length :]
    return content


@pytest.mark.parametrize(
    ("name", "content", "source"),
    [
        ("wiki.xml", DUMP, MediawikiDump),
        ("wiki.xml.bz2", bz2.compress(DUMP), MediawikiDump),
        ("rows.jsonl", ROWS, lambda path: LocalFiles([path])),
        ("text.txt", "A whole sentence. Noch ein größerer Satz.".encode(), lambda path: LocalFiles([path])),
    ],
    ids=["xml", "bz2", "jsonl", "txt"],
)
def test_a_damaged_source_gives_documents_or_one_line(name, content, source):
    @settings(deadline=None, max_examples=60 if source is not MediawikiDump else 300)
    @given(edits)
    def check(edits):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(edited(content, edits))
            refusal = f"{path}: none"
            try:
                for document in source(path).documents(0, 3):
                    document.title.encode()
                    usable_sentences(document)
            except OnejumpError as error:
                refusal = str(error)
            assert refusal.startswith(f"{path}: ")
            assert "\n" not in refusal

    check()
