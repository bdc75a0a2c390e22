"""Digests of code that ignore comments, docstrings and help texts, and are the same under every Python version."""

import ast
import functools
import hashlib
import json
import symtable
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# Modules in which stages are defined: of these, only the definitions that a stage uses count.
ENTRANCE = ("stages", "exit_stages", "study_stages", "parameters", "cli")
# Turns the options of every stage into arguments.
COMMAND_LINE = ("command_of",)


def stage_digest(stage: str, *modules: str, data: str = "") -> str:
    """Digest of the code that a stage runs: its function, and everything in the library that the function uses.

    Args:
        stage: Name of a function in one of the modules of stages.
        modules: Modules that it loads by name at run time, as dotted names within the package.
        data: Glob pattern of files within the package that it reads.

    Returns:
        16 hexadecimal digits.
    """
    definitions = _definitions()
    used, waiting, imported = {}, [stage, *COMMAND_LINE], set(modules)
    while waiting:
        name = waiting.pop()
        if name in definitions and name not in used:
            used[name] = _canonical(definitions[name])
            waiting += sorted(_global_names(definitions[name]))
            imported |= _imports(definitions[name])
    found, pending = {}, list(imported)
    while pending:
        module = pending.pop()
        if module not in found and module not in ENTRANCE:
            found[module], further = _module(module)
            pending += further
    read = {path.name: path.read_bytes().hex() for path in sorted(PACKAGE.glob(data))} if data else {}
    text = json.dumps([used, found, read], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _definitions() -> dict[str, ast.stmt]:
    """Name -> its definition, for all top-level names of the ENTRANCE modules."""
    found = {}
    for module in ENTRANCE:
        for node in ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node
    return found


def _global_names(definition: ast.stmt) -> set[str]:
    """Names that a definition takes from its module, so not those of its parameters and variables."""
    scopes, found = [symtable.symtable(ast.unparse(definition), "<definition>", "exec")], set()
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        outermost = scope.get_type() == "module"
        found |= {
            one.get_name() for one in scope.get_symbols() if one.is_global() or (outermost and one.is_referenced())
        }
    return found


@functools.cache
def _module(name: str) -> tuple[object, list[str]]:
    """A module's canonical syntax tree, and the library modules that it imports."""
    path = PACKAGE / f"{name.replace('.', '/')}.py"
    tree = ast.parse((path if path.is_file() else path.with_suffix("") / "__init__.py").read_text(encoding="utf-8"))
    return _canonical(tree), sorted(_imports(tree))


def _imports(tree: ast.AST) -> set[str]:
    """Modules of this package that a piece of code imports, including inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            module = node.module.partition(".")[2]
            names = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {name if _is_module(name) else module for name in names}
    return found - {""}


def _is_module(name: str) -> bool:
    return (PACKAGE / f"{name.replace('.', '/')}.py").is_file()


def _canonical(node: object) -> object:
    """A syntax tree as JSON, without empty fields: new versions of Python add fields that old code leaves empty."""
    if isinstance(node, ast.AST):
        fields = {name: value for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment")}
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            fields["body"] = node.body[1:]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Option":
            fields["args"] = []  # the help text
        if isinstance(node, ast.JoinedStr):
            fields["values"] = _merged(node.values)
        filled = {name: _canonical(value) for name, value in fields.items() if value not in (None, [])}
        return [type(node).__name__, filled]
    if isinstance(node, Iterable) and not isinstance(node, str | bytes):
        return [_canonical(item) for item in node]
    return node if isinstance(node, str | int | float | bool | None) else repr(node)


def _merged(parts: list[ast.expr]) -> list[ast.expr]:
    """Parts of an f-string, without the empty and the split constants that some versions of Python produce."""
    merged: list[ast.expr] = []
    for part in parts:
        if isinstance(part, ast.Constant) and not part.value:
            continue
        if isinstance(part, ast.Constant) and merged and isinstance(merged[-1], ast.Constant):
            merged[-1] = ast.Constant(merged[-1].value + part.value)
        else:
            merged.append(part)
    return merged
