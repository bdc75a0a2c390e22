"""The report of a study: one self-contained HTML page, made from its summary tables, figures and config.

Every number on it comes from a table or the config and is formatted here; the templates hold words only.
"""

import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import yaml
from markupsafe import Markup

from onejump.analysis.columns import METRIC_COLUMNS, TEMPERATURE
from onejump.analysis.dynamic_exit import AGREEMENT
from onejump.exits.columns import FLOOR_METHODS, SHORTLIST_AGREEMENT
from onejump.files.atomic import OnejumpError
from onejump.jumps.settings import GAP_CONVERGED, RIDGES
from onejump.report.branch import KEY_METHODS, branch_facts, joint_facts
from onejump.report.inline_svg import InlineFigures
from onejump.report.rendering import render, verbatim
from onejump.report.style import METHOD_STYLES, VERDICT_STYLES
from onejump.report.tables import BranchTables, Comparison, read_summary
from onejump.study.fits import FITS
from onejump.study.layout import MODEL_FIGURES, Layout
from onejump.study.lenses import LENSES
from onejump.study.variants import VARIANT_DEFAULTS, refit_of, rows_of, seeds_of

# Of the table that sets single jumps for all levels beside what needs none.
SERVING_ALL_LEVELS = ("token_table", "identity", "ojfa", "joint", "joint_shortlist")
# Of the table that sets text of the corpus beside the model's own.
ON_BOTH_TEXTS = ("identity", "joint", "n_njtc", *LENSES)
PACKAGES = ("torch", "transformers", "datasets", "snakemake", "numpy", "pandas", "pyarrow", "onejump")

CLAIMS = {
    "C1": "over 30 times fewer parameters",
    "C2": "OJFA beats arbitrary jumps",
    "C3": "OJFA beats the joint jump",
    "C4": "OJFA beats identity early, identity wins late",
    "C5": "OJFA largely matches N-NJTC",
    "C6": "OJFA is stable over levels",
}


GAINS = {
    "G1": "better than OJFA",
    "G2": "better than N-NJTC by squared error",
    "G3": "identity is better at no level",
    "G4": "no null explains its gain over identity",
    "G5": "keeps nine tenths of N-NJTC of its own kind",
    "G6": "share of JTC and of the tuned lens",
}


def render_report(
    layout: Layout, versions: Mapping[str, str], timings: pd.DataFrame, hardware: pd.DataFrame, links: Mapping[str, str]
) -> str:
    """The page of a study, as HTML.

    Args:
        layout: where the study's summary tables and figures are.
        versions: package -> version.
        timings: rule, jobs, seconds_total, seconds_max, max_rss_mb of the study's jobs.
        hardware: device, jobs.
        links: addresses, as seen from the page, of the folders `summary` and `figures`.

    Raises:
        OnejumpError: a table or figure is missing, or lacks what the config promises.
    """
    config, figures = layout.config, InlineFigures()

    def inline(name: str, **values: object) -> Markup:
        return figures.inline(layout.path(name, **values))

    models = [_model(layout, inline, slug, seed) for slug in config["models"] for seed in config["seeds"]]
    everything = [branch for model in models for branch in model["branches"]]
    branches = [branch for branch in everything if "jump" in branch]
    verdicts = _verdicts(layout)
    fits = {choices["fit"] for choices in config["variants"].values()}
    return render(
        "report.html.j2",
        study=config["study"],
        models=models,
        branches=branches,
        shared_jumps=_shared_jumps(everything),
        gains=_gains(layout),
        on_texts=_on_texts(layout),
        gain_claims=GAINS,
        unconverged=_unconverged(layout),
        gap_converged=GAP_CONVERGED,
        comparisons={
            slug: {kind: inline("model_figure", model=slug, kind=kind) for kind in MODEL_FIGURES}
            for slug in config["models"]
        },
        flips=_flips(layout),
        verdict_marks={name: look.mark for name, look in VERDICT_STYLES.items()},
        published=_published(branches, config.get("published", {})),
        several_models=len(config["models"]) > 1,
        several_seeds=len(config["seeds"]) > 1,
        claims=CLAIMS,
        verdicts=verdicts,
        key_methods=[name for name in KEY_METHODS if all(name in branch["methods"] for branch in branches)],
        floor=FLOOR_METHODS,
        dynamic_agreement=AGREEMENT,
        shortlist_agreement=SHORTLIST_AGREEMENT,
        ridges=[f"{ridge:g}" for ridge in RIDGES],
        method_styles=METHOD_STYLES,
        temperature=TEMPERATURE,
        config=config,
        config_yaml=yaml.dump(config, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=100),
        corpus_source=_flat(config["corpus"]["source"]),
        defaults=VARIANT_DEFAULTS,
        variant_seeds={name: seeds_of(name, config) for name in config["variants"]},
        versions=versions,
        timings=timings.to_dict("records"),
        hardware=hardware.to_dict("records"),
        decided_by_validation=[fit.chosen for name, fit in FITS.items() if name in fits],
        # The page links to files beside it, but can be read without them.
        links=links,
        glyphs=figures.glyphs(),
        style=verbatim("style.css"),
        script=verbatim("script.js"),
    )


