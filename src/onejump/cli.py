"""The command line: a command for each stage, made from its signature, and a few that ask about a study."""

import gc
import inspect
import os
import re
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import click

from onejump import exit_stages, stages, study_stages
from onejump.files.atomic import OnejumpError
from onejump.models.architecture import LOADS

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
DEBUG_VARIABLE = "ONEJUMP_DEBUG"


@click.group(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onejump")
@click.option("--debug", is_flag=True, help=f"Show the trace of an error; {DEBUG_VARIABLE}=1 does so in all jobs.")
def cli(debug: bool) -> None:
    """One Jump Fits All, stage by stage: corpus, activations, jumps, selection, evaluation, report."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


# ------------------------------------------------------------------------------------------- from stages to commands


def command_of(stage: Callable) -> click.Command:
    """The command of a stage: an option for each parameter, or for each field where a parameter is a dataclass."""
    parameters = inspect.signature(stage).parameters.values()
    groups = {p.name: p.annotation for p in parameters if is_dataclass(p.annotation)}
    options = [_option(p.name, p.annotation, p.default) for p in parameters if p.name not in groups]
    options += [_option(f.name, f.type, f.default) for group in groups.values() for f in fields(group)]

    def run(**given) -> None:
        for name, group in groups.items():
            own = {field.name: given.pop(field.name) for field in fields(group)}
            given[name] = group(**own)
        stage(**given)

    text = inspect.getdoc(stage).partition("\n\nRaises:")[0]
    options.sort(key=lambda option: not option.required)
    return click.Command(stage.__name__.replace("_", "-"), callback=run, params=options, help=text)


def _option(parameter: str, annotation: object, default: object) -> click.Parameter:
    """Of a parameter that is a list, an option that may be repeated and is named in the singular."""
    name, (kind, about) = parameter, typing.get_args(annotation)
    if about.positional:
        return click.Argument([name])
    several = typing.get_origin(kind) is list
    if several:
        (kind,), name = typing.get_args(kind), re.sub("(?<=s)es$|s$", "", name)
    elif isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        value_type = click.Choice(typing.get_args(kind))
    elif kind is Path:
        value_type = FOLDER if about.folder else FILE
    else:
        value_type = kind if about.minimum is None else click.IntRange(about.minimum, about.maximum)
    names = [f"--{name.replace('_', '-')}", parameter]
    # No default for a required option, since even None would count as given.
    how = {"required": True} if default in (inspect.Parameter.empty, MISSING) else {"default": default}
    return click.Option(names, type=value_type, **how, multiple=several, is_flag=kind is bool, help=about.help)


STAGES = [
    stage
    for module in (stages, exit_stages, study_stages)
    for stage in vars(module).values()
    if inspect.isfunction(stage) and stage.__module__ == module.__name__
]
for _stage in STAGES:
    cli.add_command(command_of(_stage))


# ---------------------------------------------------------------------------------------------- asking about a study


@cli.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--train", type=click.IntRange(min=20), default=256, help="Training sentences.")
@click.option("--test", type=click.IntRange(min=1), default=64, help="Test sentences.")
@click.option("--levels", type=click.IntRange(min=1), default=2, help="Exit levels whose jumps are fitted.")
@click.option("--longest", type=click.IntRange(min=1), default=6, help="Words of the longest sentence.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@click.option("--load", type=click.Choice(LOADS), default="auto", help="How the model is held.")
@click.option("--threads", type=click.IntRange(min=1), default=2, help="CPU threads.")
@click.option("--out", type=FOLDER, default=Path("results/rehearsal"), help="Folder for all files.")
def rehearse(models, train, test, levels, longest, dtype, load, threads, out) -> None:
    """Run MODELS at their true dimensions, with random weights, and set predicted beside measured.

    Each is named by a config that comes with the project (gpt2-xl, phi-3-mini, llama-2-7b, llama-3-70b,
    llama-3-405b, smollm2-135m) or is a config.json.
    """
    from onejump.models.architecture import load_architecture
    from onejump.planning.rehearsal import HEADING, as_line, rehearse
    from onejump.planning.work import Sizes

    for model in models:
        shards = {"train": 2, "test": 1}
        sizes = Sizes(load_architecture(model), dtype, train, test, shards, min(test, 16), load=load)
        click.echo(f"\n{model}, {dtype}, {train} / {test} sentences\n{HEADING}")
        for row in rehearse(sizes, out / Path(model).stem, levels, threads, longest):
            click.echo(as_line(row))


@cli.command()
@click.option("--configfile", type=FILE, required=True, help="The study's config.")
@click.option("--gpu", default="v100-32gb", envvar="ONEJUMP_MACHINE", show_envvar=True, help="Or h100, two-cores, ...")
@click.option("--measured", type=FILE, default=None, help="machine.json of onejump rehearse; its passes replace ours.")
def plan(configfile, gpu, measured) -> None:
    """Say what a study will take: jobs, FLOPs, bytes, memory and hours of each rule, and where a model is too large."""
    from dataclasses import replace

    from onejump.planning.machines import MACHINES, read_machine
    from onejump.planning.plan import render
    from onejump.study.config import load_config

    if gpu not in MACHINES:
        raise OnejumpError(f"--gpu {gpu}: not known; name one of {', '.join(MACHINES)}")
    machine = MACHINES[gpu] if measured is None else replace(MACHINES[gpu], passes=read_machine(measured).passes)
    click.echo(render(load_config(configfile), machine), nl=False)


@cli.command("inspect")
@click.argument("files", nargs=-1, required=True, type=FILE)
def inspect_files(files) -> None:
    """Say what is in FILES: tensors of an unembedding, shard or jump, columns of a table, values of a selection."""
    from onejump.report.inspection import describe

    for file in files:
        click.echo(describe(file))


@cli.command("compare")
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
def compare_studies(first, second) -> None:
    """Set two studies' results side by side: FIRST and SECOND are their folders, results/<study>."""
    from onejump.report.inspection import compare

    click.echo(compare(first, second))


def _fail(message: str) -> int:
    """Say in one line what is wrong, after the trace where that was asked for; the exit status."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    print(f"onejump: error: {message}", file=sys.stderr)
    return 1


def _first_line(error: Exception) -> str:
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, OSError) and said:
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _stop(*_) -> None:
    """Leave at Slurm's time-out or scancel as at Ctrl-C, and let no further signal disturb the clean-up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> None:
    """Entry point: errors in one line, and a quick start and end, since a study is hundreds of short jobs.

    Importing torch makes so many objects that collecting garbage meanwhile costs half a second, and tearing them all
    down at the end costs more than one.
    """
    gc.set_threshold(100_000, 50, 50)
    signal.signal(signal.SIGTERM, _stop)
    try:
        status = cli.main(standalone_mode=False) or 0
    except OnejumpError as error:
        status = _fail(str(error))
    except OSError as error:  # a full disk, a folder that may not be written
        reason = error.strerror or _first_line(error)
        status = _fail(f"{f'{error.filename}: ' if error.filename else ''}{reason}; make room or fix its permissions")
    except MemoryError:
        status = _fail("not enough memory; give the job more, or use fewer threads")
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt, SystemExit) as stop:
        print("onejump: interrupted", file=sys.stderr)
        status = stop.code if isinstance(stop, SystemExit) else 130
    except Exception as error:
        report = "please report it with the command and the trace that `onejump --debug` shows"
        status = _fail(f"a bug in onejump ({_first_line(error)}); {report}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
