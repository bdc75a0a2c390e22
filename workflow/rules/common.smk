# What all rules share: the checked config, paths, and the arguments that come from the config.
import ast
import difflib
import functools
import hashlib
import importlib.util
import json
import os
import shlex
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

SCHEMA = workflow.source_path("../schemas/config.schema.yaml")


def explain(error):
    """One line about a config error: the key, what was found, what was expected."""
    key = ".".join(str(part) for part in error.absolute_path) or "the top level"
    if error.validator == "additionalProperties" and "properties" in error.schema:
        known = list(error.schema["properties"])
        unknown = [name for name in error.instance if name not in known]
        close = difflib.get_close_matches(unknown[0], known, 1)
        return f"{key}: unknown key {unknown[0]!r}; {f'did you mean {close[0]!r}?' if close else f'known: {known}'}"
    if error.validator == "pattern":
        return f"{key}: {error.instance!r} does not match {error.validator_value}"
    return f"{key}: {error.message}"


def check_config():
    """Refuse a wrong config in one line for each fault, then fill in the defaults."""
    errors = sorted(
        Draft202012Validator(yaml.safe_load(Path(SCHEMA).read_text())).iter_errors(
            config
        ),
        key=lambda e: e.path,
    )
    if errors:
        raise WorkflowError("\n".join(f"config: {explain(error)}" for error in errors))
    validate(config, SCHEMA)
    if config["evaluation"]["transfer_sentences"] > config["corpus"]["test"]:
        raise WorkflowError(
            f"config: evaluation.transfer_sentences is {config['evaluation']['transfer_sentences']}, "
            f"expected at most corpus.test = {config['corpus']['test']}"
        )
    for name, choices in config["variants"].items():
        unknown = set(choices["seeds"] or []) - set(config["seeds"])
        if unknown:
            raise WorkflowError(
                f"config: variants.{name}.seeds has {min(unknown)}, expected some of the study's {config['seeds']}"
            )


check_config()
STUDY = config["study"]
RESULTS = f"results/{STUDY}"
BRANCH = f"{RESULTS}/{{model}}/seed-{{seed}}"
VARIANT = f"{BRANCH}/{{variant}}"
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
# With --cache, what studies share comes from a common folder.
CACHING = workflow.enable_cache


wildcard_constraints:
    model="|".join(map(re.escape, config["models"])),
    seed="|".join(map(str, config["seeds"])),
    variant="|".join(map(re.escape, config["variants"])),
    split="train|test",
    level=r"\d\d+",
    shard=r"\d\d+",
    sha=r"[0-9a-f]+",


@functools.cache
def meaning(module):
    """Digest of a library module's syntax tree without docstrings and comments, and the library modules it imports."""
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("onejump"):
            imported.add(node.module)
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imported


def code(*modules):
    """Digest of the meaning of library modules and of all they import.

    Snakemake sees a changed parameter but not a changed module; this makes the one follow from the other.
    """
    found, waiting = {}, [f"onejump.{name}" for name in modules]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name], imported = meaning(name)
            waiting += imported
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def template():
    """Digest of the report's template."""
    folder = Path(importlib.util.find_spec("onejump").origin).parent / "report" / "templates"
    return hashlib.sha256((folder / "report.html.j2").read_bytes()).hexdigest()[:16]


def grow(amount):
    """Memory in megabytes or time in minutes, doubled with each attempt."""
    return lambda wildcards, attempt: amount * 2 ** (attempt - 1)


def dtype(wildcards):
    return config["models"][wildcards.model]["dtype"]


def blocks(wildcards):
    return config["models"][wildcards.model]["blocks"]


def choice(key):
    """A variant's choice, as a function of the wildcards."""
    return lambda wildcards: config["variants"][wildcards.variant][key]


def repeat(option, files):
    """An option given once for each file."""
    return " ".join(f"{option} {shlex.quote(str(file))}" for file in files)
