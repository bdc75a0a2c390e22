"""Update the table of all keys in config/README.md from the schema: `python docs/describe_config.py`."""

from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGE, SCHEMA = ROOT / "config" / "README.md", ROOT / "workflow" / "schemas" / "config.schema.yaml"
BEGIN, END = "<!-- keys: made from the schema by docs/describe_config.py -->\n", "<!-- end of keys -->\n"


def keys(schema: dict, path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Key, values, default and meaning of every key, in the schema's order; `<name>` stands for a user's own name."""
    for name, inner in schema.get("properties", {}).items():
        required = name in schema.get("required", []) and "default" not in inner
        nested = "properties" in inner or isinstance(inner.get("additionalProperties"), dict)
        default = "required" if required else "" if nested else _value(inner["default"]) if "default" in inner else ""
        yield f"{path}{name}", _values(inner), default, inner["description"].strip()
        yield from keys(inner, f"{path}{name}.")
        if isinstance(inner.get("additionalProperties"), dict):
            yield from keys(inner["additionalProperties"], f"{path}{name}.<name>.")
        yield from keys(inner.get("items", {}), f"{path}{name}[].")


def table() -> str:
    """All keys as a Markdown table."""
    rows = [("key", "values", "default", "meaning"), ("---",) * 4]
    for key, values, default, meaning in keys(yaml.safe_load(SCHEMA.read_text())):
        rows.append((f"`{key}`", values, default, meaning))
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def page() -> str:
    """config/README.md with an updated table."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


def _values(schema: dict) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", {"#/$defs/slug": "short name", "#/$defs/sha256": "64 hex digits"}.get(schema.get("$ref")))
    words = {"integer": "whole number", "number": "number", "string": "text", "array": "list", "boolean": "true, false"}
    words |= {"null": "`null`", "object": ""}
    said = ", ".join(words.get(one, one) for one in (kind if isinstance(kind, list) else [kind]))
    return f"{said} ≥ {schema['minimum']}" if "minimum" in schema and isinstance(kind, str) else said


def _value(value: object) -> str:
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}`"


if __name__ == "__main__":
    PAGE.write_text(page())
