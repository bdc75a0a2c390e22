"""Update the tables of docs/findings.md from those of `make study`: `python docs/describe_results.py`.

A table stands between `<!-- table: name -->` and `<!-- end of table -->`; the rest of the page is written by hand.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

DOCS = Path(__file__).parent
PAGE, RESULTS = DOCS / "findings.md", DOCS / "results"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)
METHODS = {"identity": "identity", "arbitrary": "arbitrary", "ojfa": "OJFA", "joint": "joint"}
METHODS |= {"n_njtc": "N-NJTC", "jtc": "JTC"}
FLOOR = {"constant": "constant", "constant_by_position": "constant by position", "token_table": "token table"}
FLOOR |= {"identity_temperature": "identity, temperature", "middle": "jump of level K/2"}
POSITIONS = ["0", "1-4", "5+", "1+"]
JOINT_VARIANTS = ["paper", "per-level", "not-first", "post-norm", "exact", "exact-not-first", "exact-post-norm"]
SINGLE_JUMPS = ["exact-post-norm", "logits", "kl"]  # one target, three objectives

Rows = list[list[str]]


def read(name: str) -> pd.DataFrame:
    """One of the study's summary tables, or one of the demo's."""
    return pd.read_csv(RESULTS / f"{name}.csv", dtype={"jump": str}, keep_default_na=False, na_values=[""])


def estimate(row: pd.Series, metric: str, digits: int = 3) -> str:
    """A value with its confidence interval."""
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return f"{row[metric]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def verdicts() -> Rows:
    """Each variant's verdicts, with counts where its seeds disagree, and the jumps that it selects."""
    table, scores = read("verdicts"), read("scores")

    def words(row: pd.Series) -> str:
        counts = {word: row[word] for word in ("supported", "contradicted", "inconclusive") if row[word]}
        told = ", ".join(f"{count} {word}" for word, count in counts.items())
        return row["verdict"] if len(counts) == 1 else f"{row['verdict']} ({told})"

    wide = table.assign(verdict=table.apply(words, axis=1)).pivot(index="variant", columns="claim", values="verdict")
    chosen = scores[scores["ojfa"].astype(str) == "True"].groupby("variant")["jump"].agg(", ".join)
    rows = [["variant", "seeds", "jump", *wide.columns]]
    for variant in dict.fromkeys(table["variant"]):
        seeds = table.loc[table["variant"] == variant, "seeds"].iloc[0]
        rows.append([variant, str(seeds), chosen[variant], *wide.loc[variant]])
    return rows


def methods() -> Rows:
    """Mean precision of each method for the two variants that ran with every seed."""
    table = read("methods")
    rows = [["variant", "seed", *METHODS.values()]]
    for variant in ("paper", "exact"):
        for seed in sorted(set(table["seed"])):
            part = table[(table["variant"] == variant) & (table["seed"] == seed)].set_index("method")
            rows.append([variant, str(seed), *(estimate(part.loc[method], "precision") for method in METHODS)])
    return rows


def claims() -> Rows:
    """Every statistic that decides a verdict."""
    table = read("claims").dropna(subset="rule")
    table = table[table["variant"].isin(["paper", "exact"])]
    seeds = [f"seed {seed}" for seed in sorted(set(table["seed"]))]
    rows = [["claim", "statistic", "metric", "holds if", "variant", *seeds]]
    for key, part in table.groupby(["claim", "statistic", "metric", "rule", "variant"], sort=False):
        cells = []
        for row in part.sort_values("seed").itertuples():
            interval = "" if pd.isna(row.low) else f" [{row.low:.3f}, {row.high:.3f}]"
            cells.append(f"{row.estimate:.3f}{interval}")
        rows.append([key[0], key[1].replace("_", " "), key[2], key[3], key[4], *cells])
    return rows


def sensitivity() -> Rows:
    """Mean precision of each method in each variant, at seed 0."""
    table = read("methods")
    table = table[table["seed"] == 0]
    rows = [["variant", *METHODS.values()]]
    for variant in dict.fromkeys(table["variant"]):
        part = table[table["variant"] == variant].set_index("method")["precision"]
        rows.append([variant, *(f"{part[method]:.3f}" for method in METHODS)])
    return rows


