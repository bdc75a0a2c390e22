"""Sample the sentences of a study from a source of text.

A source has a method `documents(seed, at_least)`, which yields its documents in a random order fixed by the seed. A
source that must bound its memory may yield a random subset of at least `at_least` documents instead. It raises
OnejumpError if it is missing, damaged, of an unknown kind, or out of reach. The sample is spread evenly over the
documents, and no document contributes to both splits.
"""

import random

import pyarrow as pa

from onejump.corpus.mediawiki import MediawikiDump
from onejump.corpus.sentences import usable_sentences
from onejump.corpus.text_files import HubDataset, LocalFiles
from onejump.files.atomic import OnejumpError
from onejump.study.languages import LANGUAGES

SCHEMA = pa.schema(
    [("sentence_id", pa.int32()), ("split", pa.string()), ("document", pa.string()), ("text", pa.string())]
)
Source = MediawikiDump | HubDataset | LocalFiles


def sample_sentences(
    source: Source, train: int, test: int, seed: int, language: str = "en", per_document: int | None = None
) -> pa.Table:
    """Sample `train` + `test` distinct sentences, spread over the documents as evenly as the source allows.

    Documents are read until `train` + `test` of them have a usable sentence, or all have been read. Each is assigned
    to one split at random, in proportion to the sizes of the splits. Within a split, each document gives min(its
    number of sentences, t), and some give one more; none gives more than `per_document`, if that is given. Documents
    with the same title count as one; a sentence found in two documents belongs to the first.

    Returns:
        A table with columns sentence_id int32, split, document, text. Training sentences are 0..train-1 and test
        sentences train..train+test-1, both in random order, so any slice of a split is itself a random sample.

    Raises:
        OnejumpError: a split is empty, the language is unknown, the source has too few sentences, or its documents
            cannot be divided.
    """
    if train < 1 or test < 1:
        raise OnejumpError(f"corpus: train {train} and test {test} sentences requested; ask for at least 1 of each")
    if language not in LANGUAGES:
        raise OnejumpError(f"corpus: unknown language {language!r}; expected one of {', '.join(LANGUAGES)}")
    found = _read(source, train + test, seed, language)
    sizes = {title: min(len(sentences), per_document or len(sentences)) for title, sentences in found.items()}
    if (usable := sum(sizes.values())) < train + test:
        each = f", at most {per_document} from each" if per_document else ""
        raise OnejumpError(
            f"corpus: {train + test} sentences requested (train {train} + test {test}), but only {usable} usable"
            f" ones found in {len(found)} documents{each}; ask for fewer or add text"
        )
    # A stream of random numbers separate from the one that shuffles the source.
    rng = random.Random(f"sample {seed}")
    for_train = _divide(list(sizes.values()), train, test, rng)
    rows = []
    for split, wanted in (("train", train), ("test", test)):
        titles = [title for i, title in enumerate(found) if (i in for_train) == (split == "train")]
        quotas = _quotas([sizes[title] for title in titles], wanted, rng)
        chosen = [
            (split, title, text)
            for title, quota in zip(titles, quotas, strict=True)
            for text in rng.sample(found[title], quota)
        ]
        rng.shuffle(chosen)
        rows += chosen
    return pa.table([range(len(rows)), *zip(*rows, strict=True)], schema=SCHEMA)


def _read(source: Source, enough: int, seed: int, language: str) -> dict[str, list[str]]:
    """Map titles to the sentences that no earlier document has, for the first `enough` documents that have any."""
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


def _divide(sizes: list[int], train: int, test: int, rng: random.Random) -> set[int]:
    """Choose the documents for training, as indices, in proportion to the splits, so that both splits can be filled."""
    order = list(range(len(sizes)))
    share = max(1, min(len(sizes) - 1, round(len(sizes) * train / (train + test))))
    for _ in range(20):
        rng.shuffle(order)
        chosen = set(order[:share])
        if train <= sum(sizes[i] for i in chosen) <= sum(sizes) - test:
            return chosen
    raise OnejumpError(
        f"corpus: {sum(sizes)} usable sentences found in {len(sizes)} documents, too few documents or too unequal ones"
        f" to take train {train} and test {test} from separate documents; ask for fewer sentences or add documents"
    )


def _quotas(sizes: list[int], wanted: int, rng: random.Random) -> list[int]:
    """Return how many sentences each document gives: min(size, t), plus one from random documents that have more."""
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
