"""Articles of a MediaWiki XML dump."""

import bz2
import gzip
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import ParseError

from onejump.corpus.documents import Document, _reason
from onejump.corpus.wikitext import clean_wikitext
from onejump.files.atomic import OnejumpError, require_file

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