def joint() -> Rows:
    """Error, share of variance explained, and precision of the two jumps that are used at all levels."""
    table, jumps = read("shared_jumps"), read("jumps")
    rows = [["variant", "jump", "gap of its fit", "error, all levels", "explained", "precision", "surprisal"]]
    for variant in JOINT_VARIANTS:
        for method in ("ojfa", "joint"):
            part = table[(table["variant"] == variant) & (table["seed"] == 0) & (table["method"] == method)].iloc[0]
            name = "joint" if method == "joint" else part["jump"]
            fits = jumps[(jumps["variant"] == variant) & (jumps["seed"] == 0) & (jumps["jump"] == name)]
            gap = fits["gap"].iloc[0]
            words = "joint" if method == "joint" else f"OJFA ({name})"
            values = [f"{gap:.3f}", f"{part['mse']:,.0f}", f"{part['explained']:.3f}"]
            rows.append([variant, words, *values, f"{part['precision']:.3f}", f"{part['surprisal']:.2f}"])
    return rows


def oracle() -> Rows:
    """How well each score finds the jump with the best precision on held-out training sentences."""
    table = read("oracle")
    names = {"d_m": "D_m", "cosine": "mean cosine", "squared_cosine": "unsigned square", "mse": "mean squared error"}
    rows = [["variant", "seed", "score", "jump", "best jump", "rank correlation", "regret", "regret on test"]]
    for row in table[table["variant"].isin(["paper", "exact"])].itertuples():
        correlation = "–" if pd.isna(row.rank_correlation) else f"{row.rank_correlation:.2f}"
        values = [correlation, f"{row.regret:.3f}", f"{row.test_regret:.3f}"]
        rows.append([row.variant, str(row.seed), names[row.score], row.jump, str(row.oracle), *values])
    return rows


def ranks() -> Rows:
    """Mean precision of exact fits at other ranks, at seed 0."""
    table = read("ranks")
    table = table[(table["variant"] == "exact") & (table["seed"] == 0)]
    rows = [["rank", "N-NJTC", "joint", "OJFA", "OJFA's jump"]]
    for rank in sorted(set(table["rank"])):
        part = table[table["rank"] == rank].set_index("method")
        values = [estimate(part.loc[method], "precision") for method in ("n_njtc", "joint", "ojfa")]
        rows.append([str(rank), *values, str(part.loc["ojfa", "jump"]).removesuffix(".0")])
    return rows


def single_jumps() -> Rows:
    """Precision of jumps of one size and target but different objectives, at seed 0, and where each is best."""
    table, levels = read("methods"), read("levels")
    levels = levels[(levels["seed"] == 0) & levels["variant"].isin(SINGLE_JUMPS)]
    rows = [["variant", "N-NJTC", "first at levels", "joint", "first at levels", "OJFA", "first at levels"]]
    for variant in SINGLE_JUMPS:
        cells = []
        for method in ("n_njtc", "joint", "ojfa"):
            wide = levels[levels["method"] == method].pivot(index="level", columns="variant", values="precision")
            first = int((wide[variant] >= wide.max(axis=1)).sum())
            part = table[(table["variant"] == variant) & (table["seed"] == 0) & (table["method"] == method)].iloc[0]
            cells += [estimate(part, "precision"), f"{first} of {len(wide)}"]
        rows.append([variant, *cells])
    return rows


def dynamic_exit() -> Rows:
    """The fewest blocks with which a dynamic exit keeps an agreement of 0.9, at seed 0."""
    table = read("dynamic_exit")
    table = table[(table["variant"].isin(["paper", "exact"])) & (table["seed"] == 0) & (table["agreement"] >= 0.9)]
    rows = [["variant", "method", "threshold", "agreement", "blocks run", "checks", "cost, fused", "cost, plain"]]
    for (variant, method), part in table.groupby(["variant", "method"], sort=False):
        best = part.loc[part["blocks"].idxmin()]
        fused = "–" if pd.isna(best["fused_cost"]) else f"{best['fused_cost']:.2f}"
        threshold = "never" if best["threshold"] == float("inf") else f"{best['threshold']:.3f}"
        values = [threshold, f"{best['agreement']:.3f}", f"{best['blocks']:.2f}"]
        rows.append([variant, METHODS[method], *values, f"{best['checks']:.1f}", fused, f"{best['plain_cost']:.2f}"])
    return rows


