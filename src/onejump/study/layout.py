"""Where each file of a study is: said here only, for stages, workflow, tables and report."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from onejump.study.lenses import LENSES, target_of_lens
from onejump.study.variants import is_nested, joint_of, jumps_of, rows_of, seeds_of

# Below results/<study>. `level` and `shard` have two digits; `jump` is level-07 or joint.
FILES = {
    "config": "config.json",
    "sentences": "corpus/seed-{seed}/sentences.parquet",
    "unembedding": "{model}/unembedding.safetensors",
    "texts": "{model}/seed-{seed}/texts.parquet",
    "positions": "{model}/seed-{seed}/positions.parquet",
    "shard": "{model}/seed-{seed}/activations/{split}/shard-{shard}.safetensors",
    "lens": "{model}/seed-{seed}/lenses/{lens}.{target}.{rows}.safetensors",
    "lens_evaluation": "{model}/seed-{seed}/lenses/{lens}.{target}.{rows}.parquet",
    "references": "{model}/seed-{seed}/references/{rows}.parquet",
    "references_held_out": "{model}/seed-{seed}/references/{rows}.held_out.parquet",
    "norms": "{model}/seed-{seed}/references/{rows}.norms.parquet",
    "jump": "{model}/seed-{seed}/{variant}/jumps/{jump}.safetensors",
    "scores": "{model}/seed-{seed}/{variant}/scores.parquet",
    "cosines": "{model}/seed-{seed}/{variant}/cosines.safetensors",
    "selection": "{model}/seed-{seed}/{variant}/selection.json",
    "oracle": "{model}/seed-{seed}/{variant}/oracle.parquet",
    "evaluation": "{model}/seed-{seed}/{variant}/evaluation.parquet",
    "held_out": "{model}/seed-{seed}/{variant}/held_out.parquet",
    "shortlist": "{model}/seed-{seed}/{variant}/shortlist.parquet",
    "shortlist_held_out": "{model}/seed-{seed}/{variant}/shortlist_held_out.parquet",
    "shortlist_evaluation": "{model}/seed-{seed}/{variant}/shortlist_evaluation.parquet",
    "preview": "{model}/seed-{seed}/{variant}/preview.safetensors",
    "transfer": "{model}/seed-{seed}/{variant}/transfer.parquet",
    "ranks": "{model}/seed-{seed}/{variant}/ranks.parquet",
    "claims": "{model}/seed-{seed}/{variant}/claims.parquet",
    "table": "summary/{table}.parquet",
    "csv": "summary/{table}.csv",  # the same for people
    "figure": "figures/{model}.seed-{seed}.{variant}.{kind}.svg",
    "model_figure": "figures/{model}.{kind}.svg",
    "timings": "timings.parquet",
    "hardware": "hardware.parquet",
}
# Of these, variants with the joint jump alone have none: there is no jump to choose.
OF_ALL_JUMPS = ("scores", "cosines", "selection", "oracle", "transfer", "claims", "lens", "lens_evaluation")
# A joint jump alone with a gate for each level has these besides.
OF_SHORTLIST = ("shortlist", "shortlist_held_out", "shortlist_evaluation", "preview")
# Summary tables, and those of a study in which models write text; figures of a branch, of one whose fits are nested in
# rank, of one with the joint jump alone; and of a model.
TABLES = (
    *("models", "levels", "methods", "by_position", "single_jumps", "transfer", "jumps", "curves", "scores", "claims"),
    *("oracle", "shared_jumps", "dynamic_exit", "few_checks", "switches", "gates", "shortlist", "one_jump", "ranks"),
    *("verdicts", "spread", "methods_spread", "one_jump_spread", "chosen", "norms", "lenses"),
)
GENERATED_TABLES = (*TABLES, "by_origin")
FIGURES = ("scores", "single_jumps", "methods", "transfer", "fits", "dynamic_exit")
NESTED_FIGURES = (*FIGURES, "ranks")
JOINT_FIGURES = ("joint_jump", "dynamic_exit")
MODEL_FIGURES = ("overview", "check_cost", "sensitivity")


def level_name(level: int) -> str:
    """The name of a level's jump, and of its file: `level-07`."""
    return f"level-{level:02d}"


