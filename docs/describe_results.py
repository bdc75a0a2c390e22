"""Write docs/findings.md from findings.md.j2 and docs/results: `python docs/describe_results.py`.

Every number of the page is an expression of the template, which names the file, the row and the column that it stands
in, or it is a cell of a table, whose files stand below it.
"""

import itertools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd

from onejump.report.style import METHOD_STYLES

DOCS = Path(__file__).parent
TEMPLATE, PAGE, RESULTS = DOCS / "findings.md.j2", DOCS / "findings.md", DOCS / "results"
METHODS = {method: style.name for method, style in METHOD_STYLES.items()}
POSITIONS = ["0", "1-4", "5+", "1+"]
MISSING = "–"

Rows = list[list[str]]
Name = tuple[str, str]  # a variant and a method


def rows(file: str, **where: object) -> pd.DataFrame:
    """Rows of a table, such as `demo/methods`, in which columns have these values, or one of several.

    Raises:
        ValueError: there are none.
    """
    how = {"dtype": {"jump": str}, "keep_default_na": False, "na_values": [""], "dtype_backend": "numpy_nullable"}
    table = pd.read_csv(RESULTS / f"{file}.csv", **how)
    for column, wanted in where.items():
        several = wanted if isinstance(wanted, list | tuple) else [wanted]
        table = table[table[column].astype(str).isin(map(str, several))]
    if table.empty:
        raise ValueError(f"{file}: no row has {where}")
    return table


def row(file: str, **where: object) -> pd.Series:
    """The one row of a table in which columns have these values.

    Raises:
        ValueError: there is none, or several.
    """
    found = rows(file, **where)
    if len(found) > 1:
        raise ValueError(f"{file}: {len(found)} rows have {where}, expected one")
    return found.iloc[0]


def number(file: str, column: str, digits: int = 3, **where: object) -> str:
    """A value of one row."""
    return written(row(file, **where)[column], digits)


def estimate(file: str, column: str, digits: int = 3, **where: object) -> str:
    """A value of one row with its confidence interval."""
    return interval(row(file, **where), column, digits)


def named(variants: dict[str, Sequence[str]]) -> list[Name]:
    """Each of the methods that are asked of some variants."""
    return [(variant, method) for variant, methods in variants.items() for method in methods]


def extremes(file: str, column: str, digits: int = 3, **where: object) -> str:
    """The smallest and the largest value of several rows."""
    values = rows(file, **where)[column]
    return f"{written(values.min(), digits)} to {written(values.max(), digits)}"


def written(value: float, digits: int) -> str:
    """A number with so many decimals, or a dash where there is none."""
    return MISSING if pd.isna(value) else f"{value:,.{digits}f}"


def interval(found: pd.Series, column: str, digits: int = 3) -> str:
    """A value with the interval in the columns beside it: `precision_low`, or for an estimate `low`."""
    prefix = "" if column == "estimate" else f"{column}_"
    low, high = (written(found[f"{prefix}{end}"], digits) for end in ("low", "high"))
    value = written(found[column], digits)
    return value if low == MISSING else f"{value} [{low}, {high}]"


def table(files: Sequence[str], lines: Rows) -> str:
    """A Markdown table with numbers aligned to the right, and links to the files that it was made from."""
    numeric = [all(re.match(rf"[-\d{MISSING}]", line[i]) for line in lines[1:]) for i in range(len(lines[0]))]
    shown = [lines[0], ["---:" if right else "---" for right in numeric], *lines[1:]]
    links = " and ".join(f"[{file}.csv](results/{file}.csv)" for file in files)
    return "".join(f"| {' | '.join(line)} |\n" for line in shown) + f"\nFrom {links}."


def methods(study: str, variants: dict[str, Sequence[str]], models: Sequence[str], column: str = "precision") -> str:
    """A metric of methods of some variants, a column for each model; seed 0."""
    lines = [["variant", "method", *models]]
    for variant, name in named(variants):
        where = {"variant": variant, "method": name, "seed": 0}
        digits = 3 if column == "precision" else 2
        cells = [estimate(f"{study}/methods", column, digits, model=model, **where) for model in models]
        lines.append([variant, METHODS[name], *cells])
    return table([f"{study}/methods"], lines)


