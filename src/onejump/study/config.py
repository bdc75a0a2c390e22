"""A study's config: checked against its schema and completed with the schema's defaults."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import yaml

from onejump.files.atomic import OnejumpError, require_file
from onejump.study.fits import FITS
from onejump.study.languages import LANGUAGES
from onejump.study.lenses import IMPORTED_LENSES, JACOBIAN_LENSES, LENSES
from onejump.study.variants import GATES, INPUTS, SCALES, seeds_of, wrong_choice

SCHEMA = Path(__file__).parent / "config.schema.yaml"
RENAMED = {"reference": "published"}


def load_config(path: str | Path) -> dict:
    """The config in a YAML file, as `complete_config` returns it.

    Raises:
        OnejumpError: There is no such file, or it is not YAML, or the config is wrong.
    """
    content = require_file(path).read_bytes()
    try:
        config = yaml.safe_load(content)
    except Exception as error:  # besides its own, PyYAML lets through what int, date, strings or nesting raise
        reason = " ".join(str(error).split())
        raise OnejumpError(f"{path}: not valid YAML ({reason}); correct the file") from error
    return complete_config(config)


def complete_config(config: Mapping) -> dict:
    """The config with all defaults filled in; the user's keys keep their order.

    Raises:
        OnejumpError: The config is wrong; one line for each error.
    """
    from jsonschema import Draft202012Validator, validators

    try:
        _check_names(config, ())
    except RecursionError:
        raise OnejumpError(
            "config: is nested without end; remove the alias (*) that stands within its anchor"
        ) from None
    schema = _schema()
    # JSON's integers include 1.0, which would be another seed's folder.
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    validator = validators.extend(Draft202012Validator, type_checker=types)(schema)
    errors = sorted(validator.iter_errors(config), key=lambda error: [str(part) for part in error.path])
    if errors:
        raise OnejumpError("\n".join(f"config: {_explain(error)}" for error in errors))
    complete = _with_defaults(json.loads(json.dumps(config)), schema, schema)
    if conflict := next(_conflicts(complete), None):
        raise OnejumpError(f"config: {conflict}")
    return complete


def _check_names(value: object, path: tuple[str, ...]) -> None:
    """Refuse names that YAML takes for a number or for nothing."""
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        if not isinstance(key, str):
            raise OnejumpError(f"config: {_dotted(path)}: the name {key!r} is no text; put it in quotes")
        _check_names(inner, (*path, key))


def _schema() -> dict:
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    variant = schema["properties"]["variants"]["additionalProperties"]["properties"]
    for key, values in {"fit": FITS, "gate": GATES, "scales": SCALES, "inputs": INPUTS}.items():
        variant[key]["enum"] = list(values)
    schema["properties"]["corpus"]["properties"]["language"]["enum"] = LANGUAGES
    schema["properties"]["evaluation"]["properties"]["lenses"]["propertyNames"]["enum"] = list(LENSES)
    return schema


def _with_defaults(value: object, schema: Mapping, root: Mapping) -> object:
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if not isinstance(value, dict):
        return value
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties")
    defaults = {key: inner["default"] for key, inner in properties.items() if "default" in inner}
    filled = value | {key: default for key, default in defaults.items() if key not in value}
    return {
        key: _with_defaults(inner, properties.get(key, rest if isinstance(rest, dict) else {}), root)
        for key, inner in filled.items()
    }


def _dotted(path: Iterable[object]) -> str:
    """Where a value is, in one line."""
    return " ".join(".".join(map(str, path)).split()) or "the top level"


def _explain(error) -> str:
    """One line about an error: the key, what was found, what was expected."""
    key = _dotted(error.absolute_path)
    if error.validator == "additionalProperties" and "properties" in error.schema:
        known = list(error.schema["properties"])
        unknown = next(name for name in error.instance if name not in known)
        if unknown in RENAMED:
            return f"{key}: {unknown!r} is now called {RENAMED[unknown]!r}; rename it"
        close = difflib.get_close_matches(str(unknown), known, 1)
        return f"{key}: unknown key {unknown!r}; {f'did you mean {close[0]!r}?' if close else f'known: {known}'}"
    if error.validator == "pattern":
        return f"{key}: {error.instance!r} does not match {error.validator_value}"
    return f"{key}: {error.message}"


def _conflicts(config: Mapping) -> Iterator[str]:
    """Values that are each valid, but not together, one line each."""
    corpus, grid, seeds = config["corpus"], config["evaluation"]["transfer_sentences"], set(config["seeds"])
    if grid > corpus["test"]:
        yield f"evaluation.transfer_sentences is {grid}, expected at most corpus.test = {corpus['test']}"
    lenses = config["evaluation"]["lenses"]
    for model, facts in config["models"].items():
        if facts["load"] == "blocks" and (whole := [lens for lens in lenses if lens in JACOBIAN_LENSES]):
            yield f"evaluation.lenses has {whole[0]}, which needs a whole model, but models.{model}.load is blocks"
        if facts["load"] == "blocks" and facts["gpus"] > 1:
            yield f"models.{model}.load is blocks, which needs one GPU, but gpus is {facts['gpus']}; set gpus: 1"
        for split, shards in facts["shards"].items():
            if shards > corpus[split]:
                yield f"models.{model}.shards.{split} is {shards}, expected at most corpus.{split} = {corpus[split]}"
    by_model = {"published": config["published"]}
    for lens, chosen in lenses.items():
        by_model[f"evaluation.lenses.{lens}.sources"] = sources = chosen.get("sources", {})
        if LENSES[lens].imported and not sources:
            yield f"evaluation.lenses.{lens} has no sources; say where it is: sources: {{MODEL: PATH}}"
        if sources and not LENSES[lens].imported:
            yield f"evaluation.lenses.{lens} has sources, expected none; name it {' or '.join(IMPORTED_LENSES)}"
    for key, named in by_model.items():
        if strangers := named.keys() - config["models"].keys():
            models = ", ".join(config["models"])
            yield f"{key} has {min(strangers)}, which is none of the study's models: {models}"
    for name, chosen in config["variants"].items():
        if wrong := wrong_choice(chosen):
            yield f"variants.{name}.{wrong}"
        if chosen["train_on"] != "corpus" and "generated" not in corpus:
            missing = "but models write no text; add generated: {} to the corpus"
            yield f"variants.{name}.train_on is {chosen['train_on']}, {missing}"
    if all(chosen["jumps"] == "joint" for chosen in config["variants"].values()):
        yield "variants has jumps: joint only, but the paper's claims are about jumps: all; add paper: {}"
    used = {name: set(seeds_of(name, config)) for name in config["variants"]}
    if unused := seeds.difference(*used.values()):
        yield f"seeds has {min(unused)}, which no variant uses; remove it, or give it to a variant's seeds"
    named = {f"variants.{name}": own for name, own in used.items()}
    named |= {f"evaluation.lenses.{name}": set(chosen["seeds"] or seeds) for name, chosen in lenses.items()}
    for name, own in named.items():
        if unknown := own - seeds:
            yield f"{name}.seeds has {min(unknown)}, expected some of the study's {config['seeds']}"
