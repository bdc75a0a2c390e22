"""What people read and run of a published jump: README.md, as the hub shows it, and `custom_generate/generate.py`."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

TAGS = ["onejump", "early-exit", "logit-lens", "interpretability", "safetensors"]
WORDS = {"joint": "one jump for all levels", "ojfa": "one jump for all levels (OJFA)", "all": "a jump for each level"}


def render_card(config: Mapping) -> str:
    """The card of a jump, by what its `jump_config.json` says."""
    corpus = config["fitted_on"]["corpus"]
    front = {"library_name": "onejump", "tags": TAGS, "base_model": config["base_model"]["hub_id"]}
    front |= {"license": config["licence"], "language": corpus["language"]}
    gguf = config["base_model"]["source"].get("gguf")
    scaled = config["fitted_on"]["choices"]["scales"] != "none"
    facts = {"words": WORDS[config["jump"]], "scaled": scaled, "text": _in_words(corpus["source"]), "gguf": gguf}
    facts["front"] = yaml.safe_dump({key: value for key, value in front.items() if value}, sort_keys=False)
    return _render("card.md.j2", config | facts)


def render_generate(repository: str | None) -> str:
    """The Python file that Transformers runs for `custom_generate`, in a repository of this name, if it has one."""
    return _render("generate.py.j2", {"repository": repository})


def _render(template: str, facts: Mapping) -> str:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = (Path(__file__).parent / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(facts) + "\n"


def _in_words(value: object, name: str = "") -> str:
    """A part of the config as a list: ``mediawiki_dump, wheel `gensim==4.4.0`, ...``."""
    if isinstance(value, Mapping):
        parts = [_in_words(inner, key) for key, inner in value.items() if inner is not None]
        return ", ".join(filter(None, [name, *parts]))
    return f"{name} `{' '.join(value) if isinstance(value, list) else value}`"