def package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers may depend on."""
    return {"Python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES}


def _summary(layout: Layout) -> Path:
    return layout.path("table", table="").parent


def _model(layout: Layout, inline: Callable[..., Markup], slug: str, seed: int) -> dict:
    """One model at one seed, with a branch for each variant."""
    columns = ["name", "revision", "dtype", "n_blocks", "hidden_size", "vocabulary", "parameters"]
    columns += ["n_train", "n_test", "bos", "transfer_sentences"]
    table = read_summary(_summary(layout), "models", "model", "seed", *columns)
    found = table[(table["model"] == slug) & (table["seed"] == seed)]
    if len(found) != 1:
        which = f"{len(found)} rows for model {slug}, seed {seed}"
        raise OnejumpError(f"{_summary(layout) / 'models.csv'}: has {which}, expected one; rerun summarise")
    model = found.iloc[0].to_dict()
    keys = [key for key in layout.branches() if (key["model"], key["seed"]) == (slug, seed)]
    return model | {"branches": [_branch(layout, inline, key, model) for key in keys]}


def _branch(layout: Layout, inline: Callable[..., Markup], key: dict, model: dict) -> dict:
    """One model, seed and variant, with its figures."""
    facts = branch_facts if layout.has_all_jumps(key["variant"]) else joint_facts
    return facts(BranchTables(_summary(layout), **key)) | {
        "key": key,
        "about": model,
        "choices": layout.config["variants"][key["variant"]],
        "figures": {kind: inline("figure", **key, kind=kind) for kind in layout.figures(key["variant"])},
    }


def _shared_jumps(branches: list[dict]) -> list[dict]:
    """One row for each way to serve all levels by one jump, or by none; what variants share once for each model.

    Variants share what needs no jump if they share the rows that it is filled from and evaluated on.
    """
    rows, seen = [], set()
    several = len({rows_of(branch["choices"]) for branch in branches}) > 1
    for branch in branches:
        at = {row["method"]: row["groups"][-1] for row in branch["by_position"]["rows"]}
        for method in SERVING_ALL_LEVELS:
            own = method in ("ojfa", "joint", "joint_shortlist")
            group = rows_of(branch["choices"])
            place = (branch["model"], branch["seed"], branch["variant"] if own else group, method)
            if method in branch["methods"] and place not in seen:
                seen.add(place)
                shown = branch["variant"] if own else f"all on rows {group}" if several else "–"
                row = {"method": method, "of": shown, "branch": branch, "later": at[method]}
                rows.append(row | {"shown": "one_jump" if method == "joint" and "jump" not in branch else method})
    return rows


def _published(branches: list[dict], published: Mapping[str, Mapping]) -> list[dict]:
    """What was published about these models beside what was measured, one row per branch."""
    rows = []
    for branch in (branch for branch in branches if branch["model"] in published):
        one, every = (branch["methods"][method]["parameters"] for method in ("ojfa", "n_njtc"))
        measured = {"ojfa": branch["jump"], "jump_parameters": one, "all_parameters": every}
        rows.append({"branch": branch, "measured": measured, "published": published[branch["model"]]})
    return rows


def _verdicts(layout: Layout) -> list[dict]:
    """The verdicts of each model and variant over all seeds, by claim, on all sentences.

    `later` has those that are others without the sentences cut at position 0.
    """
    table = read_summary(_summary(layout), "verdicts", "model", "variant", "positions", "claim", "verdict")
    whole = table[table["positions"] == "all"]
    both = whole.merge(table[table["positions"] == "1+"], on=["model", "variant", "claim"], suffixes=("", "_later"))
    moved = both[both["verdict"] != both["verdict_later"]].groupby(["model", "variant"])
    later = {branch: part[["claim", "verdict_later"]].to_numpy().tolist() for branch, part in moved}
    wide = whole.pivot(index=["model", "variant"], columns="claim", values="verdict")
    every = layout.config["variants"]
    variants = [name for name in every if layout.has_all_jumps(name) and refit_of(name, every) == name]
    wanted = [(model, variant) for model in layout.config["models"] for variant in variants]
    if missing := [*set(wanted) - set(wide.index), *set(CLAIMS) - set(wide.columns)]:
        raise OnejumpError(f"{_summary(layout) / 'verdicts.csv'}: has no verdict for {missing[0]}; rerun summarise")
    return [
        {"model": model, "variant": variant, **wide.loc[(model, variant)]} | {"later": later.get((model, variant), [])}
        for model, variant in wanted
    ]


def _gains(layout: Layout) -> list[dict]:
    """The statements about one joint jump against others that decide a claim, with `later`, those at 1+.

    With several seeds, estimates are means over them, with t intervals where there are three or more. `largest` is the
    larger one of both estimates.
    """
    keys = ["model", "variant", "against", "claim", "statistic", "metric"]
    if all(map(layout.has_all_jumps, layout.config["variants"])):
        return []
    name, estimate = ("one_jump_spread", "mean") if len(layout.config["seeds"]) > 1 else ("one_jump", "estimate")
    numbers = [estimate, "low", "high", "rule", "decides", "verdict"]
    table = read_summary(_summary(layout), name, *keys, "positions", *numbers).rename(columns={estimate: "estimate"})
    table = table[table["decides"] | (table["claim"] == "G6")].astype(object)
    table = table.where(table.notna(), None)  # G6 has no rule and no verdict
    later = {tuple(row[key] for key in keys): row for row in table[table["positions"] == "1+"].to_dict("records")}
    rows = []
    for row in table[table["positions"] == "all"].to_dict("records"):
        row["later"] = later.get(tuple(row[key] for key in keys))
        known = [one["estimate"] for one in (row, row["later"]) if one and one["estimate"] is not None]
        rows.append(row | {"largest": max(known, default=None)})
    return rows


def _on_texts(layout: Layout) -> list[dict]:
    """A row for each method and variant: `at` has its means over exit levels at positions 1+, by origin of the text.

    No rows for a study with one kind of text. Identity, which is trained on nothing, has one for each model and seed.
    """
    if not layout.generates:
        return []
    keys, rows, seen = ["model", "seed", "variant", "method"], [], set()
    table = read_summary(_summary(layout), "by_origin", *keys, "origin", "position", "level", *METRIC_COLUMNS)
    table = table[(table["position"] == "1+") & table["level"].isna() & table["method"].isin(ON_BOTH_TEXTS)]
    for (model, seed, variant, method), part in table.groupby(keys, sort=False):
        if method != "identity" or (model, seed) not in seen:
            row = {"model": model, "seed": seed, "variant": variant, "method": method}
            rows.append(row | {"at": part.set_index("origin")[[*METRIC_COLUMNS]].to_dict("index")})
        seen.add((model, seed))
    return rows


def _unconverged(layout: Layout) -> list[dict]:
    """For each model and variant with fits that have not converged: how many of how many, and their median gap.

    The gap is null for fits that do not minimise it.
    """
    names = ("model", "variant", "fit", "gap", "converged")
    rows = []
    for (model, variant), part in read_summary(_summary(layout), "jumps", *names).groupby(
        ["model", "variant"], sort=False
    ):
        failed = part[~part["converged"].astype("boolean").fillna(True)]  # closed forms have null
        gap = failed["gap"].median() if FITS[part["fit"].iloc[0]].squared_error else None
        if len(failed):
            rows.append({"model": model, "variant": variant, "count": len(failed), "of": len(part), "gap": gap})
    return rows


def _flips(layout: Layout) -> dict[str, list[str]]:
    """For each model, the claims whose verdict is not the same in all its variants, as figure `sensitivity` says."""
    found = {}
    for model in layout.config["models"]:
        counts = Comparison.of(_summary(layout), model).verdicts().nunique()
        found[model] = [claim for claim in CLAIMS if counts[claim] > 1]
    return found


def _flat(value: object, name: str = "") -> list[tuple[str, object]]:
    """A nested mapping as (dotted name, value) pairs."""
    if not isinstance(value, dict):
        return [(name, value)]
    return [pair for key, inner in value.items() for pair in _flat(inner, f"{name}.{key}" if name else str(key))]


class _PlainDumper(yaml.SafeDumper):
    """YAML without anchors, as a person would write it."""

    def ignore_aliases(self, data: object) -> bool:
        return True