def nulls(study: str, variants: Sequence[str], models: Sequence[str]) -> str:
    """Which share of the one jump's gain over identity other jumps for all levels have, by precision; seed 0."""
    lines = [["variant", *(f"{model}{at}" for model in models for at in ("", ", at 1+"))]]
    for variant in variants:
        cells = [share_of_gain(study, variant, model, at) for model in models for at in (None, "1+")]
        lines.append([variant, *cells])
    return table([f"{study}/methods", f"{study}/by_position"], lines)


def share_of_gain(study: str, variant: str, model: str, position: str | None = None) -> str:
    """The share of the one jump's gain over identity, in precision, that another variant's joint jump has; seed 0."""
    return share(study, model, (variant, "joint"), ("one-jump", "joint"), ("one-jump", "identity"), position)


def share(study: str, model: str, part: Name, whole: Name, above: Name, position: str | None = None) -> str:
    """What a method has above another, in precision, over what a third has: each a variant and a method; seed 0."""
    file, where = (f"{study}/methods", {}) if position is None else (f"{study}/by_position", {"position": position})
    names = [{"variant": variant, "method": method} for variant, method in (part, whole, above)]
    own, all_, floor = (row(file, model=model, seed=0, **name, **where)["precision"] for name in names)
    return written((own - floor) / (all_ - floor), 2)


def converged(study: str, variant: str, model: str, lens: str | None = None) -> str:
    """How many of a variant's jumps a level, or of a lens's maps, have converged; seed 0."""
    if lens is None:
        found = rows(f"{study}/jumps", model=model, variant=variant, seed=0)
        found = found[found["jump"] != "joint"]
    else:
        found = rows(f"{study}/lenses", model=model, variant=variant, seed=0, lens=lens)
    ended = found["converged"].astype(str) == "True"
    return f"{ended.sum()} of {len(ended)}" if len(ended) else MISSING


def convergence(study: str, variants: Sequence[str], models: Sequence[str]) -> str:
    """Whether a variant's joint jump has converged, and how many of its jumps a level; seed 0."""
    lines = [["variant", *(f"{model}{of}" for model in models for of in (", one jump", ", a level"))]]
    for variant in variants:
        cells = []
        for model in models:
            joint = row(f"{study}/jumps", model=model, variant=variant, jump="joint", seed=0)["converged"]
            cells += ["yes" if str(joint) == "True" else "no", converged(study, variant, model)]
        lines.append([variant, *cells])
    return table([f"{study}/jumps"], lines)


def same_choice(study: str, score: str, variants: Sequence[str]) -> str:
    """In how many of a study's models and variants a score chooses the jump that D_m chooses."""
    keys = ["model", "seed", "variant"]
    own, other = (rows(f"{study}/oracle", variant=list(variants), score=name) for name in ("d_m", score))
    both = own.merge(other, on=keys, validate="one_to_one")
    return f"{(both['jump_x'] == both['jump_y']).sum()} of {len(both)}"


def sizes(study: str, variants: dict[str, Sequence[str]], model: str, fits: bool = False) -> str:
    """Precision of methods of some variants beside parameters and what a check costs, and a lens's fit; seed 0."""
    lines = [["variant", "method", "precision", "at 1+", "surprisal", "parameters", "multiply-adds of a check"]]
    lines[0] += ["10^9 multiply-adds of the fit"] * fits
    for variant, name in named(variants):
        where = {"model": model, "variant": variant, "method": name, "seed": 0}
        found, later = row(f"{study}/methods", **where), row(f"{study}/by_position", position="1+", **where)
        cells = [interval(found, "precision"), written(later["precision"], 3), written(found["surprisal"], 2)]
        cells += [written(found["parameters"], 0), written(found["check"], 0)]
        cells += [written(found["fit_cost"] / 1e9, 0)] if fits else []
        lines.append([variant, METHODS[name], *cells])
    return table([f"{study}/methods", f"{study}/by_position"], lines)


