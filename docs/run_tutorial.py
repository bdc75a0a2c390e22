"""Execute docs/tutorial.ipynb and keep what its cells print: `python docs/run_tutorial.py`, after `make demo`.

A cell is Python, or commands that begin with `!`, in which `{name}` stands for a variable, as Jupyter has it.
"""

import io
import subprocess
from collections.abc import Mapping
from contextlib import chdir, redirect_stdout
from pathlib import Path

import nbformat

PAGE = Path(__file__).parent / "tutorial.ipynb"


def run(notebook: nbformat.NotebookNode, folder: Path, given: Mapping, tag: str | None = None) -> dict:
    """What each code cell prints to its standard output, by the cell's id.

    Args:
        notebook: the cells.
        folder: where they are executed, in place of docs/
        given: variables that take the place of those of the cell tagged `parameters`.
        tag: execute only that cell and those with this tag.
    """
    printed, variables = {}, {}
    with chdir(folder):
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            if cell.cell_type != "code" or (tag and not {tag, "parameters"} & set(tags)):
                continue
            printed[cell.id] = _commands(cell.source, variables) if cell.source[0] == "!" else _python(cell, variables)
            if "parameters" in tags:
                variables |= given
    return printed


def _python(cell: nbformat.NotebookNode, variables: dict) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(cell.source, f"{PAGE.name}, {cell.id}", "exec"), variables)
    return printed.getvalue()


def _commands(source: str, variables: Mapping) -> str:
    """Each in a shell of its own."""
    scripts = source.format_map(variables).removeprefix("!").split("\n!")
    how = {"shell": True, "check": True, "stdout": subprocess.PIPE, "text": True}
    return "".join(subprocess.run(script, **how).stdout for script in scripts)


if __name__ == "__main__":
    notebook = nbformat.read(PAGE, as_version=4)
    printed = run(notebook, PAGE.parent, {})
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
        text = printed[cell.id]
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
    nbformat.write(notebook, PAGE)
