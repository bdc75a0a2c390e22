"""The study's SVG figures, made fit to share one HTML page: small, and with no id that occurs twice."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from markupsafe import Markup

from onejump.files.sealed import read_sealed_svg

_NUMBER = re.compile(r"-?\d+\.\d+")
_TRANSLATION = re.compile(r"translate\([^)]*\)")
_MOVE = re.compile(r"translate\((\S+)[ ,](\S+)\)")
_GLYPH = re.compile(r"(DejaVu|Cmr|Cmmi|Cmsy|STIX)[\w-]*")  # how Matplotlib names the outlines of its fonts
_CURVE = re.compile("[CQ]")
_PART = "part-"  # ids with this prefix name what the page's script looks for


class InlineFigures:
    """The figures of one page. They share the outlines of letters, which would otherwise be a third of the page."""

    def __init__(self) -> None:
        """Start a page without figures."""
        self._count = 0
        self._glyphs: dict[tuple[str, str], str] = {}  # outline and transform -> id in the page

    def inline(self, path: Path) -> Markup:
        """An SVG file as an `<svg>` element whose ids occur nowhere else in the page.

        Raises:
            OnejumpError: the file is missing or damaged.
        """
        root = ElementTree.fromstring(read_sealed_svg(path))
        self._count += 1
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
            element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
            for child in list(element):
                if child.tag.rpartition("}")[2] in ("metadata", "style"):  # which would apply to the whole page
                    element.remove(child)
        _rename_ids(root, self._take_glyphs(root), f"f{self._count}-")
        for element in root.iter():
            _shorten(element)
        root.attrib = {"viewBox": root.get("viewBox", ""), "aria-hidden": "true", "focusable": "false"}
        return Markup(ElementTree.tostring(root, encoding="unicode"))  # our own file, parsed and rewritten

    def glyphs(self) -> Markup:
        """The outlines that all figures inlined so far refer to, as one `<svg>` element that shows nothing."""
        root = ElementTree.Element("svg", {"width": "0", "height": "0", "aria-hidden": "true", "class": "glyphs"})
        defs = ElementTree.SubElement(root, "defs")
        for (outline, transform), id_ in self._glyphs.items():
            attributes = {"id": id_, "d": outline} | ({"transform": transform} if transform else {})
            ElementTree.SubElement(defs, "path", attributes)
        return Markup(ElementTree.tostring(root, encoding="unicode"))

    def _take_glyphs(self, root: ElementTree.Element) -> dict[str, str]:
        """Take the outlines of letters out of a figure; return their ids in the figure -> in the page."""
        renamed = {}
        for defs in root.iter("defs"):
            for child in list(defs):
                if child.tag == "path" and _GLYPH.fullmatch(child.get("id", "")):
                    # In units so small that whole numbers are precise enough.
                    outline = _rounded(" ".join(child.get("d", "").split()), 0)
                    key = (outline, child.get("transform", ""))
                    renamed[child.get("id")] = self._glyphs.setdefault(key, f"g{len(self._glyphs)}")
                    defs.remove(child)
        return renamed


def _rename_ids(root: ElementTree.Element, glyphs: dict[str, str], prefix: str) -> None:
    """Keep only ids that are referred to, under new names, and mark named parts with `data-part`."""
    references = {}
    for element in root.iter():
        for name, value in element.attrib.items():
            found = re.findall(r"url\(#([^)]+)\)", value)
            if name == "href" and value.startswith("#"):
                found.append(value[1:])
            for id_ in found:
                references.setdefault(id_, f"{prefix}{len(references)}")
    references |= glyphs
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                del element.attrib[name]
                if value in references:
                    element.set("id", references[value])
                elif value.startswith(_PART):
                    element.set("data-part", value.removeprefix(_PART))
            elif name == "href" and value.startswith("#"):
                element.set(name, "#" + references[value[1:]])
            elif "url(#" in value:
                element.set(name, re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{references[match[1]]})", value))


def _shorten(element: ElementTree.Element) -> None:
    """Say the same in fewer characters.

    White space and empty parts go, marks that share a style state it once, glyphs are placed, not translated, and
    coordinates are rounded to a tenth of a point in long paths and to a hundredth elsewhere.
    """
    element.text = (element.text or "").strip() or None
    element.tail = None
    for name in {"d", "x", "y"} & element.attrib.keys():
        value = " ".join(element.get(name).split())
        if not _CURVE.search(value):
            value = value.replace(" L ", " ")  # what follows M without a letter is lines
        element.set(name, _rounded(value, 1 if len(value) > 300 else 2))
    if "transform" in element.attrib:
        element.set("transform", _TRANSLATION.sub(lambda match: _rounded(match[0], 2), element.get("transform")))
        if element.tag == "use" and (moved := _MOVE.fullmatch(element.get("transform"))):
            del element.attrib["transform"]
            element.attrib.update({name: by for name, by in zip("xy", moved.groups(), strict=True) if by != "0"})
    if "style" in element.attrib:
        element.set("style", re.sub(r"(?<=[:;]) ", "", element.get("style")))
    for child in element.findall("defs"):
        if not len(child):
            element.remove(child)
    children = list(element)
    styles = {child.get("style") for child in children}
    if len(children) > 1 and len(styles) == 1 and None not in styles and {child.tag for child in children} == {"use"}:
        element.set("style", ";".join(filter(None, (element.get("style"), *styles))))
        for child in children:
            del child.attrib["style"]


def _rounded(text: str, decimals: int) -> str:
    def shortened(number: re.Match) -> str:
        rounded = f"{float(number[0]):.{decimals}f}"
        return rounded.rstrip("0").rstrip(".") if decimals else rounded

    return _NUMBER.sub(shortened, text)