def by_position(study: str, variants: dict[str, Sequence[str]], models: Sequence[str]) -> str:
    """Precision and surprisal of methods by the position of the chosen token; seed 0."""
    lines = [["model", "variant", "method", "precision", *(f"at {group}" for group in POSITIONS)]]
    lines[0] += ["surprisal", "surprisal at 1+"]
    for model, (variant, name) in itertools.product(models, named(variants)):
        where = {"model": model, "variant": variant, "method": name, "seed": 0}
        found = row(f"{study}/methods", **where)
        at = {group: row(f"{study}/by_position", position=group, **where) for group in POSITIONS}
        precisions = [written(at[group]["precision"], 3) for group in POSITIONS]
        surprisals = [written(part["surprisal"], 2) for part in (found, at["1+"])]
        lines.append([model, variant, METHODS[name], interval(found, "precision"), *precisions, *surprisals])
    return table([f"{study}/methods", f"{study}/by_position"], lines)


def counted(file: str, verdict: str, **where: object) -> str:
    """How many of some rows have a verdict."""
    found = rows(file, **where)["verdict"]
    return f"{(found == verdict).sum()} of {len(found)}"


def moved_verdicts(study: str) -> str:
    """How many verdicts on the paper's claims are others without first tokens."""
    found = rows(f"{study}/verdicts").pivot(index=["model", "variant", "claim"], columns="positions", values="verdict")
    return f"{(found['all'] != found['1+']).sum()} of {len(found)}"


def verdicts(study: str) -> str:
    """Each variant's verdicts on the paper's claims, with counts where its seeds disagree, and the jumps selected."""
    found, shared = rows(f"{study}/verdicts", positions="all"), rows(f"{study}/shared_jumps", method="ojfa")

    def words(verdict: pd.Series) -> str:
        counts = {word: verdict[word] for word in ("supported", "contradicted", "inconclusive") if verdict[word]}
        told = ", ".join(f"{count} {word}" for word, count in counts.items())
        return verdict["verdict"] if len(counts) <= 1 else f"{verdict['verdict']} ({told})"

    claims = list(dict.fromkeys(found["claim"]))
    lines = [["model", "variant", "seeds", "jump", *claims]]
    for (model, variant), part in found.groupby(["model", "variant"], sort=False):
        own = part.set_index("claim")
        chosen = shared[(shared["model"] == model) & (shared["variant"] == variant)].sort_values("seed")["jump"]
        cells = [words(own.loc[claim]) for claim in claims]
        lines.append([model, variant, str(part["seeds"].iloc[0]), ", ".join(chosen), *cells])
    return table([f"{study}/verdicts", f"{study}/shared_jumps"], lines)


def claims(
    study: str, variants: Sequence[str], models: Sequence[str], also: Sequence[tuple[str, str, str]] = ()
) -> str:
    """Every statistic that decides a verdict on the paper's claims, a column for each model; seed 0.

    And of those that decide none the ones in `also`, each a statistic, its metric, and the rule it is held against.
    """
    found = rows(f"{study}/claims", variant=list(variants), seed=0, positions="all")
    told = pd.MultiIndex.from_frame(found[["statistic", "metric", "rule"]]).isin(also)
    found = found[(found["decides"].astype(str) == "True") | told]
    lines = [["claim", "statistic", "metric", "holds if", "variant", *models]]
    for key, part in found.groupby(["claim", "statistic", "metric", "rule", "variant"], sort=False):
        by_model = {one["model"]: interval(one, "estimate") for _, one in part.iterrows()}
        cells = [by_model.get(model, MISSING) for model in models]
        lines.append([key[0], key[1].replace("_", " "), *key[2:], *cells])
    return table([f"{study}/claims"], lines)


def one_jump_claims(
    study: str, variant: str, against: Sequence[str], models: Sequence[str], positions: str = "all"
) -> str:
    """Every statement about the one jump that decides one of G1 to G6, a column for each model; seed 0."""
    found = rows(f"{study}/one_jump", variant=variant, against=list(against), seed=0, positions=positions)
    found = found[(found["decides"].astype(str) == "True") | (found["claim"] == "G6")]
    lines = [["claim", "against", "statistic", "metric", "holds if", *models]]
    for key, part in found.groupby(["claim", "against", "statistic", "metric", "rule"], sort=False, dropna=False):
        by_model = part.set_index("model")
        said = by_model["verdict"].fillna("") + " "
        cells = [f"{said[model].lstrip()}{interval(by_model.loc[model], 'estimate')}" for model in models]
        lines.append([*key[:2], key[2].replace("_", " "), key[3], MISSING if pd.isna(key[4]) else key[4], *cells])
    return table([f"{study}/one_jump"], lines)


