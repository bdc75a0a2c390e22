# What all rules share: the completed config, the layout of files, and digests of the code that stages run.
import itertools
import json
import os
import re
import shlex
import time
from functools import partial
from pathlib import Path

from snakemake.exceptions import WorkflowError

from onejump.files.atomic import OnejumpError, write_text
from onejump.files.code import stage_digest
from onejump.study.config import complete_config
from onejump.study.fits import FITS
from onejump.study.layout import Layout, level_name
from onejump.study.lenses import IMPORTED_LENSES, JACOBIAN_LENSES, KL_LENSES, LENSES
from onejump.study.variants import TARGETS, rows_of, seed_of_fit

AGAIN = config.pop("again", None)
try:
    config.update(complete_config(config))
except OnejumpError as error:
    raise WorkflowError(str(error)) from None

LAYOUT = Layout(config)
REPORT = f"reports/{config['study']}.html"
LOGS = f"{LAYOUT.root}/logs"
BENCHMARKS = f"{LAYOUT.root}/benchmarks"
# With --cache, what studies share comes from a common folder.
CACHING = workflow.enable_cache
CACHE = os.environ.get("SNAKEMAKE_OUTPUT_CACHE")
if CACHING and CACHE is None:
    raise WorkflowError("--cache: SNAKEMAKE_OUTPUT_CACHE is not set; set it to the folder of the cache")


wildcard_constraints:
    model="|".join(map(re.escape, config["models"])),
    seed="|".join(map(str, config["seeds"])),
    variant="|".join(map(re.escape, config["variants"])),
    rows="|".join(map(re.escape, {rows_of(chosen): None for chosen in config["variants"].values()})),
    lens="|".join(LENSES),
    target="|".join(TARGETS),
    split="train|test",
    shard=r"\d\d+",
    sha=r"[0-9a-f]+",


def doubling(**amounts):
    """Memory in megabytes and time in minutes, doubled with each attempt."""
    return {name: lambda wildcards, attempt, first=first: first * 2 ** (attempt - 1) for name, first in amounts.items()}


def patterns(*names):
    """The paths of kinds of files, by name."""
    return {name: LAYOUT.pattern(name) for name in names}


def lens_pattern(name, lens="{lens}", target="{target}"):
    """The path of a lens, or of its evaluation, with these values for its wildcards."""
    return LAYOUT.pattern(name).replace("{lens}", lens).replace("{target}", target)


def model_choice(key):
    """What the config says about a model, as a function of the wildcards."""
    return lambda wildcards: config["models"][wildcards.model][key]


def choice(key):
    """A variant's choice, as a function of the wildcards."""
    return lambda wildcards: config["variants"][wildcards.variant][key]


def choices(*keys):
    """Choices of a variant, by name."""
    return {key: choice(key) for key in keys}


# The training rows of variants by their names in paths; --train-on only where there are two kinds of text.
ROWS = {rows_of(chosen): chosen for chosen in config["variants"].values()}


def rows_options(wildcards):
    """Which training rows a job reads, as the variant or the path says."""
    chosen = config["variants"][wildcards.variant] if "variant" in wildcards.keys() else ROWS[wildcards.rows]
    return f"--positions {chosen['positions']} {text_option(chosen)}".rstrip()


def text_option(chosen):
    """Which text a job reads, where there are two kinds."""
    return f"--train-on {chosen['train_on']}" if LAYOUT.generates else ""


def shards(split):
    """All activation shards of a split, in order."""
    return lambda wildcards: LAYOUT.shards(wildcards.model, wildcards.seed, split)


def of_branch(files):
    """Files of a model, seed and variant by a function of the layout."""
    return lambda wildcards: files(wildcards.model, int(wildcards.seed), wildcards.variant)


def repeat(option, files):
    """An option given once for each file."""
    return " ".join(f"{option} {shlex.quote(str(file))}" for file in files)


def options(option, name):
    """An option for each of a rule's inputs of that name."""
    return lambda wildcards, input: repeat(option, input[name])


