"""From dumps, data sets and files to documents, sentences, and the sample of a study."""

import bz2
import gzip
import json
from collections import Counter
from dataclasses import dataclass
from itertools import combinations, islice

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusals import error_of

from onejump.corpus.documents import Document
from onejump.corpus.mediawiki import MediawikiDump
from onejump.corpus.sampling import sample_sentences
from onejump.corpus.sentences import usable_sentences
from onejump.corpus.text_files import HubDataset, LocalFiles
from onejump.corpus.wikitext import GAP, clean_wikitext


@dataclass
class Shelf:
    """A source of documents of given sizes, in the order given, that counts how many were taken."""

    sizes: list[int]
    taken: int = 0

    def documents(self, seed, at_least):
        for number, size in enumerate(self.sizes):
            self.taken += 1
            yield Document(f"D{number}", [f"This is sentence {i} of document {number}." for i in range(size)])


@dataclass
class Given:
    """A source of exactly these documents."""

    shelf: list[Document]

    def documents(self, seed, at_least):
        yield from self.shelf


# ---------------------------------------------------------------------------------------------------------- sample


def naive_water_filling(sizes, wanted):
    """The fairest shares: always give to the document that has given least and still has some."""
    shares = [0] * len(sizes)
    for _ in range(wanted):
        least = min((share, i) for i, share in enumerate(shares) if share < sizes[i])[1]
        shares[least] += 1
    return sorted(share for share in shares if share)


def can_be_divided(sizes, train, test):
    subsets = (subset for n in range(len(sizes) + 1) for subset in combinations(sizes, n))
    return any(train <= sum(subset) <= sum(sizes) - test for subset in subsets)


corpora = {
    "sizes": st.lists(st.integers(0, 9), min_size=1, max_size=9),
    "train": st.integers(1, 12),
    "test": st.integers(1, 12),
    "seed": st.integers(0, 5),
}


@settings(deadline=None, max_examples=200)
@given(**corpora)
@example(sizes=[7, 1, 1, 1], train=3, test=7, seed=0)  # a share of one document in four cannot do
@example(sizes=[9, 9, 2, 2, 2], train=12, test=12, seed=0)  # only {9, 2, 2} or {9, 2} against the rest
@example(sizes=[5, 5, 5], train=8, test=6, seed=0)  # enough sentences, yet no division
@example(sizes=[9], train=1, test=1, seed=0)  # one document cannot serve two splits
def test_a_sample_is_drawn_exactly_when_whole_documents_can_fill_both_splits(sizes, train, test, seed):
    within_reach = [size for size in sizes if size][: train + test]
    if can_be_divided(within_reach, train, test):
        assert sample_sentences(Shelf(sizes), train, test, seed).num_rows == train + test
    else:
        error_of(lambda: sample_sentences(Shelf(sizes), train, test, seed))


@settings(deadline=None, max_examples=150)
@given(**corpora)
def test_a_sample_has_the_sizes_asked_for_no_duplicates_disjoint_documents_and_even_shares(sizes, train, test, seed):
    within_reach = {f"D{i}": size for i, size in enumerate(sizes) if size}
    within_reach = dict(list(within_reach.items())[: train + test])
    if not can_be_divided(within_reach.values(), train, test):
        return
    table = sample_sentences(Shelf(sizes), train, test, seed)
    rows = table.to_pylist()
    assert table.schema == pa.schema(
        {"sentence_id": pa.int32(), "split": pa.string(), "document": pa.string(), "text": pa.string()}
    )
    assert [row["sentence_id"] for row in rows] == list(range(train + test))
    assert [row["split"] for row in rows] == ["train"] * train + ["test"] * test
    assert len({row["text"] for row in rows}) == train + test
    assert all(row["text"].endswith(f"of document {row['document'][1:]}.") for row in rows)
    shares = {split: Counter(r["document"] for r in rows if r["split"] == split) for split in ("train", "test")}
    assert not shares["train"].keys() & shares["test"].keys()
    # no pair of documents of one split could be made more even: what the naive filling of these documents reaches
    for split, wanted in (("train", train), ("test", test)):
        counts = sorted(shares[split].values())
        assert counts == naive_water_filling([within_reach[title] for title in shares[split]], wanted)


def test_every_document_gives_its_share_and_the_small_ones_give_all():
    table = sample_sentences(Shelf([2, 2, 50, 50, 50, 50, 50, 50]), 150, 50, seed=3)
    shares = Counter(table["document"].to_pylist())
    assert len(shares) == 8
    assert shares["D0"] == shares["D1"] == 2


def test_documents_are_divided_in_the_proportion_of_the_splits():
    table = sample_sentences(Shelf([50] * 40), 300, 100, seed=0)
    per_document = Counter(zip(table["split"].to_pylist(), table["document"].to_pylist(), strict=True))
    assert Counter(split for split, _ in per_document) == {"train": 30, "test": 10}
    assert set(per_document.values()) == {10}


