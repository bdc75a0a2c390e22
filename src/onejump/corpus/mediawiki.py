"""Read the articles of a MediaWiki XML dump."""

import bz2
import gzip
import logging
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from onejump.corpus.documents import Document, reason_of
from onejump.corpus.wikitext import clean_wikitext
from onejump.files.atomic import OnejumpError, require_file

logger = logging.getLogger(__name__)

# Only the last suffix counts: Wikipedia names the parts of a dump "….xml-p1p41242.bz2".
_OPENERS = {".xml": open, ".bz2": bz2.open, ".gz": gzip.open}
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)  # dumps older than the <redirect> element
_END = re.compile(b"(</page>|</revision>)")
_OTHER_NAMESPACE = re.compile(rb'<namespace key="-?[1-9][^>]*>([^<]+)<')
_BLOCK = 1 << 20  # bytes read at a time
_POOL = 4  # pages kept for each document requested, because some pages have no usable sentence


@dataclass(frozen=True)
class MediawikiDump:
    """A MediaWiki XML dump, plain (.xml) or compressed (.bz2, .gz)."""

    path: str | Path

    def documents(self, seed: int, at_least: int) -> Iterator[Document]:
        """Yield the last revision of each article that is not a redirect, in random order.

        The dump is read once. If it has more than 4 `at_least` articles, a uniform random sample of 4 `at_least` of
        them is kept as wikitext (reservoir sampling), which bounds the memory. Wikitext is parsed when it is yielded.
        Pages that cannot be read are skipped, and their number is logged.

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
        unparsable = 0
        try:
            for title, wikitext in kept:
                try:
                    paragraphs = clean_wikitext(wikitext)
                except ValueError:
                    unparsable += 1
                else:
                    yield Document(title, paragraphs)
        finally:
            if unparsable:
                logger.warning("%s: pages whose wikitext cannot be parsed, skipped: %d", self.path, unparsable)

    def _articles(self) -> Iterator[tuple[str, str]]:
        """Yield titles and wikitext in the order of the dump."""
        path = require_file(self.path)
        opener = next((opener for ending, opener in _OPENERS.items() if path.name.endswith(ending)), None)
        if opener is None:
            raise OnejumpError(f"{path}: unknown kind of dump; expected a name ending in {', '.join(_OPENERS)}")
        unreadable = 0
        try:
            with opener(path, "rb") as file:
                pages = _pages(file)
                namespaces = {name.decode() for name in _OTHER_NAMESPACE.findall(next(pages))}
                for page in pages:
                    try:
                        article = _article(page, namespaces)
                    except (ElementTree.ParseError, ValueError):
                        unreadable += 1
                    else:
                        if article is not None:
                            yield article
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise OnejumpError(
                f"{path}: not a whole MediaWiki dump ({reason_of(error)}); expected a pages-articles XML export;"
                " download it again"
            ) from error
        if unreadable:
            logger.warning("%s: pages that cannot be read, skipped: %d", path, unreadable)


def _pages(file: BinaryIO) -> Iterator[bytes]:
    """Yield the header of a dump and then each page, as XML, with no revision but its last.

    Pages are separated before they are parsed, so that one with invalid XML does not end the dump. ValueError means
    that the file is not a whole dump.
    """
    header, page, rest = None, b"", b""
    while block := file.read(_BLOCK):
        *parts, rest = _END.split(rest + block)
        for text, end in zip(parts[::2], parts[1::2], strict=True):
            if not page:
                before, start, text = text.partition(b"<page>")
                text = start + text
                if header is None:
                    yield (header := before)
            if end == b"</page>":
                yield page + text + end
                page = b""
            else:
                head, start, revision = text.partition(b"<revision>")
                page = (page.partition(b"<revision>")[0] or head) + start + revision + end
    if header is None or b"<mediawiki" not in header:
        raise ValueError("no <mediawiki> element with pages")
    if not rest.rstrip().endswith(b"</mediawiki>"):
        raise ValueError("cut short, no </mediawiki> at the end")


def _article(page: bytes, other_namespaces: set[str]) -> tuple[str, str] | None:
    """Return the title and wikitext of a page, or None if it is not an article; ParseError or ValueError if broken."""
    element = ElementTree.fromstring(page)
    title, namespace = element.findtext("title"), element.findtext("ns")
    if not title:
        raise ValueError("no title")
    if namespace is None:  # dumps older than the <ns> element
        namespace = title.partition(":")[0] in other_namespaces
    text = element.findtext("revision/text")
    if int(namespace) != 0 or element.find("redirect") is not None or not text or _REDIRECT.match(text):
        return None
    return title.replace("_", " "), text