def fitting_jobs(most):
    """The jobs that fit a variant's jumps, as (rule, end of their files' names) -> (jumps, models).

    A variant's levels are spread over `most` jobs; one job has one level where there are enough of them.
    """
    found = {("fit_joint_jump", ""): (["joint"], list(config["models"]))}
    for model, facts in config["models"].items():
        names = [level_name(level) for level in range(facts["blocks"])]
        for pack in spread(names, most) if most < len(names) else [["level-{level}"]]:
            numbers = [name.removeprefix("level-") for name in (pack[0], pack[-1])]
            end = ".level-" + "-".join(dict.fromkeys(numbers))
            found.setdefault(("fit_jump", end), (pack, []))[1].append(model)
    return found


def spread(items, jobs):
    """Items in as many packs of about the same size."""
    bounds = [i * len(items) // jobs for i in range(jobs + 1)]
    return [items[first:end] for first, end in itertools.pairwise(bounds)]


def level_options(wildcards, output):
    """The level and the file of each jump that a job fits."""
    levels = [Path(path).stem.removeprefix("level-") for path in output]
    return " ".join(f"--level {level} --out {shlex.quote(path)}" for level, path in zip(levels, output))


def dumping_jobs(jobs):
    """The jobs that dump activations, as (splits, end of names) -> (numbers of shards, models).

    Where a model's blocks are loaded one at a time, `jobs` share the shards of a split, and each reads the weights
    once; of a model held whole there is a job a shard.
    """
    found = {}
    for model, facts in config["models"].items():
        if not SIZES[model].by_blocks:
            found.setdefault(("train|test", "{shard}"), (["{shard}"], []))[1].append(model)
            continue
        for split, number in facts["shards"].items():
            for pack in spread([f"{shard:02d}" for shard in range(number)], min(jobs, number)):
                end = "-".join(dict.fromkeys([pack[0], pack[-1]]))
                found.setdefault((split, end), (pack, []))[1].append(model)
    return found


def shard_options(wildcards, output):
    """The number of each shard that a job dumps."""
    return " ".join(f"--shard {int(Path(path).stem.removeprefix('shard-'))}" for path in output)


def rank_option(wildcards):
    rank = choice("rank")(wildcards)
    return "" if rank is None else f"--rank {rank}"


def figure_files(kinds, name="figure", variant="{variant}", seed="{seed}"):
    """Figures of a model, seed and variant, or of a model: SVG, which Snakemake's own report shows, and PDF."""
    plots = {
        kind: report(
            LAYOUT.pattern(name).replace("{kind}", kind),
            caption=f"../report/{kind}.rst",
            category="2 {model}",
            subcategory=variant,
            labels={"seed": seed, "figure": kind},
        )
        for kind in kinds
    }
    return plots | {f"{kind}_pdf": str(Path(plots[kind]).with_suffix(".pdf")) for kind in kinds}


def figure_options(wildcards, output):
    """Whose figures to plot, and which: those of the rule's output."""
    kinds = [name for name in output.keys() if not name.endswith("_pdf")]
    return " ".join([*(f"--{name} {value}" for name, value in wildcards.items()), repeat("--kind", kinds)])


def variants_where(wanted):
    """A constraint on the wildcard: the variants for which a function of their name is true."""
    return "|".join(map(re.escape, filter(wanted, config["variants"]))) or "(?!)"


def variants_with_figures(kinds):
    """The same: the variants that have these figures."""
    return variants_where(lambda name: LAYOUT.figures(name) == kinds)


# `--config again=MODEL:STEP` does a model's step again, and what follows from it: the time of it is a parameter of the
# step's jobs. It is kept, so that the next run, without the option, finds that nothing has changed.
STEPS = ("activations", "fits", "evaluation")
AGAIN_FILE = LAYOUT.root / "again.json"
TIMES = json.loads(AGAIN_FILE.read_text()) if AGAIN_FILE.exists() else {}

if AGAIN is not None and workflow.is_main_process:
    model, _, step = str(AGAIN).partition(":")
    if model not in config["models"] or step not in STEPS:
        raise WorkflowError(
            f"--config again={AGAIN}: expected MODEL:STEP, where MODEL is one of {', '.join(config['models'])} "
            f"and STEP one of {', '.join(STEPS)}"
        )
    TIMES[AGAIN] = time.strftime("%Y-%m-%d %H:%M:%S")


def again(step):
    """When a model's step was last asked for again, as a function of the wildcards."""
    return lambda wildcards: TIMES.get(f"{wildcards.model}:{step}", "")
