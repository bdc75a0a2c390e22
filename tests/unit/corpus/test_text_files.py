"""Rows and files become documents; what cannot be read is refused."""

import json
from itertools import islice

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import error_of

from onejump.corpus.sampling import sample_sentences
from onejump.corpus.text_files import HubDataset, LocalFiles


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


@pytest.fixture
def hub(monkeypatch):
    """A hub whose one data set holds 50 rows, and a list of what it was asked for."""
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        rows = [{"title": f"T{i}" if i else None, "text": f"Heading\n\nBody {i}."} for i in range(50)]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_hub_data_set_is_streamed_at_its_revision(hub):
    source = HubDataset("wikimedia/wikipedia", "20231101.en", revision="abc123", split="train")
    documents = by_title(islice(source.documents(0, 1), 50))
    assert hub == [(("wikimedia/wikipedia", "20231101.en"), dict(split="train", revision="abc123", streaming=True))]
    assert documents["T7"] == ["Heading", "Body 7."]
    untitled = next(title for title, lines in documents.items() if lines[1] == "Body 0.")
    assert untitled.startswith("wikimedia/wikipedia#")


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


NOT_TEXT = {
    "list": [["A sentence."], None],
    "int64": [1, 2],
    "binary": [b"A sentence.", b"B"],
    "struct": [{"a": "A sentence."}],
    "double": [1.5, float("nan")],
    "bool": [True, False],
}


@pytest.mark.parametrize("kind", NOT_TEXT)
def test_a_column_that_is_not_text_is_refused(tmp_path, kind):
    pq.write_table(pa.table({"text": NOT_TEXT[kind]}), tmp_path / "a.parquet")
    message = error_of(lambda: list(LocalFiles([tmp_path / "a.parquet"]).documents(0, 1)))
    assert message.startswith(f"{tmp_path / 'a.parquet'}: column 'text' holds ")
    assert message.endswith(", not text; set text_field to a column of text")


def test_a_hub_column_that_is_not_text_is_refused(monkeypatch):
    rows = datasets.Dataset.from_list([{"text": ["A sentence."]}]).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    message = error_of(lambda: list(HubDataset("a/b", None, "abc123").documents(0, 1)))
    assert "data set a/b: column 'text' holds list, not text" in message


def test_columns_that_are_not_used_may_hold_anything(tmp_path):
    table = pa.table({"text": ["A."], "when": pa.array([10**18], pa.timestamp("ns")), "bad": pa.array([b"\xff"])})
    bad = table["bad"].chunk(0).view(pa.string())
    pq.write_table(table.set_column(2, "bad", bad), tmp_path / "a.parquet")
    assert by_title(LocalFiles([tmp_path / "a.parquet"]).documents(0, 1)) == {"a.parquet#0": ["A."]}


def test_text_that_is_not_utf8_is_refused(tmp_path):
    bad = pa.array([b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    message = error_of(lambda: list(LocalFiles([tmp_path / "a.parquet"]).documents(0, 1)))
    assert message.startswith(f"{tmp_path / 'a.parquet'}: not a readable .parquet file (UnicodeDecodeError: ")


def test_files_of_the_same_name_are_different_documents(tmp_path, monkeypatch):
    for folder in ("AA", "AB"):
        (tmp_path / "texts" / folder).mkdir(parents=True)
        (tmp_path / "texts" / folder / "wiki_00.txt").write_text(f"{folder} text.")
        pq.write_table(pa.table({"text": [f"{folder} row."]}), tmp_path / "texts" / folder / "x.parquet")
    monkeypatch.chdir(tmp_path)
    paths = ["texts/AA/wiki_00.txt", tmp_path / "texts/AB/wiki_00.txt", "texts/AA/x.parquet", "texts/AB/x.parquet"]
    assert by_title(LocalFiles(paths).documents(0, 1)) == {
        "AA/wiki_00.txt": ["AA text."],
        "AB/wiki_00.txt": ["AB text."],
        "AA/x.parquet#0": ["AA row."],
        "AB/x.parquet#0": ["AB row."],
    }


def test_rows_of_json_lines_may_differ_in_their_keys_and_types(tmp_path):
    rows = ['{"text": "A.", "n": 1}', "", '{"n": "two"}', '{"text": null, "title": 3}', '{"text": "B \\ud800."}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    found = by_title(LocalFiles([tmp_path / "a.jsonl"]).documents(0, 1))
    assert found == {"a.jsonl#0": ["A."], "a.jsonl#1": [], "3": [], "a.jsonl#3": ["B \ufffc."]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("null", "line 2 is not an object"),
        ("[1]", "line 2 is not an object"),
        ("{", "JSONDecodeError: Expecting"),
        ("\udcff", "'utf-8' codec"),
    ],
)
def test_a_line_that_is_no_json_object_is_named(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_text('{"text": "A."}\n' + line + "\n", errors="surrogateescape")
    message = error_of(lambda: list(LocalFiles([tmp_path / "a.jsonl"]).documents(0, 1)))
    assert message.startswith(f"{tmp_path / 'a.jsonl'}: not a readable .jsonl file (")
    assert reason in message
