"""Convert wikitext to paragraphs of plain text."""

import re
from collections import Counter

from onejump.corpus.documents import GAP, without_surrogates

_INLINE_TAG = re.compile(
    "abbr|b|bdi|bdo|big|center|cite|dfn|em|font|i|ins|kbd|nowiki|onlyinclude|q|samp|small|span|strong|sub|sup|tt|u|var"
)
_BLOCK_TAG = re.compile("blockquote|br|div|hr|p")
_HIDDEN_TAG = re.compile("ref|references|section|includeonly|noinclude")
_NOT_TEXT_LINKS = ("file:", "image:", "category:", "media:")
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(-[a-z-]+)?:\S")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_QUOTE_MARKUP = re.compile(r"'{2,}")
# A gap directly after a word or a full stop, or after the end of a sentence, was a footnote such as {{sfn}}.
_FOOTNOTE = re.compile(
    rf"(?<=[^\W\d_]|[.,;:!?\"'”\u2019)]){GAP}+(?=[\s.,;:!?)]|$)|(?<=[.!?\"”])\s+{GAP}+(?=\s+[A-Z]|\s*$)"
)
# Parentheses with a gap mostly held a pronunciation or a foreign name; the sentence reads well without them.
_GAP_IN_PARENTHESES = re.compile(rf"(?<!\s)\s*\([^(){GAP}]*{GAP}[^()]*\)")
_INDENT = " \t:;*#"  # what may precede a table on its line
_MARK = re.compile(
    rf"<[a-z][^<>]*/>|</?[a-z][^\s<>/]*|\{{\{{|\}}\}}|^[{_INDENT}]*\{{\||^[ \t]*\|\}}(?!\}}(?!\}}))|\[\[|\]\]"
    r"|\[(?=\w+:)|\]|<!--|-->",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSING = {"{{": "}}", "{|": "|}", "[[": "]]", "[": "]", "<!--": "-->"}
_MOST_WORK = 10_000_000  # characters read in vain, each of which takes up to 1 microsecond


def clean_wikitext(wikitext: str) -> list[str]:
    """Return paragraphs without templates, tables, notes, lists, headings, files, formulas, code or comments.

    A template, formula or piece of code within a sentence leaves U+FFFC behind, to mark the sentence as incomplete.
    Footnotes, and parentheses around such a gap, are removed entirely.

    Raises:
        ValueError: the wikitext cannot be parsed, or has so many unclosed openings that it would take long.
    """
    import mwparserfromhell

    if work_in_vain(wikitext) > _MOST_WORK:
        raise ValueError("too many unclosed templates, tables, links or tags")
    text = _plain(mwparserfromhell.parse(wikitext, skip_style_tags=True))
    text = _QUOTE_MARKUP.sub("", _MAGIC_WORD.sub("", text))
    paragraphs, lines = [], []
    for line in [*text.split("\n"), ""]:
        if line.startswith(("*", "#", ":", ";")) or not line.strip(f" \t{GAP}"):
            paragraphs.append(" ".join(lines))
            lines = []
        else:
            lines.append(line.strip())
    # A gap at the start was a box beside the text.
    closed = (_GAP_IN_PARENTHESES.sub("", _FOOTNOTE.sub("", text.lstrip(f" {GAP}"))) for text in paragraphs)
    return [text.strip() for text in closed if text.strip()]


def work_in_vain(wikitext: str) -> int:
    """Count the characters that the parser reads in vain.

    It reads from an opening that is never closed to the end of the text, then goes back and takes it for plain text,
    so its time is quadratic in the number of such openings.
    """
    from mwparserfromhell.definitions import is_single

    unclosed: list[tuple[str, int]] = []  # what would close each opening, and where it is
    awaited: Counter[str] = Counter()
    work = 0
    for match in _MARK.finditer(wikitext):
        mark = match[0].strip(_INDENT).lower()
        if mark.endswith("/>") or is_single(mark[1:]):
            continue
        closing = f"</{mark[1:]}" if re.match("<[a-z]", mark) else _CLOSING.get(mark)
        if closing is not None:
            unclosed.append((closing, match.start()))
            awaited[closing] += 1
        while awaited[mark]:
            closing, start = unclosed.pop()
            awaited[closing] -= 1
            if closing == mark:
                break
            work += len(wikitext) - start
    return work + sum(len(wikitext) - start for _, start in unclosed)


def _plain(wikicode) -> str:
    """Return the text of parsed wikitext, in which list items still begin with their markers."""
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
            parts.append(without_surrogates(node.normalize()))
        elif isinstance(node, nodes.Heading):
            parts.append("\n\n")
        elif isinstance(node, nodes.Tag):
            parts.append(_tag(node))
        elif not isinstance(node, nodes.Comment):
            parts.append(GAP)
    return "".join(parts)


def _label(link) -> str:
    """Return what a reader sees of an internal link."""
    title = str(link.title).strip()
    if title.lower().startswith(_NOT_TEXT_LINKS) or (link.text is None and _LANGUAGE_LINK.match(title)):
        return ""
    return _plain(link.title).lstrip(":") if link.text is None else _plain(link.text)


def _tag(tag) -> str:
    """Return what a reader sees of a tag, or U+FFFC where that is not text."""
    name = str(tag.tag).strip().lower()
    if name in ("li", "dd", "dt") and tag.wiki_markup:
        return str(tag.wiki_markup)
    if _HIDDEN_TAG.fullmatch(name):
        return ""
    contents = _plain(tag.contents) if tag.contents is not None else ""
    if _BLOCK_TAG.fullmatch(name):
        return f"\n\n{contents}\n\n"
    return contents if _INLINE_TAG.fullmatch(name) else GAP
