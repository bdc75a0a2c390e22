"""From a source of text to the sampled sentences of a study.

A source has `documents(seed, at_least)`, which yields documents in a random order that the seed fixes: all it holds,
unless it has to bound its memory, and then a random `at_least` of them and more. It raises OnejumpError if it is
missing, damaged, of an unknown kind or out of reach. A document is cut into usable sentences. The sample spreads
evenly over documents, and no document gives sentences to both splits.
"""

import bz2
import glob
import gzip
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree.ElementTree import ParseError

import numpy as np
import pyarrow as pa

from onejump.artifacts import OnejumpError, require_file

SCHEMA = pa.schema(
    [("sentence_id", pa.int32()), ("split", pa.string()), ("document", pa.string()), ("text", pa.string())]
)


@dataclass(frozen=True)
class Document:
    """A title and paragraphs of plain text. U+FFFC stands where something that is not text was taken out."""

    title: str
    paragraphs: list[str]


# ------------------------------------------------------------------------------------------------------- MediaWiki

# By the last ending alone: Wikipedia names its parts "….xml-p1p41242.bz2".
_OPENERS = {".xml": open, ".bz2": bz2.open, ".gz": gzip.open}
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)  # dumps older than the <redirect> element
_POOL = 4  # pages kept for each document asked for, since some pages have no usable sentence


@dataclass(frozen=True)
class MediawikiDump:
    """A MediaWiki XML dump, plain (.xml) or compressed (.bz2, .gz): the last revision of each article, redirects apart.

    The dump is read in one pass. Of a dump with more than 4 `at_least` articles, a uniform random 4 `at_least` of
    them are kept as wikitext (a reservoir), which bounds the memory. Wikitext is parsed only as it is yielded.
    """

    path: str | Path

    def documents(self, seed: int, at_least: int) -> Iterator[Document]:
        rng = random.Random(seed)
        kept: list[tuple[str, str]] = []
        for seen, article in enumerate(self._articles()):
            if seen < _POOL * at_least:
                kept.append(article)
            elif (place := rng.randrange(seen + 1)) < len(kept):
                kept[place] = article
        rng.shuffle(kept)
        for title, wikitext in kept:
            yield Document(title, clean_wikitext(wikitext))

    def _articles(self) -> Iterator[tuple[str, str]]:
        """Yield title and wikitext in the order of the dump."""
        import mwxml
        from mwxml.errors import MalformedXML

        path = require_file(self.path)
        opener = next((opener for ending, opener in _OPENERS.items() if path.name.endswith(ending)), None)
        if opener is None:
            raise OnejumpError(f"{path}: unknown kind of dump; expected a name that ends in {', '.join(_OPENERS)}")
        try:
            with opener(path, "rb") as file:
                for page in mwxml.Dump.from_file(file).pages:
                    if page.namespace != 0 or page.redirect is not None:
                        continue
                    text = ""
                    for revision in page:
                        text = revision.text or ""
                    if text and not _REDIRECT.match(text):
                        yield page.title, text
        # mwxml asserts that the root is <mediawiki>
        except (OSError, EOFError, zlib.error, ParseError, MalformedXML, AssertionError) as error:
            raise OnejumpError(
                f"{path}: not a whole MediaWiki dump ({_reason(error)}); expected a pages-articles XML export;"
                " fetch it again"
            ) from error


GAP = "\ufffc"  # "object replacement character": what stood here is part of the sentence, but is not text
_INLINE_TAG = re.compile(
    "abbr|b|bdi|bdo|big|center|cite|dfn|em|font|i|ins|kbd|nowiki|onlyinclude|q|samp|small|span|strong|sub|sup|tt|u|var"
)
_BLOCK_TAG = re.compile("blockquote|br|div|hr|p")
_HIDDEN_TAG = re.compile("ref|references|section|includeonly|noinclude")
_NOT_TEXT_LINKS = ("file:", "image:", "category:", "media:")
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(-[a-z-]+)?:\S")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_QUOTE_MARKUP = re.compile(r"'{2,}")
# A gap glued to the word or the stop before it, or after the end of a sentence, was a footnote such as {{sfn}}.
_FOOTNOTE = re.compile(rf"(?<=[^\W\d_]|[.,;:!?\"'”’)]){GAP}+(?=[\s.,;:!?)]|$)|(?<=[.!?\"”])\s+{GAP}+(?=\s+[A-Z]|\s*$)")
# Parentheses with a gap mostly held a pronunciation or a foreign name: the sentence reads well without them.
_GAP_IN_PARENTHESES = re.compile(rf"\s*\([^()]*{GAP}[^()]*\)")


