"""A sample has the sizes requested, no duplicates, separate documents per split and even shares."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import pyarrow as pa
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from refusals import error_of

from onejump.corpus.documents import Document
from onejump.corpus.sampling import sample_sentences
from onejump.files.atomic import OnejumpError


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


def naive_water_filling(sizes, wanted):
    """The fairest shares: always give to the document that has given least and still has some."""
    shares = [0] * len(sizes)
    for _ in range(wanted):
        least = min((share, i) for i, share in enumerate(shares) if share < sizes[i])[1]
        shares[least] += 1
    return sorted(share for share in shares if share)


def divisions_that_fit(sizes, train, test):
    """For each way to give train its share of the documents, whether both splits can be filled."""
    share = max(1, min(len(sizes) - 1, round(len(sizes) * train / (train + test))))
    return [train <= sum(subset) <= sum(sizes) - test for subset in combinations(sizes, share)]


corpora = {
    "sizes": st.lists(st.integers(0, 9), min_size=1, max_size=9),
    "train": st.integers(1, 12),
    "test": st.integers(1, 12),
    "seed": st.integers(0, 5),
}


@settings(deadline=None, max_examples=200)
@given(**corpora)
@example(sizes=[7, 1, 1, 1], train=3, test=7, seed=0)  # one document in four is always too small or too big
@example(sizes=[5, 5, 5], train=8, test=6, seed=0)  # enough sentences, but no division
@example(sizes=[9], train=1, test=1, seed=0)  # one document cannot serve two splits
@example(sizes=[3, 3, 3, 3], train=9, test=3, seed=0)  # every division fits
def test_a_sample_is_drawn_or_refused_as_its_documents_can_be_divided(sizes, train, test, seed):
    fits = divisions_that_fit([size for size in sizes if size][: train + test], train, test)
    try:
        table = sample_sentences(Shelf(sizes), train, test, seed)
    except OnejumpError:
        assert not fits or not all(fits)
    else:
        assert any(fits)
        assert table.num_rows == train + test


@settings(deadline=None, max_examples=150)
@given(**corpora)
def test_a_sample_has_the_sizes_requested_no_duplicates_disjoint_documents_and_even_shares(sizes, train, test, seed):
    within_reach = {f"D{i}": size for i, size in enumerate(sizes) if size}
    within_reach = dict(list(within_reach.items())[: train + test])
    assume(all(divisions_that_fit(within_reach.values(), train, test) or [False]))
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
    assert "10 sentences requested (train 8 + test 2)" in message
    assert "only 9 usable ones found in 2 documents" in message


@pytest.mark.parametrize("sizes", [[5, 5, 5], [13, 1, 1]])
def test_documents_that_cannot_be_divided_are_refused_with_what_was_found_and_what_to_do(sizes):
    message = error_of(lambda: sample_sentences(Shelf(sizes), 8, 6, seed=0))
    assert "15 usable sentences found in 3 documents" in message
    assert "train 8 and test 6" in message
    assert message.endswith("; ask for fewer sentences or add documents")


def test_no_document_gives_more_than_its_most():
    table = sample_sentences(Shelf([9] * 30 + [1]), 20, 10, 0, per_document=1)
    assert len(set(table["document"].to_pylist())) == 30
    counts = Counter(sample_sentences(Shelf([9, 9, 9, 9, 1]), 6, 3, 0, per_document=2)["document"].to_pylist())
    assert sorted(counts.values()) == [1, 2, 2, 2, 2]


def test_too_few_documents_for_the_most_of_each_are_refused_with_both_numbers():
    message = error_of(lambda: sample_sentences(Shelf([9, 9, 9]), 3, 1, 0, per_document=1))
    assert "4 sentences requested (train 3 + test 1), but only 3 usable ones found in 3 documents, at most 1 from" in (
        message
    )


@pytest.mark.parametrize(("train", "test"), [(0, 5), (5, 0), (-1, 5)])
def test_an_empty_split_is_refused(train, test):
    assert f"train {train} and test {test}" in error_of(lambda: sample_sentences(Shelf([9, 9]), train, test, seed=0))


@pytest.mark.parametrize("language", ["klingon", "english", "", "EN", "xx"])
def test_an_unknown_language_is_refused_with_the_known_ones(language):
    message = error_of(lambda: sample_sentences(Shelf([9, 9]), 1, 1, 0, language))
    assert message.startswith(f"corpus: unknown language {language!r}; expected one of af, am, ar, ")
