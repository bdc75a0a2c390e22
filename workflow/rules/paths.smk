# Files that rules take, by model, seed and variant. Variants that fit alike share their jumps.
import itertools

from onejump.study.fits import FITS
from onejump.study.variants import joint_of, jumps_of, seeds_of

FIGURE = f"{RESULTS}/figures/{{model}}.seed-{{seed}}.{{variant}}"


def shard_paths(split):
    """All activation shards of a split, in order."""

    def paths(wildcards):
        number = config["models"][wildcards.model]["shards"][split]
        return [
            f"{BRANCH}/activations/{split}/shard-{i:02d}.safetensors".format(
                **wildcards
            )
            for i in range(number)
        ]

    return paths


def shared(owner, pattern):
    """A file of the variant that this one shares it with, by `jumps_of` or `joint_of`."""

    def path(wildcards):
        variant = owner(wildcards.variant, config["variants"])
        return f"{VARIANT}/{pattern}".format(**{**wildcards, "variant": variant})

    return path


def jump_paths(wildcards):
    """A variant's jump of each exit level 0..K-1, in order."""
    variant = jumps_of(wildcards.variant, config["variants"])
    levels = [f"{k:02d}" for k in range(blocks(wildcards))]
    return expand(
        f"{VARIANT}/jumps/level-{{level}}.safetensors",
        **{**wildcards, "variant": variant, "level": levels},
    )


def fitting_jobs(most):
    """Kind and end of a job's name -> the names of the files that it writes, and the models that it is for.

    A variant's levels are spread over `most` jobs; one job has one level where there are enough of them.
    """
    found = {("fit_joint_jump", ""): (["joint"], list(config["models"]))}
    for model, facts in config["models"].items():
        levels = [f"{k:02d}" for k in range(facts["blocks"])]
        bounds = [i * len(levels) // most for i in range(most + 1)]
        packs = [levels[first:end] for first, end in itertools.pairwise(bounds)]
        for pack in packs if most < len(levels) else [["{level}"]]:
            files = [f"level-{level}" for level in pack]
            end = "-".join(dict.fromkeys((pack[0], pack[-1])))
            found.setdefault(("fit_jump", f".{end}"), (files, []))[1].append(model)
    return found


def branches(pattern, fits=FITS, **lists):
    """A path for each model, seed and variant that is fitted so; each model has its own levels. `{jumps}` and `{joint}`
    are the variants that this one shares its jumps and its joint jump with."""
    paths = []
    for model, seed, variant in itertools.product(
        config["models"], config["seeds"], config["variants"]
    ):
        choices = config["variants"][variant]
        if choices["fit"] not in fits or seed not in seeds_of(variant, config):
            continue
        levels = [f"{k:02d}" for k in range(config["models"][model]["blocks"])]
        values = {
            "model": model,
            "seed": seed,
            "variant": variant,
            "jumps": jumps_of(variant, config["variants"]),
            "joint": joint_of(variant, config["variants"]),
            "level": levels,
            **lists,
        }
        paths += expand(
            pattern, target=choices["target"], positions=choices["positions"], **values
        )
    return sorted(set(paths))


def variants_with(exact):
    """A constraint on the wildcard: the variants whose fits are exact, or the others."""
    names = [
        name
        for name, choices in config["variants"].items()
        if (choices["fit"] == "exact") == exact
    ]
    return "|".join(map(re.escape, names)) or "(?!)"


def figure_files(kinds):
    """The figures of a model, seed and variant: SVG, which the report of Snakemake shows, and PDF."""
    drawings = {
        kind: report(
            f"{FIGURE}.{kind}.svg",
            caption=f"../report/{kind}.rst",
            category="2 {model}",
            subcategory="{variant}",
            labels={"seed": "{seed}", "figure": kind},
        )
        for kind in kinds
    }
    return drawings | {f"{kind}_pdf": f"{FIGURE}.{kind}.pdf" for kind in kinds}
