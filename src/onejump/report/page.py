"""The report of a study: one self-contained HTML file, rendered from summary tables, figures and configuration.

Every number in it comes from a table or the configuration and is formatted here; the template holds words only.
"""

import os
from pathlib import Path

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from onejump.files.atomic import OnejumpError, write_text
from onejump.jumps.settings import RIDGES
from onejump.report.figures import EXACT_FIGURES, FIGURES, SOFTMAX_TEMPERATURE
from onejump.report.formats import FORMATS
from onejump.report.inline_svg import Drawings
from onejump.report.style import METHOD_STYLES, VERDICT_STYLES
from onejump.report.tables import Rows, read_summary
from onejump.study.variants import VARIANT_DEFAULTS, seeds_of

CLAIMS = {
    "C1": "30 times fewer parameters",
    "C2": "OJFA beats arbitrary jumps",
    "C3": "OJFA beats the joint jump",
    "C4": "OJFA beats identity early, identity wins late",
    "C5": "OJFA largely matches N-NJTC",
    "C6": "OJFA is stable over levels",
}


METHOD_ORDER = ["identity", "arbitrary", "ojfa", "joint", "n_njtc", "jtc"]


# The single jumps of equal size that were measured on the same sentences; the arbitrary jumps saw only some of them.
RIVALS = ["ojfa", "joint"]


# What the validation slice decides, by fit.
CHOICES = {
    "adam": "the best epoch of Adam fits",
    "exact": "the ridge of exact fits",
    "exact_logits": "the ridge of fits weighed by the output head",
    "kl": "the best step of KL fits",
}


DYNAMIC_AGREEMENT = 0.9  # at which dynamic exits are compared in a table


SHARED_COLUMNS = ("mse", "explained", "held_out_precision", "precision", "surprisal")


_INTERVAL = [f"{metric}{end}" for metric in ("precision", "surprisal") for end in ("", "_low", "_high")]


def render(
    study: str,
    summary: Path,
    figures: Path,
    config: dict,
    versions: dict[str, str],
    timings: pd.DataFrame,
    hardware: pd.DataFrame,
    path: Path,
) -> None:
    """Write a study's report.

    Args:
        study: the study's name.
        summary: the folder with its summary tables.
        figures: the folder with its figures, `<model>.seed-<s>.<variant>.<kind>.svg` and `<model>.<kind>.svg`.
        config: its validated configuration.
        versions: package -> version.
        timings: rule, jobs, seconds_total, seconds_max, max_rss_mb.
        hardware: device, jobs.
        path: the HTML file.

    Raises:
        OnejumpError: a table or figure is missing, or lacks what the configuration promises.
    """
    summary, figures = Path(summary), Path(figures)
    drawing = Drawings(figures)
    models = [
        _model(summary, drawing, slug, seed, [name for name in config["variants"] if seed in seeds_of(name, config)])
        for slug in config["models"]
        for seed in config["seeds"]
    ]
    verdicts = _verdicts(summary, config)
    fits = [(choices or {}).get("fit", VARIANT_DEFAULTS["fit"]) for choices in config["variants"].values()]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            study=study,
            models=models,
            branches=[branch for model in models for branch in model["branches"]],
            first_screen=[
                (model["branches"][0], drawing.inline(model["branches"][0]["id"], "methods"))
                for model in models
                if model["branches"]
            ],
            sensitivities={slug: drawing.inline(slug, "sensitivity") for slug in config["models"]},
            flips=_flips(verdicts),
            verdict_marks={name: look.mark for name, look in VERDICT_STYLES.items()},
            reference=_reference(models, config.get("reference", {})),
            several_seeds=len(config["seeds"]) > 1,
            claims=CLAIMS,
            verdicts=verdicts,
            methods=METHOD_ORDER,
            dynamic_agreement=DYNAMIC_AGREEMENT,
            ridges=[f"{ridge:g}" for ridge in RIDGES],
            method_styles=METHOD_STYLES,
            temperature=SOFTMAX_TEMPERATURE,
            config=config,
            config_yaml=yaml.dump(config, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=100),
            corpus_source=_flat(config["corpus"]["source"]),
            choices=list(VARIANT_DEFAULTS),
            defaults=VARIANT_DEFAULTS,
            variants={name: VARIANT_DEFAULTS | (given or {}) for name, given in config["variants"].items()},
            variant_seeds={name: seeds_of(name, config) for name in config["variants"]},
            versions=versions,
            timings=timings.to_dict("records"),
            hardware=hardware.to_dict("records"),
            fit_choices=[words for fit, words in CHOICES.items() if fit in fits],
            # The page links to files beside it; it needs none of them to be read.
            folders={"summary": _relative(summary, path), "figures": _relative(figures, path)},
            glyphs=drawing.glyphs(),
        )
    )
    write_text(path, page)


def _relative(folder: Path, page: Path) -> str:
    return Path(os.path.relpath(folder, Path(page).parent)).as_posix()


