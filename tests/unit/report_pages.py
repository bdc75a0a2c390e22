"""Reports of a made-up study, and their HTML as something to search in."""

from html.parser import HTMLParser

from summary_tables import config, hardware, kinds_of, read_frame, timings

from onejump.report.page import render_report
from onejump.study.layout import Layout

MODELS, VARIANTS, SEEDS = ("smollm2-135m", "gpt2-xl"), ("paper", "exact"), (0, 3)
ALL_VARIANTS = (*VARIANTS, "alone")  # of which the last one has the joint jump alone
VERSIONS = {"onejump": "0.1.0", "torch": "2.13.0"}
LINKS = {"summary": "summary", "figures": "figures"}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A page as a list of elements in order: [tag, attributes, text, parent, index after the last descendant]."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {[self.elements[i][0] for i in self._open]}"

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attributes):
        parent = self._open[-1] if self._open else None
        self.elements.append([tag, dict(attributes), "", parent, len(self.elements) + 1])

    def handle_endtag(self, tag):
        closed = self.elements[self._open.pop()]
        assert closed[0] == tag, f"</{tag}> closes <{closed[0]}>"
        closed[4] = len(self.elements)

    def handle_data(self, data):
        for index in self._open:
            self.elements[index][2] += data

    def find(self, tag, inside=None, **attributes):
        """Indices of the elements of a tag with these attributes, anywhere inside the element `inside`."""
        wanted = {key.replace("_", "-"): value for key, value in attributes.items()}.items()
        first, last = (0, len(self.elements)) if inside is None else (inside + 1, self.elements[inside][4])
        return [i for i in range(first, last) if self.elements[i][0] == tag and wanted <= self.elements[i][1].items()]

    def text(self, index):
        return " ".join(self.elements[index][2].split())


def branches(variants=VARIANTS):
    return [(model, seed, variant) for model in MODELS for seed in SEEDS for variant in variants]


def kinds(branch):
    return kinds_of(branch[2])


def figure(base, branch, kind):
    model, seed, variant = branch
    return base / "figures" / f"{model}.seed-{seed}.{variant}.{kind}.svg"


def rendered(base, **changes):
    settings = changes.pop("config", config(MODELS, ALL_VARIANTS, SEEDS))
    arguments = {"versions": VERSIONS, "timings": timings(), "hardware": hardware(), "links": LINKS} | changes
    return render_report(Layout(settings, base.parent), **arguments)


def row_of(base, name, branch, **conditions):
    table = read_frame(base / "summary" / f"{name}.parquet")
    for column, value in {**dict(zip(("model", "seed", "variant"), branch, strict=True)), **conditions}.items():
        table = table[table[column] == value]
    return table.iloc[0]