def test_a_division_that_only_a_search_can_find_is_found_among_many_documents():
    sizes = [100, *[3] * 60]
    table = sample_sentences(Shelf(sizes), 180, 100, seed=1)
    assert set(table["document"].to_pylist()[180:]) == {"D0"}


def test_one_seed_gives_one_table_and_another_seed_another():
    tables = [sample_sentences(Shelf([8] * 10), 30, 10, seed) for seed in (0, 0, 1)]
    assert tables[0].equals(tables[1])
    assert set(tables[0]["text"].to_pylist()) != set(tables[2]["text"].to_pylist())


def test_a_slice_of_a_split_mixes_its_documents():
    table = sample_sentences(Shelf([20] * 20), 200, 100, seed=0)
    assert len(set(table["document"].to_pylist()[:10])) > 4
    assert len(set(table["document"].to_pylist()[200:210])) > 3


def test_a_document_gives_any_of_its_sentences_not_its_first():
    table = sample_sentences(Shelf([100] * 2), 10, 10, seed=0)
    assert len({text.split(" of ")[0] for text in table["text"].to_pylist()}) > 10
    assert any(int(text.split()[3]) > 50 for text in table["text"].to_pylist())


def test_reading_stops_at_one_usable_document_for_each_sentence():
    shelf = Shelf([0, 0, *[5] * 1000])
    table = sample_sentences(shelf, 6, 3, seed=0)
    assert shelf.taken == 2 + 9
    assert set(Counter(table["document"].to_pylist()).values()) == {1}


def test_a_sentence_in_two_documents_belongs_to_the_first():
    shared = "The same words stand in both of them."
    shelf = [Document("A", [shared]), Document("B", [shared, "Only this one is new to us."]), Document("C", [shared])]
    for seed in range(10):
        table = sample_sentences(Given(shelf), 1, 1, seed)
        assert dict(zip(table["text"].to_pylist(), table["document"].to_pylist(), strict=True))[shared] == "A"
    assert "only 2 usable ones found in 2 documents" in error_of(lambda: sample_sentences(Given(shelf), 2, 1, seed=0))


def test_documents_of_equal_title_never_stand_in_both_splits():
    shelf = [Document("Twin", [f"Twin number {i} has a word to say."]) for i in range(6)]
    assert "in 1 documents" in error_of(lambda: sample_sentences(Given(shelf), 3, 3, seed=0))


def test_asking_for_too_much_states_what_was_wanted_and_found():
    message = error_of(lambda: sample_sentences(Shelf([4, 0, 5]), 8, 2, seed=0))
    assert "10 sentences wanted (train 8 + test 2)" in message
    assert "only 9 usable ones found in 2 documents" in message


def test_an_impossible_division_states_what_was_wanted_and_found():
    message = error_of(lambda: sample_sentences(Shelf([5, 5, 5]), 8, 6, seed=0))
    assert "15 usable sentences found in 3 documents" in message
    assert "train 8 and test 6" in message


@pytest.mark.parametrize(("train", "test"), [(0, 5), (5, 0), (-1, 5)])
def test_an_empty_split_is_refused(train, test):
    assert f"train {train} and test {test}" in error_of(lambda: sample_sentences(Shelf([9, 9]), train, test, seed=0))


# ------------------------------------------------------------------------------------------------------- sentences


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
def test_prose_is_kept_and_mended(paragraph, sentences):
    assert usable_sentences(Document("T", [paragraph])) == sentences


@pytest.mark.parametrize(
    "paragraph",
    [
        "Too short this is.",
        "A b c d.",
        "History of the old city of Athens",
        "The temples that still stand today are:",
        "the first letter is not a capital one.",
        "– a dash is no way to begin.",
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
    import sentencex

    asked = []
    monkeypatch.setattr(sentencex, "segment", lambda language, text: asked.append(language) or [text])
    usable_sentences(Document("T", ["Der Hund liegt vor der Hütte."]), "de")
    sample_sentences(Shelf([1, 1]), 1, 1, seed=0, language="fr")
    assert asked == ["de", "fr", "fr"]


# -------------------------------------------------------------------------------------------------------- wikitext


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


# ----------------------------------------------------------------------------------------------------------- dumps


def page(title, *texts, namespace=0, extra=""):
    revisions = "".join(
        f"<revision><id>{i}</id><timestamp>2020-01-0{i}T00:00:00Z</timestamp>"
        f'<text xml:space="preserve">{text}</text></revision>'
        for i, text in enumerate(texts, 1)
    )
    return f"<page><title>{title}</title><ns>{namespace}</ns><id>7</id>{extra}{revisions}</page>"


def dump(*pages):
    return (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="en"><siteinfo>'
        '<sitename>Test</sitename><namespaces><namespace key="0" /><namespace key="1">Talk</namespace></namespaces>'
        "</siteinfo>" + "".join(pages) + "</mediawiki>"
    ).encode()


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


# ------------------------------------------------------------------------------------------------------ local files


def by_title(documents):
    return {document.title: document.paragraphs for document in documents}


def test_a_text_file_is_one_document_named_by_its_file(tmp_path):
    (tmp_path / "a [1].txt").write_text("First line.\n\n  Second line.\n")
    (tmp_path / "b.txt").write_text("Only line.")
    (tmp_path / "c.txt").write_text("")
    source = LocalFiles([tmp_path / "a [1].txt", tmp_path / "b.txt", tmp_path / "c.txt"], text_field="body")
    assert by_title(source.documents(0, 1)) == {
        "a [1].txt": ["First line.", "Second line."],
        "b.txt": ["Only line."],
        "c.txt": [],
    }


def test_rows_of_json_lines_and_parquet_are_documents(tmp_path):
    rows = [{"head": "One", "body": "A.\nB.", "n": 1}, {"head": None, "body": "C.", "n": 2}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"body": ["D.", None]}), tmp_path / "y.parquet")
    source = LocalFiles([str(tmp_path / "x.jsonl"), tmp_path / "y.parquet"], text_field="body", title_field="head")
    assert by_title(source.documents(0, 1)) == {
        "One": ["A.", "B."],
        "x.jsonl#1": ["C."],
        "y.parquet#0": ["D."],
        "y.parquet#1": [],
    }