def objectives(study: str, forms: dict[str, tuple[str, str, str]], model: str) -> str:
    """Forms of jumps, each a method and its variants by KL and by squared error, in both metrics; seed 0."""
    lines = [["form", "precision, KL", "precision, squared error", "surprisal, KL", "surprisal, squared error"]]
    for form, (method, *variants) in forms.items():
        found = [row(f"{study}/methods", model=model, variant=name, method=method, seed=0) for name in variants]
        precisions = [interval(one, "precision") for one in found]
        lines.append([form, *precisions, *(written(one["surprisal"], 2) for one in found)])
    return table([f"{study}/methods"], lines)


def by_rank(study: str, families: dict[str, str], model: str) -> str:
    """The joint jump at each rank, by families of variants, `<family>-<rank>`; seed 0."""
    heads = [f"{label}{metric}" for metric in ("", ", surprisal") for label in families]
    lines = [["rank", f"parameters, {next(iter(families))}", *heads]]
    where = {"model": model, "method": "joint", "seed": 0}
    first = next(iter(families.values()))
    ranks = rows(f"{study}/methods", **where)["variant"].str.extract(rf"^{first}-(\d+)$")[0].dropna()
    for rank in sorted(ranks, key=int):
        found = [row(f"{study}/methods", variant=f"{family}-{rank}", **where) for family in families.values()]
        cells = [*(interval(one, "precision") for one in found), *(written(one["surprisal"], 2) for one in found)]
        lines.append([rank, written(found[0]["parameters"], 0), *cells])
    return table([f"{study}/methods"], lines)


def spread(study: str, variants: dict[str, Sequence[str]], model: str) -> str:
    """Mean precision of methods over texts and fits, with a t interval over texts, and the noise of both."""
    lines = [["variant", "method", "texts", "fits", "precision", "sd of texts", "sd of fits"]]
    for variant, name in named(variants):
        found = row(f"{study}/methods_spread", model=model, variant=variant, method=name, metric="precision")
        found = found.rename({"mean": "estimate"})
        cells = [str(found["seeds"]), str(found["fits"]), interval(found, "estimate")]
        cells += [written(found[source], 4) for source in ("sd_texts", "sd_fits")]
        lines.append([variant, METHODS[name], *cells])
    return table([f"{study}/methods_spread"], lines)


def one_jump_spread(study: str, variant: str, against: Sequence[str], model: str) -> str:
    """Every statement about the one jump that decides one of G1 to G6, over texts and fits."""
    found = rows(f"{study}/one_jump_spread", model=model, variant=variant, against=list(against))
    found = found[(found["decides"].astype(str) == "True") | (found["claim"] == "G6")]
    lines = [["claim", "against", "statistic", "metric", "positions", "holds if", "texts", "fits", "verdict", "mean"]]
    for _, one in found.sort_values("claim", kind="stable").iterrows():
        what = [one["claim"], one["against"], one["statistic"].replace("_", " "), one["metric"], one["positions"]]
        said = [MISSING if pd.isna(one[name]) else str(one[name]) for name in ("rule", "seeds", "fits", "verdict")]
        lines.append([*what, *said, interval(one.rename({"mean": "estimate"}), "estimate")])
    return table([f"{study}/one_jump_spread"], lines)


def switches(study: str, variants: dict[str, Sequence[str]], model: str) -> str:
    """Methods with and without a switch a level to identity, chosen on the validation slice; seed 0."""
    lines = [["variant", "method", "without", "with a switch", "surprisal with it", "levels of identity"]]
    for variant, name in named(variants):
        where = {"model": model, "variant": variant, "method": name, "seed": 0}
        found, levels = row(f"{study}/switches", **where), row(f"{study}/switches", **where)["identity_levels"]
        cells = [number(f"{study}/methods", "precision", **where), interval(found, "precision")]
        cells += [written(found["surprisal"], 2), "none" if pd.isna(levels) else str(levels)]
        lines.append([variant, METHODS[name], *cells])
    return table([f"{study}/switches", f"{study}/methods"], lines)


