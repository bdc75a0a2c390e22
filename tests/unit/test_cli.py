"""The command line as a user meets it: help, completion, and errors in one line, or with their trace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ONEJUMP = Path(sys.executable).with_name("onejump")


def onejump(*arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "ONEJUMP_DEBUG"}
    return subprocess.run([ONEJUMP, *arguments], env=kept | environment, text=True, capture_output=True)


def test_help_names_every_stage_without_importing_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ONEJUMP, "--help"], text=True, capture_output=True, check=True
    )
    for command in ("sample-sentences", "train-jump", "render-report", "plan", "rehearse", "inspect", "compare"):
        assert f"\n  {command} " in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "pandas", "transformers"}


@pytest.mark.parametrize("asked", ["option", "variable"])
def test_an_error_is_one_line_and_its_trace_is_had_on_demand(asked, tmp_path):
    arguments = ["inspect", str(tmp_path / "none.parquet")]
    done = onejump(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("onejump: error: ") and done.stderr.count("\n") == 1
    told = onejump("--debug", *arguments) if asked == "option" else onejump(*arguments, ONEJUMP_DEBUG="1")
    assert told.returncode == 1
    assert told.stderr.startswith("Traceback") and told.stderr.endswith("\n" + done.stderr)


def test_the_shell_completes_commands_and_options():
    words = {"_ONEJUMP_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    assert onejump(**words, COMP_WORDS="onejump train-").stdout == "plain,train-jump\n"
    words["COMP_CWORD"] = "2"
    assert "plain,--sentences\n" in onejump(**words, COMP_WORDS="onejump choose-positions --sent").stdout
    assert "complete" in onejump(_ONEJUMP_COMPLETE="bash_source").stdout
