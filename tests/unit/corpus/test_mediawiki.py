"""A dump gives the last revision of each article; a damaged dump is refused."""

import bz2
import gzip
import time
from collections import Counter

import pytest
from refusals import error_of

from onejump.corpus.documents import Document
from onejump.corpus.mediawiki import MediawikiDump


def page(title, *texts, namespace=0, extra=""):
    revisions = "".join(
        f"<revision><id>{i}</id><timestamp>2020-01-0{i}T00:00:00Z</timestamp>"
        f'<text xml:space="preserve">{text}</text></revision>'
        for i, text in enumerate(texts, 1)
    )
    return f"<page><title>{title}</title><ns>{namespace}</ns><id>7</id>{extra}{revisions}</page>"


HEADER = (
    b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="en"><siteinfo><sitename>'
    b'Test</sitename><namespaces><namespace key="0" /><namespace key="1">Talk</namespace></namespaces></siteinfo>'
)


def dump(*pages):
    return HEADER + b"".join(page if isinstance(page, bytes) else page.encode() for page in pages) + b"</mediawiki>"


SMALL_DUMP = dump(
    page("Athens", "An old text.", "The new text."),
    page("Athena", "#WEITERLEITUNG [[Athens]]", extra='<redirect title="Athens" />'),
    page("Athina", "#redirect [[Athens]]"),
    page("Talk:Athens", "Some talk.", namespace=1),
    page("Nothing", ""),
    page("Sparta", "A ''rival''."),
)


@pytest.mark.parametrize(("ending", "pack"), [("xml", bytes), ("xml.bz2", bz2.compress), ("xml.gz", gzip.compress)])
def test_a_dump_gives_the_last_revision_of_each_article(tmp_path, ending, pack):
    path = tmp_path / f"wiki.{ending}"
    path.write_bytes(pack(SMALL_DUMP))
    documents = sorted(MediawikiDump(path).documents(seed=0, at_least=10), key=lambda document: document.title)
    assert documents == [Document("Athens", ["The new text."]), Document("Sparta", ["A rival."])]


