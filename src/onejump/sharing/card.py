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
    base = config["base_model"]
    front = {"library_name": "onejump", "tags": TAGS}
    front |= {
        "base_model": base["hub_id"],
        "license": config["licence"],
        "language": config["fitted_on"]["corpus"]["language"],
    }
    front = {key: value for key, value in front.items() if value is not None}
    template = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    source = config["fitted_on"]["corpus"]["source"]
    return (
        template.render(
            config
            | {"words": WORDS[config["jump"]], "front": yaml.safe_dump(front, sort_keys=False), "source": _flat(source)}
        )
        + "\n"
    )


def _flat(value: object, name: str = "") -> str:
    """A part of the config in words: `mediawiki_dump, wheel gensim==4.4.0, ...`."""
    if isinstance(value, Mapping):
        return ", ".join(
            filter(None, [name, *(_flat(inner, key) for key, inner in value.items() if inner is not None)])
        )
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{name} `{text}`"