def test_local_files_are_mixed_in_an_order_that_the_seed_fixes(tmp_path):
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path in paths:
        pq.write_table(pa.table({"text": [f"Row {i}." for i in range(20)]}), path)
    orders = [[d.title for d in LocalFiles(paths).documents(seed, 1)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len({title.split("#")[0] for title in orders[0][:20]}) == 2


def test_local_files_leave_no_cache_behind(tmp_path, monkeypatch):
    cache = tmp_path / "tmp"
    cache.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(cache))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache of datasets"))
    pq.write_table(pa.table({"text": [f"This is row number {i} of it." for i in range(20)]}), tmp_path / "a.parquet")
    sample_sentences(LocalFiles([tmp_path / "a.parquet"]), 2, 2, seed=0)
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "cache of datasets").exists()


@pytest.mark.parametrize("name", ["bad.parquet", "bad.jsonl", "bad.txt"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "\xff\xfe\n{{{')
    message = error_of(lambda: list(LocalFiles([tmp_path / name]).documents(0, 1)))
    assert message.startswith(f"{tmp_path / name}: not a readable {name[3:]} file (")


def test_missing_files_unknown_kinds_and_missing_columns_are_named(tmp_path):
    assert "no such file" in error_of(lambda: list(LocalFiles([tmp_path / "none.txt"]).documents(0, 1)))
    message = error_of(lambda: list(LocalFiles([tmp_path / "a.csv"]).documents(0, 1)))
    assert "unknown kind of text file" in message
    assert ".parquet, .txt, .jsonl" in message
    pq.write_table(pa.table({"content": ["A."], "n": [1]}), tmp_path / "a.parquet")
    message = error_of(lambda: list(LocalFiles([tmp_path / "a.parquet"]).documents(0, 1)))
    assert "has no column 'text', only content, n" in message


# -------------------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(monkeypatch):
    """A hub whose one data set holds 50 rows, and a list of what it was asked for."""
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        rows = [{"title": f"T{i}" if i else None, "text": f"Unembedding\n\nBody {i}."} for i in range(50)]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_hub_data_set_is_streamed_at_its_revision(hub):
    source = HubDataset("wikimedia/wikipedia", "20231101.en", revision="abc123", split="train")
    documents = by_title(islice(source.documents(0, 1), 50))
    assert hub == [(("wikimedia/wikipedia", "20231101.en"), dict(split="train", revision="abc123", streaming=True))]
    assert documents["T7"] == ["Unembedding", "Body 7."]
    assert [title for title, lines in documents.items() if lines[1] == "Body 0."][0].startswith("wikimedia/wikipedia#")


def test_a_hub_data_set_is_shuffled_by_the_seed(hub):
    source = HubDataset("a/b", None, "abc123")
    orders = [[d.paragraphs[1] for d in source.documents(seed, 1)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert orders[0] != [f"Body {i}." for i in range(50)]


def test_a_hub_data_set_without_the_text_column_is_named(hub):
    message = error_of(lambda: list(HubDataset("a/b", None, "abc123", text_field="body").documents(0, 1)))
    assert "data set a/b: has no column 'body', only title, text" in message


def test_a_hub_out_of_reach_is_named(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub\nat all")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = error_of(lambda: list(HubDataset("a/b", "en", "abc123").documents(0, 1)))
    assert "data set a/b (en, split train, revision abc123): cannot be read from the hub" in message
    assert "Couldn't reach the Hub" in message


def test_a_hub_that_fails_midway_is_named(monkeypatch):
    def rows():
        yield {"text": "A."}
        raise TimeoutError("read timed out")

    stream = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: stream)
    assert "read timed out" in error_of(lambda: list(HubDataset("a/b", None, "abc123").documents(0, 1)))