def test_a_dump_is_read_in_an_order_that_the_seed_fixes(tmp_path):
    path = tmp_path / "wiki.xml"
    path.write_bytes(dump(*(page(f"P{i}", "Text.") for i in range(30))))
    orders = [[d.title for d in MediawikiDump(path).documents(seed, 100)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(f"P{i}" for i in range(30))
    assert orders[0] != [f"P{i}" for i in range(30)]


def test_of_a_huge_dump_a_uniform_few_are_held(tmp_path):
    path = tmp_path / "wiki.xml"
    path.write_bytes(dump(*(page(f"P{i}", "Text.") for i in range(20))))
    drawn = Counter()
    for seed in range(100):
        titles = [d.title for d in MediawikiDump(path).documents(seed, at_least=1)]
        assert len(set(titles)) == len(titles) == 4
        drawn.update(titles)
    # 20 of each expected, with standard deviation 4
    assert len(drawn) == 20
    assert 6 <= min(drawn.values()) <= max(drawn.values()) <= 34


DAMAGED_DUMPS = {
    "cut.xml": SMALL_DUMP[:-100],
    "cut.xml.bz2": bz2.compress(SMALL_DUMP)[:-30],
    "cut.xml.gz": gzip.compress(SMALL_DUMP)[:-30],
    "flipped.xml.gz": gzip.compress(SMALL_DUMP)[:40] + b"\xff" * 30 + gzip.compress(SMALL_DUMP)[70:],
    "not.xml.bz2": SMALL_DUMP,
    "not.xml.gz": SMALL_DUMP,
    "page.xml": b"<html><body>Not found</body></html>",
    "bare.xml": b"<mediawiki></mediawiki>",
    "text.xml": b"no markup at all",
    "empty.xml": b"",
    "empty.xml.bz2": b"",
}


# The names alone: gzip writes the time, and all workers must collect the same tests.
@pytest.mark.parametrize(("name", "content"), DAMAGED_DUMPS.items(), ids=DAMAGED_DUMPS)
def test_a_damaged_dump_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    message = error_of(lambda: list(MediawikiDump(path).documents(0, 5)))
    assert message.startswith(f"{path}: not a whole MediaWiki dump (")


def test_a_part_of_a_wikipedia_dump_is_read_under_its_own_name(tmp_path):
    path = tmp_path / "enwiki-latest-pages-articles1.xml-p1p41242.bz2"
    path.write_bytes(bz2.compress(SMALL_DUMP))
    plain = tmp_path / "small.xml"
    plain.write_bytes(SMALL_DUMP)
    assert list(MediawikiDump(path).documents(0, 5)) == list(MediawikiDump(plain).documents(0, 5))


def test_a_missing_dump_and_an_unknown_kind_are_named(tmp_path):
    assert "no such file" in error_of(lambda: list(MediawikiDump(tmp_path / "none.xml").documents(0, 5)))
    (tmp_path / "wiki.7z").write_bytes(b"7z")
    message = error_of(lambda: list(MediawikiDump(tmp_path / "wiki.7z").documents(0, 5)))
    assert "unknown kind of dump" in message
    assert ".xml, .bz2, .gz" in message


UNREADABLE_PAGES = {
    "surrogate": page("Bad", "A smile &#xD83D;&#xDE00; here."),
    "control character": page("Bad", "A bell \x07 here."),
    "entity": page("Bad", "A gap&nbsp;here."),
    "tag": page("Bad", "A <tag here."),
    "bytes": page("Bad", "A caf\xe9 here.").encode("latin-1"),
    "no title": page("", "Text."),
    "namespace": page("Bad", "Text.", namespace="none"),
}


@pytest.mark.parametrize("bad", UNREADABLE_PAGES.values(), ids=UNREADABLE_PAGES)
def test_a_page_that_cannot_be_read_is_skipped_and_counted(tmp_path, bad, caplog):
    path = tmp_path / "wiki.xml"
    path.write_bytes(dump(page("Athens", "Text."), bad, bad, page("Sparta", "Text.")))
    assert sorted(d.title for d in MediawikiDump(path).documents(0, 5)) == ["Athens", "Sparta"]
    assert caplog.messages == [f"{path}: pages that cannot be read, skipped: 2"]


@pytest.mark.parametrize("empty", ["<timestamp/>", "<contributor><username>A</username><id/></contributor>", "<id/>"])
def test_fields_that_are_not_used_may_be_empty(tmp_path, empty, caplog):
    path = tmp_path / "wiki.xml"
    path.write_bytes(
        dump(f"<page><title>Athens</title><ns>0</ns><id/><revision>{empty}<text>Text.</text></revision></page>")
    )
    assert list(MediawikiDump(path).documents(0, 5)) == [Document("Athens", ["Text."])]
    assert caplog.messages == []


def test_a_dump_without_ns_elements_is_divided_by_the_prefixes_of_its_titles(tmp_path):
    path = tmp_path / "wiki.xml"
    pages = (page(title, "Text.").replace("<ns>0</ns>", "") for title in ("Athens", "Talk:Athens", "Alien: Covenant"))
    path.write_bytes(dump(*pages))
    assert sorted(d.title for d in MediawikiDump(path).documents(0, 5)) == ["Alien: Covenant", "Athens"]


def test_pages_may_lie_across_the_blocks_in_which_a_dump_is_read(tmp_path, monkeypatch):
    path = tmp_path / "wiki.xml"
    path.write_bytes(SMALL_DUMP)
    whole = list(MediawikiDump(path).documents(0, 5))
    for size in (1, 7, 100):
        monkeypatch.setattr("onejump.corpus.mediawiki._BLOCK", size)
        assert list(MediawikiDump(path).documents(0, 5)) == whole


def test_a_page_that_would_take_long_to_parse_is_skipped_and_counted(tmp_path, caplog):
    path = tmp_path / "wiki.xml"
    slow = page("Slow", "A list.\n" + "{|\n|-\n| a\n" * 4000)
    path.write_bytes(dump(page("Athens", "Text."), slow, page("Sparta", "Text.")))
    start = time.process_time()
    assert sorted(d.title for d in MediawikiDump(path).documents(0, 5)) == ["Athens", "Sparta"]
    assert time.process_time() - start < 5
    assert caplog.messages == [f"{path}: pages whose wikitext cannot be parsed, skipped: 1"]
