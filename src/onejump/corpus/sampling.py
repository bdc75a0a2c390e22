"""From a source of text to the sampled sentences of a study.

A source has `documents(seed, at_least)`, which yields documents in a random order that the seed fixes: all it holds,
unless it has to bound its memory, and then a random `at_least` of them and more. It raises OnejumpError if it is
missing, damaged, of an unknown kind or out of reach. A document is cut into usable sentences. The sample spreads
evenly over documents, and no document gives sentences to both splits.
"""

import random

import numpy as np
import pyarrow as pa

from onejump.corpus.mediawiki import MediawikiDump
from onejump.corpus.sentences import usable_sentences
from onejump.corpus.text_files import HubDataset, LocalFiles
from onejump.files.atomic import OnejumpError

SCHEMA = pa.schema(
    [("sentence_id", pa.int32()), ("split", pa.string()), ("document", pa.string()), ("text", pa.string())]
)


Source = MediawikiDump | HubDataset | LocalFiles


def sample_sentences(source: Source, train: int, test: int, seed: int, language: str = "en") -> pa.Table:
    """Sample `train` + `test` distinct sentences, spread over documents as evenly as the source allows.

    Documents are read until `train` + `test` of them have a usable sentence, or all have been read. Each belongs to
    one split, at random and in proportion to the splits. Within a split each document gives min(its size, t)
    sentences, and some one more. Documents of equal title count as one; a sentence found in two documents belongs to
    the first.

    Returns:
        Columns sentence_id int32, split, document, text. Train sentences are 0..train-1 and test sentences
        train..train+test-1, both in random order, so any slice of a split is itself a random sample.

    Raises:
        OnejumpError: a split is empty, or the source has too few sentences, or cannot be divided by documents.
    """
    if train < 1 or test < 1:
        raise OnejumpError(f"corpus: train {train} and test {test} sentences asked for; each must be at least 1")
    found = _read(source, train + test, seed, language)
    sizes = [len(sentences) for sentences in found.values()]
    if sum(sizes) < train + test:
        raise OnejumpError(
            f"corpus: {train + test} sentences wanted (train {train} + test {test}), but only {sum(sizes)} usable ones"
            f" found in {len(found)} documents; ask for fewer or add text"
        )
    # its own stream of random numbers, apart from the one by which a source shuffles
    rng = random.Random(f"sample {seed}")
    in_train = _divide(sizes, train, test, rng)
    if in_train is None:
        raise OnejumpError(
            f"corpus: {sum(sizes)} usable sentences found in {len(found)} documents, but no way to give whole documents"
            f" to train {train} and test {test}; ask for fewer or add documents"
        )
    rows = []
    for split, wanted in (("train", train), ("test", test)):
        titles = [title for title, here in zip(found, in_train, strict=True) if here == (split == "train")]
        quotas = _quotas([len(found[title]) for title in titles], wanted, rng)
        chosen = [
            (split, title, text)
            for title, quota in zip(titles, quotas, strict=True)
            for text in rng.sample(found[title], quota)
        ]
        rng.shuffle(chosen)
        rows += chosen
    return pa.table([range(len(rows)), *zip(*rows, strict=True)], schema=SCHEMA)


def _read(source: Source, enough: int, seed: int, language: str) -> dict[str, list[str]]:
    """Title -> sentences no earlier document has, of the first `enough` documents that have any."""
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for document in source.documents(seed, enough):
        fresh = [sentence for sentence in usable_sentences(document, language) if sentence not in seen]
        if fresh:
            seen.update(fresh)
            found.setdefault(document.title, []).extend(fresh)
        if len(found) == enough:
            break
    return found


def _divide(sizes: list[int], train: int, test: int, rng: random.Random) -> list[bool] | None:
    """Which documents are for training, so that both splits can be filled; None if no division does.

    Random divisions in the proportion of the splits come first; where they fail, all divisions are searched.
    """
    order = list(range(len(sizes)))
    share = max(1, min(len(sizes) - 1, round(len(sizes) * train / (train + test))))
    for _ in range(20):
        rng.shuffle(order)
        chosen = set(order[:share])
        if train <= sum(sizes[i] for i in chosen) <= sum(sizes) - test:
            break
    else:
        chosen = _exact_division(sizes, train, test, order)
    return [i in chosen for i in range(len(sizes))] if chosen else None


def _exact_division(sizes: list[int], train: int, test: int, order: list[int]) -> set[int]:
    """Documents whose sizes sum to between `train` and all - `test`, near the splits' proportion; none if impossible.

    Subset sums: reached[s] says that some documents sum to s, last[s] which of them came last when s was first reached.
    """
    most = sum(sizes) - test
    reached = np.zeros(most + 1, dtype=bool)
    reached[0] = True
    last = np.zeros(most + 1, dtype=np.int64)
    for i in order:
        if sizes[i] <= most:
            sums = np.flatnonzero(reached[: most + 1 - sizes[i]] & ~reached[sizes[i] :]) + sizes[i]
            reached[sums] = True
            last[sums] = i
    possible = np.flatnonzero(reached[train:]) + train
    chosen: set[int] = set()
    if len(possible):
        rest = int(possible[np.argmin(np.abs(possible - sum(sizes) * train / (train + test)))])
        while rest:
            chosen.add(int(last[rest]))
            rest -= sizes[last[rest]]
    return chosen


def _quotas(sizes: list[int], wanted: int, rng: random.Random) -> list[int]:
    """How many sentences each document gives: min(size, t), and one more from random documents that have more."""
    level, rest = 0, wanted
    for place, size in enumerate(sorted(sizes)):
        level, spare = divmod(rest, len(sizes) - place)
        if size > level:
            break
        rest -= size
    else:
        level, spare = max(sizes), 0
    extra = set(rng.sample([i for i, size in enumerate(sizes) if size > level], spare))
    return [min(size, level) + (i in extra) for i, size in enumerate(sizes)]