def _model(summary: Path, drawings: Drawings, slug: str, seed: int, variants: list[str]) -> dict:
    """One model at one seed, with a branch for each variant."""
    columns = ["name", "revision", "dtype", "n_blocks", "hidden_size", "vocabulary", "parameters"]
    columns += ["n_train", "n_test", "bos", "transfer_sentences"]
    table = read_summary(summary, "models", "model", "seed", *columns)
    found = table[(table["model"] == slug) & (table["seed"] == seed)]
    if len(found) != 1:
        raise OnejumpError(
            f"{summary / 'models.csv'}: has {len(found)} rows for model {slug}, seed {seed}, not one; "
            "rerun the summary stage"
        )
    model = found.iloc[0].to_dict()
    return model | {"branches": [_branch(Rows(summary, slug, seed, variant), model, drawings) for variant in variants]}


def _branch(rows: Rows, model: dict, drawings: Drawings) -> dict:
    """One model, seed and variant: what its section of the report shows."""
    scores, chosen = rows.selected()
    branch = {
        "id": f"{rows.model}.seed-{rows.seed}.{rows.variant}",
        "model": rows.model,
        "seed": rows.seed,
        "variant": rows.variant,
        "about": model,
        "jump": chosen,
        "selected": scores.loc[chosen].to_dict(),
        "runner_up": _runner_up(scores, chosen),
        "rank_of_ojfa": _rank_of(rows, chosen),
        "methods": _methods(rows),
        "claims": _claims(rows),
        "fits": _fits(rows),
        "levels": _levels(rows),
        "dynamic": _dynamic(rows),
        "shared": rows.table("shared_jumps", "method", *SHARED_COLUMNS).to_dict("records"),
    }
    branch["crossing"] = _crossing(rows)
    branch["grid"] = _grid(rows)
    kinds = FIGURES | (EXACT_FIGURES if branch["fits"]["fit"] == "exact" else {})
    branch["figures"] = {kind: drawings.inline(branch["id"], kind) for kind in kinds}
    return branch


def _reference(models: list[dict], published: dict[str, dict]) -> list[dict]:
    """What was published about these models beside what was measured, a row for each of the models' branches."""
    rows = []
    for model in models:
        for branch in model["branches"] if model["model"] in published else []:
            methods = branch["methods"]
            measured = {
                "ojfa": branch["jump"],
                "jump_parameters": methods["ojfa"]["parameters"],
                "all_parameters": methods["n_njtc"]["parameters"],
            }
            rows.append({"branch": branch, "measured": measured, "published": published[model["model"]]})
    return rows


def _runner_up(scores: pd.DataFrame, chosen: int) -> dict | None:
    """The jump with the second largest D_m, if there is one."""
    others = scores.drop(index=chosen)
    if others.empty:
        return None
    jump = int(others["score"].idxmax())
    return {"jump": jump, **others.loc[jump].to_dict()}


def _rank_of(rows: Rows, chosen: int) -> dict:
    """OJFA's place among all single jumps by mean precision over the exit levels, and who is first."""
    table = rows.table("transfer", "jump", "level", "precision").astype({"jump": int})
    means = table.groupby("jump")["precision"].mean()
    if chosen not in means.index:
        raise OnejumpError(f"{rows.summary / 'transfer.csv'}: has no jump {chosen}, the selected one; rerun its stage")
    return {
        "place": int((means > means[chosen]).sum()) + 1,
        "count": len(means),
        "best": int(means.idxmax()),
        "best_precision": means.max(),
        "precision": means[chosen],
    }


def _grid(rows: Rows) -> list[list[float]]:
    """Precision of each jump (row) at each exit level (column), as written."""
    table = rows.table("transfer", "jump", "level", "precision").astype({"jump": int})
    grid = table.pivot(index="jump", columns="level", values="precision").sort_index().sort_index(axis=1)
    return grid.round(3).to_numpy().tolist()


def _methods(rows: Rows) -> dict[str, dict]:
    """Each method's means over the exit levels, in the order of the report."""
    columns = ["parameters", *_INTERVAL, "precision_at_5", "worst_precision", "worst_level"]
    table = rows.table("methods", "method", *columns).set_index("method")
    missing = [method for method in METHOD_ORDER if method not in table.index]
    if missing:
        raise OnejumpError(
            f"{rows.summary / 'methods.csv'}: has no method {', '.join(missing)} for model {rows.model}, "
            f"seed {rows.seed}, variant {rows.variant}; rerun the summary stage"
        )
    # Bold marks what a reader sees to be the largest, so methods that are equal as written share it.
    written = table["precision"].map(FORMATS["share"])
    best = written[table.loc[RIVALS, "precision"].idxmax()]
    return {
        method: {
            **table.loc[method].to_dict(),
            "ratio": table.loc[method, "parameters"] / table.loc["ojfa", "parameters"],
            "best": method in RIVALS and written[method] == best,
        }
        for method in METHOD_ORDER
    }


