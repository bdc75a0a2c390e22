"""The command line as a user meets it: help, completion, errors in one line or with their trace, and what logs say."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from refusals import error_of

from onejump import stages
from onejump.cli import cli
from onejump.files.tensors import write_tensors
from onejump.models.devices import DEVICE_LINE
from onejump.parameters import Compute, Dump, Texts

ONEJUMP = Path(sys.executable).with_name("onejump")


def onejump(*arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "ONEJUMP_DEBUG"}
    return subprocess.run([ONEJUMP, *arguments], env=kept | environment, text=True, capture_output=True)


def test_help_names_every_stage_without_importing_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ONEJUMP, "--help"], text=True, capture_output=True, check=True
    )
    for command in ("sample-sentences", "fit-jump", "render-report", "plan", "rehearse", "inspect", "compare"):
        assert f"\n  {command} " in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "pandas", "transformers"}


@pytest.mark.parametrize("asked", ["option", "variable"])
def test_an_error_is_one_line_and_its_trace_is_had_on_demand(asked, tmp_path):
    arguments = ["inspect", str(tmp_path / "none.parquet")]
    done = onejump(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("onejump: error: ")
    assert done.stderr.count("\n") == 1
    told = onejump("--debug", *arguments) if asked == "option" else onejump(*arguments, ONEJUMP_DEBUG="1")
    assert told.returncode == 1
    assert told.stderr.startswith("Traceback")
    assert told.stderr.endswith("\n" + done.stderr)


@pytest.mark.parametrize(
    "module",
    [
        "stages",
        "exit_stages",
        "study_stages",
        "files.downloads",
        "study.layout",
        "study.config",
        "corpus.sampling",
        "analysis.claims",
        "analysis.summary",
        "report.figures",
        "report.page",
        "report.inspection",
        "planning.plan",
    ],
)
def test_what_computes_on_no_tensors_imports_no_pytorch(module):
    code = f"import sys, onejump.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_metadata_shapes_and_arrays_of_tensor_files_are_read_without_pytorch(tmp_path):
    tensors = {"x": torch.ones(2, 3, dtype=torch.bfloat16), "y": torch.tensor([0.5, 0.25])}
    write_tensors(tmp_path / "t", tensors, {"n": 7})
    code = f"""
import sys
from onejump import stages
from onejump.cli import cli
from onejump.files.tensors import TensorFile
file = TensorFile({str(tmp_path / "t")!r})
assert (file.value("n"), file.shape("x"), file.names) == (7, (2, 3), ["x", "y"])
assert file.array("y").tolist() == [0.5, 0.25]
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_shell_completes_commands_and_options():
    words = {"_ONEJUMP_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    assert onejump(**words, COMP_WORDS="onejump fit-ju").stdout == "plain,fit-jump\n"
    words["COMP_CWORD"] = "2"
    assert "plain,--sentences\n" in onejump(**words, COMP_WORDS="onejump choose-positions --sent").stdout
    assert "complete" in onejump(_ONEJUMP_COMPLETE="bash_source").stdout


def test_a_stage_says_what_it_runs_on_before_all_else(capsys):
    threads = torch.get_num_threads()
    device = Compute("cpu", 1).start()
    torch.set_num_threads(threads)
    (line,) = capsys.readouterr().err.splitlines()
    assert device.type == "cpu"
    assert line.startswith(DEVICE_LINE)
    assert line.endswith(", 1 thread")


def test_a_hub_model_that_cannot_be_reached_is_one_line_and_comes_soon(tmp_path):
    model = "nobody-of-this-name/no-such-model"
    done = onejump("extract-unembedding", "--model", model, "--out", str(tmp_path / "h"), HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"onejump: error: model {model}: revision 'main' is not in the cache and the hub")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stage_that_is_stopped_says_so_and_leaves_nothing_behind(tmp_path, number, status):
    code = f"""
import time
from onejump import cli
from onejump.files.atomic import atomic_path

@cli.cli.command()
def write_slowly():
    with atomic_path({str(tmp_path / "out")!r}) as temporary:
        temporary.write_text("half")
        print("began", flush=True)
        time.sleep(60)

cli.main()
"""
    command = [sys.executable, "-c", code, "write-slowly"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as stage:
        assert stage.stdout.readline() == "began\n"
        stage.send_signal(number)
        _, errors = stage.communicate(timeout=30)
    assert stage.returncode == status
    assert errors.strip() == "onejump: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_status_2_and_names_the_option():
    done = onejump("select-jump", "--no-such-option")
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert "--no-such-option" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_explains_itself_and_each_of_its_required_options(name):
    done = CliRunner().invoke(cli, [name, "--help"])
    assert done.exit_code == 0
    assert done.output.startswith("Usage:")
    assert cli.commands[name].help.split("\n")[0] in " ".join(done.output.split())
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Argument):
            assert parameter.human_readable_name in done.output
        else:
            assert parameter.opts[0] in done.output
            assert parameter.required <= ("[required]" in done.output)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_refuses_to_run_without_its_required_options(name):
    done = CliRunner().invoke(cli, [name])
    assert done.exit_code == 2
    assert "Missing option" in done.output or "Missing argument" in done.output


@pytest.mark.parametrize("sources", [{}, {"hub": "a/b", "files": [Path("t.txt")]}])
def test_sampling_sentences_needs_exactly_one_source(tmp_path, sources):
    message = error_of(lambda: stages.sample_sentences(Texts(**sources), 1, 1, tmp_path / "s.parquet"))
    assert message == "give exactly one source: --mediawiki-dump, --hub or --file"


@pytest.mark.parametrize("seed", ["-1", "4294967296", "12345678901234567890123"])
@pytest.mark.parametrize("name", ["sample-sentences", "choose-positions", "fit-jump", "select-jump"])
def test_a_seed_out_of_range_is_refused(name, seed):
    done = CliRunner().invoke(cli, [name, "--seed", seed])
    assert done.exit_code == 2
    assert f"Invalid value for '--seed': {seed} is not in the range 0<=x<=4294967295." in done.output


@pytest.mark.parametrize(
    ("levels", "named"),
    [(["last"], "--level last: expected the number of an exit level"), (["0", "1"], "--out: 1 given for 2 --level")],
)
def test_levels_that_are_no_levels_are_refused(tmp_path, levels, named):
    dump = Dump(tmp_path / "u", tmp_path / "p", [tmp_path / "s"])
    message = error_of(lambda: stages.fit_jump(dump, Compute("cpu", 1), levels, [tmp_path / "out"]))
    assert message.startswith(named)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("TypeError('a\\nb')", "a bug in onejump (TypeError: a); please report it with the command and the trace that"),
        ("AssertionError()", "a bug in onejump (AssertionError); please report it"),
        ("OSError('no text')", "no text; make room or fix its permissions"),
        ("OSError()", "OSError; make room or fix its permissions"),
        ("MemoryError()", "not enough memory; "),
    ],
)
def test_whatever_is_raised_is_one_line(error, message):
    code = f"""
import sys
from onejump import cli
def compare(**_): raise {error}
cli.cli.commands["compare"].callback = compare
sys.argv = ["onejump", "compare", ".", "."]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"onejump: error: {message}")
    assert done.stderr.count("\n") == 1