def origins(study: str, variants: dict[str, Sequence[str]], model: str) -> str:
    """Methods at positions 1 and later on the corpus and on the model's own text; seed 0."""
    lines = [["variant", "method", "corpus", "own text", "surprisal, corpus", "surprisal, own text"]]
    for variant, name in named(variants):
        where = {"model": model, "variant": variant, "method": name, "seed": 0, "position": "1+"}
        found = [row(f"{study}/by_origin", origin=origin, **where) for origin in ("corpus", "generated")]
        cells = [interval(one, "precision") for one in found] + [written(one["surprisal"], 2) for one in found]
        lines.append([variant, METHODS[name], *cells])
    return table([f"{study}/by_origin"], lines)


def ideas() -> str:
    """What a prototype of the one jump gave with more numbers a level."""
    lines = [
        ["added", "its learning rate", "rank", "gate", "parameters", "limit", "precision", "surprisal", "converged"]
    ]
    for _, found in rows("ideas/ideas").iterrows():
        cells = [found["added"], written(found["learning_rate"], 3), str(found["rank"]), found["gate"]]
        cells += [written(found["parameters"], 0), written(found["limit"], 0)]
        cells += [written(found["precision"], 3), written(found["surprisal"], 2)]
        lines.append([*cells, "yes" if str(found["converged"]) == "True" else "no"])
    return table(["ideas/ideas"], lines)


def seeds(study: str, variants: dict[str, Sequence[str]], model: str) -> str:
    """Precision of methods of some variants, a column for each seed."""
    found = rows(f"{study}/methods", model=model, variant=list(variants))
    numbers = sorted(set(found["seed"]))
    lines = [["variant", "method", *(f"seed {seed}" for seed in numbers)]]
    for variant, name in named(variants):
        part = found[(found["variant"] == variant) & (found["method"] == name)].set_index("seed")
        lines.append([variant, METHODS[name], *(interval(part.loc[seed], "precision") for seed in numbers)])
    return table([f"{study}/methods"], lines)


def shared_jumps(study: str, variants: Sequence[str], models: Sequence[str]) -> str:
    """Error, share of variance explained, and precision of the two jumps that are used at all levels; seed 0."""
    lines = [["model", "variant", "jump", "gap of its fit", "explained", "precision", "surprisal"]]
    for model, variant, method in itertools.product(models, variants, ("ojfa", "joint")):
        where = {"model": model, "variant": variant, "seed": 0}
        found = row(f"{study}/shared_jumps", method=method, **where)
        name = "joint" if method == "joint" else found["jump"].removesuffix(".0")
        fit = row(f"{study}/jumps", jump=name, **where)
        cells = [MISSING if fit["fit"] == "kl" else written(fit["gap"], 3)]  # KL has another optimum
        cells += [written(found["explained"], 3), written(found["precision"], 3), written(found["surprisal"], 2)]
        lines.append([model, variant, "joint" if method == "joint" else f"OJFA ({name})", *cells])
    return table([f"{study}/shared_jumps", f"{study}/jumps"], lines)


def oracle(study: str, variants: Sequence[str], models: Sequence[str]) -> str:
    """How well each score finds the jump with the best precision on held-out training sentences."""
    names = {"d_m": "D_m", "cosine": "mean cosine", "squared_cosine": "unsigned square", "mse": "mean squared error"}
    lines = [["model", "variant", "score", "jump", "best jump", "rank correlation", "regret", "regret on test"]]
    for _, found in rows(f"{study}/oracle", variant=list(variants), model=list(models), seed=0).iterrows():
        cells = [written(found["rank_correlation"], 2), written(found["regret"], 3), interval(found, "test_regret")]
        lines.append(
            [found["model"], found["variant"], names[found["score"]], found["jump"], str(found["oracle"]), *cells]
        )
    return table([f"{study}/oracle"], lines)