def clean_wikitext(wikitext: str) -> list[str]:
    """Paragraphs of plain text: no templates, tables, notes, lists, headings, files, formulas, code or comments.

    A template, formula or piece of code within a sentence leaves U+FFFC, so that the sentence can be told from a
    whole one; footnotes, and parentheses around such a gap, vanish.
    """
    import mwparserfromhell

    text = _plain(mwparserfromhell.parse(wikitext, skip_style_tags=True))
    text = _QUOTE_MARKUP.sub("", _MAGIC_WORD.sub("", text))
    paragraphs, lines = [], []
    for line in [*text.split("\n"), ""]:
        if line.startswith(("*", "#", ":", ";")) or not line.strip(f" \t{GAP}"):
            paragraphs.append(" ".join(lines))
            lines = []
        else:
            lines.append(line.strip())
    # what is left of a gap at the start was a box beside the text
    closed = (_GAP_IN_PARENTHESES.sub("", _FOOTNOTE.sub("", text.lstrip(f" {GAP}"))) for text in paragraphs)
    return [text.strip() for text in closed if text.strip()]


def _plain(wikicode) -> str:
    """The text of parsed wikitext; a list item stays a line that begins with its mark."""
    from mwparserfromhell import nodes

    parts = []
    for node in wikicode.nodes:
        if isinstance(node, nodes.Text):
            parts.append(node.value)
        elif isinstance(node, nodes.Wikilink):
            parts.append(_label(node))
        elif isinstance(node, nodes.ExternalLink):
            parts.append(_plain(node.title) if node.title is not None else "" if node.brackets else str(node.url))
        elif isinstance(node, nodes.HTMLEntity):
            parts.append(node.normalize())
        elif isinstance(node, nodes.Heading):
            parts.append("\n\n")
        elif isinstance(node, nodes.Tag):
            parts.append(_tag(node))
        elif not isinstance(node, nodes.Comment):
            parts.append(GAP)
    return "".join(parts)


def _label(link) -> str:
    """What a reader sees of an inner link."""
    title = str(link.title).strip()
    if title.lower().startswith(_NOT_TEXT_LINKS) or (link.text is None and _LANGUAGE_LINK.match(title)):
        return ""
    return _plain(link.title).lstrip(":") if link.text is None else _plain(link.text)


def _tag(tag) -> str:
    """What a reader sees of a tag that runs on in the text."""
    name = str(tag.tag).strip().lower()
    if name in ("li", "dd", "dt") and tag.wiki_markup:
        return str(tag.wiki_markup)
    if _HIDDEN_TAG.fullmatch(name):
        return ""
    contents = _plain(tag.contents) if tag.contents is not None else ""
    if _BLOCK_TAG.fullmatch(name):
        return f"\n\n{contents}\n\n"
    return contents if _INLINE_TAG.fullmatch(name) else GAP


# ------------------------------------------------------------------------------------------- Hugging Face `datasets`


@dataclass(frozen=True)
class HubDataset:
    """A text data set of the Hugging Face hub at one revision, streamed: one row is a document, one line a paragraph.

    Rows are shuffled within a buffer of 10,000 (and by shard), so only what is asked for is fetched. Rows without a
    title are named "<id>#<running number>".
    """

    id: str
    name: str | None
    revision: str
    split: str = "train"
    text_field: str = "text"
    title_field: str = "title"

    def documents(self, seed: int, at_least: int) -> Iterator[Document]:
        for number, row in enumerate(self._rows(seed)):
            _require_column(self.text_field, row, f"data set {self.id}")
            yield _document(row.get(self.title_field) or f"{self.id}#{number}", row[self.text_field])

    def _rows(self, seed: int) -> Iterator[dict]:
        datasets = _quiet_datasets()
        try:
            rows = datasets.load_dataset(self.id, self.name, split=self.split, revision=self.revision, streaming=True)
            yield from rows.shuffle(seed=seed, buffer_size=10_000)
        except Exception as error:  # several libraries lie beneath, and their errors have no common base
            raise OnejumpError(
                f"data set {self.id} ({self.name}, split {self.split}, revision {self.revision}): cannot be read from"
                f" the hub ({_reason(error)}); check the network and the names, or use local files"
            ) from error


_BUILDERS = {".parquet": ("parquet", {}), ".txt": ("text", {"sample_by": "document"}), ".jsonl": ("json", {})}


