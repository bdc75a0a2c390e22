"""How pages are made of their templates."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from onejump.report.formats import FORMATS

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: object) -> str:
    """A page, in which all text is escaped and no value may be missing."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.loader = FileSystemLoader(TEMPLATES)
    environment.filters |= FORMATS
    return environment.get_template(template).render(**values)


def verbatim(name: str) -> Markup:
    """A style or script, which a page holds as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))
