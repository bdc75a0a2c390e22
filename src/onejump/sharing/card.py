"""The model card of a published jump: README.md, as the hub shows it."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

TEMPLATE = Path(__file__).parent / "card.md.j2"
TAGS = ["onejump", "early-exit", "logit-lens", "interpretability", "safetensors"]
WORDS = {"joint": "one jump for all levels", "ojfa": "one jump for all levels (OJFA)", "all": "a jump for each level"}


def render_card(config: Mapping) -> str:
    """The card of a jump, by what its `jump_config.json` says."""
    corpus = config["fitted_on"]["corpus"]
    front = {"library_name": "onejump", "tags": TAGS, "base_model": config["base_model"]["hub_id"]}
    front |= {"license": config["licence"], "language": corpus["language"]}
    facts = {"words": WORDS[config["jump"]], "source": _in_words(corpus["source"])}
    facts["front"] = yaml.safe_dump({key: value for key, value in front.items() if value}, sort_keys=False)
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(config | facts) + "\n"


def _in_words(value: object, name: str = "") -> str:
    """A part of the config as a list: ``mediawiki_dump, wheel `gensim==4.4.0`, ...``."""
    if isinstance(value, Mapping):
        parts = [_in_words(inner, key) for key, inner in value.items() if inner is not None]
        return ", ".join(filter(None, [name, *parts]))
    return f"{name} `{' '.join(value) if isinstance(value, list) else value}`"