@dataclass(frozen=True)
class LocalFiles:
    """Files of text: .parquet and .jsonl with one document a row, .txt with one document a file; one line a paragraph.

    A .txt document is named by its file, a row by its title column or else "<file>#<row>". Rows stay on disk (Arrow,
    in a temporary directory) until they are yielded.
    """

    paths: Sequence[str | Path]
    text_field: str = "text"
    title_field: str = "title"

    def documents(self, seed: int, at_least: int) -> Iterator[Document]:
        with TemporaryDirectory(prefix="onejump-") as cache:
            tables = [(path, self._load(path, cache)) for path in map(Path, self.paths)]
            places = [(path, table, row) for path, table in tables for row in range(len(table))]
            random.Random(seed).shuffle(places)
            for path, table, row in places:
                values = table[row]
                default = path.name if path.suffix == ".txt" else f"{path.name}#{row}"
                text = values["text"] if path.suffix == ".txt" else values[self.text_field]
                yield _document(values.get(self.title_field) or default, text)

    def _load(self, path: Path, cache: str):
        """One file as a `datasets.Dataset`, memory-mapped from `cache`."""
        if path.suffix not in _BUILDERS:
            raise OnejumpError(
                f"{path}: unknown kind of text file; expected a name that ends in {', '.join(_BUILDERS)}"
            )
        require_file(path)
        builder, options = _BUILDERS[path.suffix]
        datasets = _quiet_datasets()
        try:
            table = datasets.load_dataset(
                builder, data_files=[glob.escape(str(path))], split="train", cache_dir=cache, **options
            )
        except Exception as error:  # `datasets` passes on what each reader raises
            raise OnejumpError(
                f"{path}: not a readable {path.suffix} file ({_reason(error.__cause__ or error)}); mend or remove it"
            ) from error
        if path.suffix != ".txt":
            _require_column(self.text_field, table.column_names, str(path))
        return table


def _quiet_datasets():
    """The module `datasets` without progress bars and log lines; what goes wrong is raised."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _require_column(column: str, found: Iterable[str], where: str) -> None:
    if column not in found:
        raise OnejumpError(f"{where}: has no column {column!r}, only {', '.join(found)}; set text_field to one of them")


def _document(title: str, text: str | None) -> Document:
    return Document(str(title), [line.strip() for line in (text or "").split("\n") if line.strip()])


def _reason(error: BaseException) -> str:
    """An error's kind and its first line."""
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0].removesuffix(": ")


# ------------------------------------------------------------------------------------------------------- sentences

_ZERO_WIDTH = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_EMPTY_PARENTHESES = re.compile(r"\(\s*(?:[,;:]\s*)*\)|\[\s*\]")
_SPACE_BEFORE_STOP = re.compile(r"\s+(?=[,;.!?](?:\s|$))")
_ENDING = re.compile(r"[.!?][\"'”’»)\]]*$")
_DEBRIS = re.compile(
    rf"{GAP}|\[\[|\]\]|[{{}}|]|https?:|www\.|<[a-zA-Z/!]|==|\(\s*[,;:)]|\[[\s\d]*\]|&[a-z]+;|,\s*([,;]|\.(?!\.))"
)
_BRACKETS = {")": "(", "]": "["}


def usable_sentences(document: Document, language: str = "en") -> list[str]:
    """The distinct prose sentences of a document, in order, with single spaces.

    Usable is what starts with an upper-case letter, a digit or an opening quote, ends in . ! or ?, has at least 5
    words and 20 to 1,000 characters, balanced brackets and quotes, and no left-over of markup.

    Args:
        document: paragraphs of plain text; empty parentheses in them are mended first.
        language: code of the language whose rules `sentencex` splits by.
    """
    import sentencex

    sentences = {}
    for paragraph in document.paragraphs:
        text = _EMPTY_PARENTHESES.sub("", _ZERO_WIDTH.sub("", paragraph))
        text = _SPACE_BEFORE_STOP.sub("", " ".join(text.split()))
        for sentence in sentencex.segment(language, text):
            sentence = sentence.strip()
            if _is_prose(sentence):
                sentences[sentence] = None
    return list(sentences)


def _is_prose(sentence: str) -> bool:
    first = sentence.lstrip("\"'“‘«„¿¡([")[:1]
    return (
        20 <= len(sentence) <= 1000
        and len(sentence.split()) >= 5
        and first.isalnum()
        and not first.islower()
        and _ENDING.search(sentence) is not None
        and _DEBRIS.search(sentence) is None
        and _is_balanced(sentence)
    )


def _is_balanced(sentence: str) -> bool:
    expected = []
    for character in sentence:
        if character in "([":
            expected.append(character)
        elif character in ")]" and (not expected or expected.pop() != _BRACKETS[character]):
            return False
    return not expected and sentence.count('"') % 2 == 0


# ---------------------------------------------------------------------------------------------------------- sample

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