def floor() -> Rows:
    """The demo's exact variant: precision and surprisal of each method, the floor included, by position."""
    every, groups = (read(f"demo/{name}") for name in ("methods", "by_position"))
    groups = groups[groups["level"].isna()]
    rows = [["method", "precision", *(f"at {name}" for name in POSITIONS), "surprisal", "surprisal at 1+"]]
    for method, words in (FLOOR | METHODS).items():
        part = every[(every["variant"] == "exact") & (every["method"] == method)].iloc[0]
        at = groups[(groups["variant"] == "exact") & (groups["method"] == method)].set_index("position")
        known = [f"{at.loc[name, 'precision']:.3f}" if name in at.index else "–" for name in POSITIONS]
        later = f"{at.loc['1+', 'surprisal']:.2f}" if len(at) else "–"
        rows.append([words, estimate(part, "precision"), *known, f"{part['surprisal']:.2f}", later])
    return rows


def one_jump() -> Rows:
    """The demo's one jump for all levels beside others and what needs no jump, with what an exit check costs."""
    every, groups = (read(f"demo/{name}") for name in ("methods", "by_position"))
    groups = groups[groups["level"].isna() & (groups["position"] == "1+")]
    shown = [("exact", method) for method in ("token_table", "identity", "ojfa", "joint", "n_njtc", "jtc")]
    rows = [["variant", "method", "precision", "at 1+", "surprisal", "parameters", "multiply-adds of a check"]]
    for variant, method in [*shown, ("one-jump", "joint")]:
        part = every[(every["variant"] == variant) & (every["method"] == method)].iloc[0]
        later = groups[(groups["variant"] == variant) & (groups["method"] == method)].iloc[0]
        size = "–" if pd.isna(part["parameters"]) else f"{part['parameters']:,.0f}"
        values = [estimate(part, "precision"), f"{later['precision']:.3f}", f"{part['surprisal']:.2f}", size]
        rows.append([variant, (FLOOR | METHODS)[method], *values, f"{part['check']:,}"])
    return rows


def one_jump_claims() -> Rows:
    """Every statement about the demo's one jump that decides one of G1 to G6."""
    table = read("demo/one_jump")
    table = table[(table["decides"].astype(str) == "True") | (table["claim"] == "G6")]
    rows = [["claim", "against", "statistic", "metric", "holds if", "estimate", "verdict", "verdict at 1+"]]
    keys = ["claim", "against", "statistic", "metric", "rule"]
    for key, part in table.groupby(keys, sort=False, dropna=False):
        whole, later = (part[part["positions"] == name].iloc[0] for name in ("all", "1+"))
        rule, *words = ("–" if pd.isna(word) else word for word in (key[4], whole["verdict"], later["verdict"]))
        interval = f"{whole['estimate']:.3f} [{whole['low']:.3f}, {whole['high']:.3f}]"
        rows.append([key[0], key[1], key[2].replace("_", " "), key[3], rule, interval, *words])
    return rows


MAKERS: dict[str, Callable[[], Rows]] = {
    maker.__name__: maker
    for maker in (
        floor,
        one_jump,
        one_jump_claims,
        verdicts,
        methods,
        claims,
        sensitivity,
        joint,
        oracle,
        ranks,
        single_jumps,
        dynamic_exit,
    )
}


def markdown(rows: Rows) -> str:
    """A Markdown table with numbers aligned to the right."""
    numeric = [all(re.match(r"[-\d–]", row[i]) for row in rows[1:]) for i in range(len(rows[0]))]
    lines = [rows[0], ["---:" if right else "---" for right in numeric], *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page() -> str:
    """The page with updated tables."""
    return TABLE.sub(lambda found: found[1] + "\n" + markdown(MAKERS[found[2]]()) + "\n" + found[3], PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(page())