class Layout:
    """The files of one study, whose config is completed with defaults; `root` is its folder, results/<study>."""

    def __init__(self, config: Mapping, results: str | Path = "results") -> None:
        """Lay out a study below a folder of results."""
        self.config = config
        self.root = Path(results) / config["study"]

    def pattern(self, name: str) -> str:
        """The path of a kind of file, with its wildcards in braces."""
        return f"{self.root}/{FILES[name]}"

    def path(self, name: str, **values: object) -> Path:
        """The path of one file, by a key of FILES and the values of its wildcards; shard numbers are padded."""
        if isinstance(values.get("shard"), int):
            values["shard"] = f"{values['shard']:02d}"
        return Path(self.pattern(name).format(**values))

    @property
    def generates(self) -> bool:
        """Whether models continue the sentences, so that there are two kinds of text."""
        return "generated" in self.config["corpus"]

    @property
    def texts(self) -> str:
        """The kind of file that says what the sentences are: of each model, where models write some."""
        return "texts" if self.generates else "sentences"

    @property
    def tables(self) -> tuple[str, ...]:
        """The summary tables of the study."""
        return GENERATED_TABLES if self.generates else TABLES

    def branches(self) -> Iterator[dict]:
        """Model, seed and variant of each branch of the study."""
        for model, seed, variant in itertools.product(*(self.config[key] for key in ("models", "seeds", "variants"))):
            if seed in seeds_of(variant, self.config):
                yield {"model": model, "seed": seed, "variant": variant}

    def shards(self, model: str, seed: int | str, split: str) -> list[Path]:
        """All activation shards of a split, in order."""
        count = self.config["models"][model]["shards"][split]
        return [self.path("shard", model=model, seed=seed, split=split, shard=shard) for shard in range(count)]

    def jumps(self, model: str, seed: int | str, variant: str) -> list[Path]:
        """A variant's jumps 0..K-1, which variants with the same fits share; none if it has the joint jump alone."""
        if not self.has_all_jumps(variant):
            return []
        owner = jumps_of(variant, self.config["variants"])
        levels = range(self.config["models"][model]["blocks"])
        return [self.path("jump", model=model, seed=seed, variant=owner, jump=level_name(level)) for level in levels]

    def joint(self, model: str, seed: int | str, variant: str) -> Path:
        """A variant's joint jump, which variants with the same joint fit share."""
        owner = joint_of(variant, self.config["variants"])
        return self.path("jump", model=model, seed=seed, variant=owner, jump="joint")

    def cosines(self, model: str, seed: int | str, variant: str) -> Path:
        """The cosines of a variant's jumps, which variants with the same fits share."""
        return self.path("cosines", model=model, seed=seed, variant=jumps_of(variant, self.config["variants"]))

    def selection(self, model: str, seed: int | str, variant: str) -> list[Path]:
        """A variant's selection of a jump; none if it has the joint jump alone."""
        return self._of_branch("selection", {"model": model, "seed": seed, "variant": variant})

    def of_rows(self, name: str, model: str, seed: int | str, variant: str) -> Path:
        """A file that variants with the same training rows share: `references`, `references_held_out`, `norms`."""
        return self.path(name, model=model, seed=seed, rows=rows_of(self.config["variants"][variant]))

    def lenses(self, name: str, model: str, seed: int | str, variant: str) -> dict[str, Path]:
        """The files of a variant's lenses, `lens` or `lens_evaluation`, which variants with the same rows share.

        None if it has the joint jump alone. Lenses that are fitted to either target are shared if that is the same too.
        An imported lens is there for the models that have one.
        """
        choices, found = self.config["variants"][variant], {}
        if not self.has_all_jumps(variant):
            return found
        for lens, chosen in self.config["evaluation"]["lenses"].items():
            of_model = not LENSES[lens].imported or model in chosen["sources"]
            if of_model and int(seed) in (chosen["seeds"] or self.config["seeds"]):
                values = {"lens": lens, "target": target_of_lens(lens, choices["target"]), "rows": rows_of(choices)}
                found[lens] = self.path(name, model=model, seed=seed, **values)
        return found

    def has_all_jumps(self, variant: str) -> bool:
        """Whether a variant has a jump for each level, or the joint jump alone."""
        return self.config["variants"][variant]["jumps"] == "all"

    def has_shortlist(self, variant: str) -> bool:
        """Whether a variant has a cheap exit check by a shortlist: with the joint jump alone, gated at each level."""
        return not self.has_all_jumps(variant) and self.config["variants"][variant]["gate"] == "level"

    def figures(self, variant: str) -> tuple[str, ...]:
        """The kinds of figures that a branch of the variant has."""
        if not self.has_all_jumps(variant):
            return JOINT_FIGURES
        return NESTED_FIGURES if is_nested(self.config["variants"][variant]) else FIGURES

    def every(self, name: str, model: str | None = None) -> list[Path]:
        """All files of a kind, of one model or of all models: once each, in the order of the config."""
        found: dict[Path, None] = {}
        for branch in self.branches():
            if model in (None, branch["model"]):
                found |= dict.fromkeys(self._of_branch(name, branch))
        return list(found)

    def _of_branch(self, name: str, branch: dict) -> list[Path]:
        model, seed, variant = branch.values()
        if name in OF_ALL_JUMPS and not self.has_all_jumps(variant):
            return []
        if name in OF_SHORTLIST and not self.has_shortlist(variant):
            return []
        match name:
            case "shard":
                return [*self.shards(model, seed, "train"), *self.shards(model, seed, "test")]
            case "jump":
                return [*self.jumps(**branch), self.joint(**branch)]
            case "lens" | "lens_evaluation":
                return list(self.lenses(name, **branch).values())
            case "references" | "references_held_out" | "norms":
                return [self.of_rows(name, **branch)]
            case "ranks":
                return [self.path(name, **branch)] if "ranks" in self.figures(variant) else []
            case "figure":
                return [self.path(name, **branch, kind=kind) for kind in self.figures(variant)]
            case "model_figure":
                return [self.path(name, model=model, kind=kind) for kind in MODEL_FIGURES]
        return [self.path(name, **branch)]