def _claims(rows: Rows) -> list[dict]:
    """The statements that verdicts rest on."""
    columns = ["claim", "statistic", "metric", "estimate", "low", "high", "rule", "verdict"]
    table = rows.table("claims", *columns)
    return table[table["rule"].notna()].to_dict("records")


def _verdicts(summary: Path, config: dict) -> list[dict]:
    """Each model's and variant's verdicts over all seeds, by claim."""
    table = read_summary(summary, "verdicts", "model", "variant", "claim", "verdict")
    wide = table.pivot(index=["model", "variant"], columns="claim", values="verdict")
    wanted = [(model, variant) for model in config["models"] for variant in config["variants"]]
    if missing := [*set(wanted) - set(wide.index), *set(CLAIMS) - set(wide.columns)]:
        raise OnejumpError(f"{summary / 'verdicts.csv'}: has no verdict for {missing[0]}; rerun the summary stage")
    return [{"model": model, "variant": variant, **wide.loc[(model, variant)]} for model, variant in wanted]


def _flips(verdicts: list[dict]) -> dict[str, list[str]]:
    """For each model, the claims whose verdict is not the same in all its variants."""
    found: dict[str, list[str]] = {}
    for row in verdicts:
        first = next(other for other in verdicts if other["model"] == row["model"])
        flipped = found.setdefault(row["model"], [])
        flipped += [claim for claim in CLAIMS if row[claim] != first[claim] and claim not in flipped]
    return {model: sorted(claims) for model, claims in found.items()}


def _dynamic(rows: Rows) -> list[dict]:
    """What each method's dynamic exit saves where it still agrees with the full model nine times in ten."""
    columns = ("blocks", "agreement", "checks", "plain_cost", "fused_cost")
    table, found = rows.table("dynamic_exit", "method", "threshold", *columns), []
    for method, part in table.groupby("method", sort=False):
        enough = part[part["agreement"] >= DYNAMIC_AGREEMENT]
        best = enough.loc[enough["blocks"].idxmin()]
        found.append({"method": method, **best[["threshold", *columns]].to_dict()})
    return found


def _crossing(rows: Rows) -> int | None:
    """The level from which on identity has at least OJFA's precision, if it ends so."""
    table = rows.table("levels", "method", "level", "precision")
    wide = table.pivot(index="level", columns="method", values="precision").sort_index()
    behind = wide.index[wide["identity"] < wide["ojfa"]]
    first = 0 if behind.empty else int(behind.max()) + 1
    return first if first in wide.index else None


def _fits(rows: Rows) -> dict:
    """The fits of the levels' jumps in a few numbers, beside the joint jump's."""
    columns = [
        "fit",
        "target",
        "rank",
        "parameters",
        "n_rows",
        "train_mse",
        "validation_mse",
        "gap",
        "ridge",
        "best_epoch",
    ]
    table = rows.table("jumps", "jump", *columns)
    single, joint = table[table["jump"] != "joint"], table[table["jump"] == "joint"]
    if single.empty or len(joint) != 1:
        raise OnejumpError(
            f"{rows.summary / 'jumps.csv'}: model {rows.model}, seed {rows.seed}, variant {rows.variant} has "
            f"{len(single)} single and {len(joint)} joint jumps, not some and one; rerun the summary stage"
        )
    worst = single.loc[single["gap"].idxmax()]
    return {
        "count": len(single),
        **{name: single[name].iloc[0] for name in ("fit", "target", "rank", "parameters")},
        "n_rows": (single["n_rows"].min(), single["n_rows"].max()),
        **{name: single[name].median() for name in ("gap", "train_mse", "validation_mse", "ridge", "best_epoch")},
        "ridge_range": (single["ridge"].min(), single["ridge"].max()),
        "best_epoch_range": (single["best_epoch"].min(), single["best_epoch"].max()),
        "worst_gap": worst["gap"],
        "worst_jump": worst["jump"],
        "joint": joint.iloc[0].to_dict(),
    }


def _levels(rows: Rows) -> dict:
    """The whole table of exit levels, and on how many sentences it was measured."""
    columns = ["precision_at_5", "exit_surprisal", "kl", "confidence"]
    table = rows.table("levels", "method", "level", "n", *_INTERVAL, *columns)
    table["order"] = table["method"].map(METHOD_ORDER.index)
    table = table.sort_values(["order", "level"])
    return {"rows": table.to_dict("records"), "n": (int(table["n"].min()), int(table["n"].max()))}


def _flat(value: object, name: str = "") -> list[tuple[str, object]]:
    """A nested mapping as (dotted name, value) pairs."""
    if not isinstance(value, dict):
        return [(name, value)]
    return [pair for key, inner in value.items() for pair in _flat(inner, f"{name}.{key}" if name else str(key))]


class _PlainDumper(yaml.SafeDumper):
    """YAML without anchors, which nobody writes by hand."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FORMATS
    return environment
