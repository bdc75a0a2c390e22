"""Read the articles of a MediaWiki XML dump."""

import bz2
import gzip
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import ParseError

from onejump.corpus.documents import Document, reason_of
from onejump.corpus.wikitext import clean_wikitext
from onejump.files.atomic import OnejumpError, require_file

# Only the last suffix counts: Wikipedia names the parts of a dump "….xml-p1p41242.bz2".
_OPENERS = {".xml": open, ".bz2": bz2.open, ".gz": gzip.open}
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)  # dumps older than the <redirect> element
_POOL = 4  # pages kept for each document requested, because some pages have no usable sentence


@dataclass(frozen=True)
class MediawikiDump:
    """A MediaWiki XML dump, plain (.xml) or compressed (.bz2, .gz).

    Attributes:
        path: the dump.
    """

    path: str | Path

    def documents(self, seed: int, at_least: int) -> Iterator[Document]:
        """Yield the last revision of each article that is not a redirect, in random order.

        The dump is read once. If it has more than 4 `at_least` articles, a uniform random sample of 4 `at_least` of
        them is kept as wikitext (reservoir sampling), which bounds the memory. Wikitext is parsed when it is yielded.

        Args:
            seed: seed of the random order.
            at_least: number of documents with a usable sentence that the caller needs.

        Raises:
            OnejumpError: the dump is missing, of an unknown kind, or damaged.
        """
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
        """Yield titles and wikitext in the order of the dump."""
        import mwxml
        from mwxml.errors import MalformedXML

        path = require_file(self.path)
        opener = next((opener for ending, opener in _OPENERS.items() if path.name.endswith(ending)), None)
        if opener is None:
            raise OnejumpError(f"{path}: unknown kind of dump; expected a name ending in {', '.join(_OPENERS)}")
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
                f"{path}: not a whole MediaWiki dump ({reason_of(error)}); expected a pages-articles XML export;"
                " download it again"
            ) from error