def ranks(study: str, variant: str, models: Sequence[str]) -> str:
    """Mean precision of exact fits at other ranks; seed 0."""
    lines = [["model", "rank", "N-NJTC", "joint", "OJFA", "OJFA's jump"]]
    found = rows(f"{study}/ranks", variant=variant, model=list(models), seed=0)
    for (model, rank), part in found.groupby(["model", "rank"], sort=False):
        own = part.set_index("method")
        cells = [interval(own.loc[method], "precision") for method in ("n_njtc", "joint", "ojfa")]
        lines.append([model, str(rank), *cells, str(own.loc["ojfa", "jump"]).removesuffix(".0")])
    return table([f"{study}/ranks"], lines)


def dynamic_exit(study: str, variants: dict[str, Sequence[str]], models: Sequence[str]) -> str:
    """The fewest blocks with which a dynamic exit keeps an agreement of 0.9, and its cost; seed 0."""
    lines = [
        ["model", "variant", "method", "threshold", "agreement", "blocks run", "checks", "cost, fused", "cost, plain"]
    ]
    for model, (variant, names) in itertools.product(models, variants.items()):
        for name in names:
            found = row(f"{study}/dynamic_exit", model=model, variant=variant, method=name, seed=0)
            threshold = "never" if found["threshold"] == float("inf") else written(found["threshold"], 3)
            cells = [threshold, written(found["agreement"], 3), written(found["blocks"], 2)]
            cells += [written(found["checks"], 1), *(written(found[f"{how}_cost"], 2) for how in ("fused", "plain"))]
            lines.append([model, variant, METHODS[name], *cells])
    return table([f"{study}/dynamic_exit"], lines)


def few_checks(study: str, variants: dict[str, Sequence[str]], model: str, numbers: Sequence[int]) -> str:
    """Dynamic exit with checks at so many levels, which training sentences chose with the threshold; seed 0."""
    lines = [["variant", "method", "levels with checks", "agreement", "blocks run", "cost", "identity for no more"]]
    for (variant, name), n in itertools.product(named(variants), numbers):
        where = {"model": model, "variant": variant, "method": name, "n_levels": n, "seed": 0}
        found = row(f"{study}/few_checks", **where)
        levels = found["levels"] if n < max(numbers) else f"all {n}"
        cells = [interval(found, "agreement"), written(found["blocks"], 2), written(found["cost"], 2)]
        lines.append([variant, METHODS[name], levels, *cells, written(found["identity_agreement"], 3)])
    return table([f"{study}/few_checks"], lines)


def rates() -> str:
    """Fits by the divergence at multiples of their learning rates: validation divergence, and best step."""
    found = rows("ideas/rates")
    factors = sorted(set(found["rate"]))
    lines = [["fit", "gate", *(f"{factor:g} x: {what}" for factor in factors for what in ("KL", "step"))]]
    for (fit, gate), part in found.groupby(["fit", "gate"], sort=False):
        of = part.set_index("rate").loc[factors]
        cells = [cell for _, one in of.iterrows() for cell in (written(one["validation_kl"], 3), str(one["best_step"]))]
        lines.append([fit, gate, *cells])
    return table(["ideas/rates"], lines)


TABLES = (methods, nulls, sizes, by_position, verdicts, claims, one_jump_claims, seeds, shared_jumps, oracle, ranks)
TABLES += (dynamic_exit, few_checks, objectives, by_rank, spread, one_jump_spread, switches, origins, ideas)
TABLES += (convergence, rates)
VALUES = (number, estimate, extremes, share, share_of_gain, converged, same_choice, counted, moved_verdicts)


def page() -> str:
    """The page, from its template."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    environment.globals |= {function.__name__: function for function in (*VALUES, *TABLES)}
    return wrapped(environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render())


def wrapped(text: str) -> str:
    """The text with its paragraphs and list items in lines of equal length; tables and headings as they are."""
    blocks = re.sub(r"\n{3,}", "\n\n", text).strip().split("\n\n")
    return "\n\n".join(block if block.startswith(("|", "#")) else _filled(block) for block in blocks) + "\n"


def _filled(block: str) -> str:
    items = [(" ".join(item.split()), "  " * item.startswith("- ")) for item in re.split(r"\n(?=- )", block)]
    how = {"width": 120, "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(item, subsequent_indent=indent, **how) for item, indent in items)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
