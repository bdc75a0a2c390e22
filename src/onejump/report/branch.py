"""What the report's section on one model, seed and variant says, from the summary tables."""

import pandas as pd

from onejump.analysis.columns import METRIC_COLUMNS, POSITIONS, SHORTLIST_COLUMNS
from onejump.analysis.one_jump import SHARES
from onejump.analysis.statistics import WINDOWS
from onejump.exits.columns import FLOOR_METHODS, JOINT_METHODS
from onejump.report.formats import FORMATS
from onejump.report.tables import BranchTables
from onejump.study.lenses import LENSES

METHOD_ORDER = [*FLOOR_METHODS, "identity", "arbitrary", "ojfa", "joint", "joint_shortlist", "n_njtc", *LENSES]
KEY_METHODS = ["token_table", "identity", "arbitrary", "ojfa", "joint", "n_njtc", "jtc"]  # of the first screen

FEW_CHECKS = ("method", "n_levels", "levels", "threshold", "held_out_agreement", "agreement", "agreement_low")
FEW_CHECKS += ("agreement_high", "blocks", "checks", "cost", "identity_agreement")
SWITCHES = ("method", "identity_levels", *METRIC_COLUMNS, "check")

# Single jumps of equal size that were measured on the same sentences; arbitrary jumps saw only some of them.
RIVALS = ["ojfa", "joint"]


def joint_facts(tables: BranchTables) -> dict:
    """Everything that the section of a variant with the joint jump alone shows, apart from its figures.

    Raises:
        OnejumpError: a table is missing, or lacks rows or columns.
    """
    shortlist = tables.table("shortlist", *SHORTLIST_COLUMNS, may_be_empty=True)
    left_out = ("joint_shortlist",) if shortlist.empty else ()
    methods = [method for method in METHOD_ORDER if method in JOINT_METHODS and method not in left_out]
    return _common_facts(tables) | {
        "methods": _methods(tables, methods, "joint"),
        "fits": _joint_fit(tables),
        "shortlist": shortlist.to_dict("records"),
    }


def _common_facts(tables: BranchTables) -> dict:
    return {
        "id": f"{tables.model}.seed-{tables.seed}.{tables.variant}",
        "model": tables.model,
        "seed": tables.seed,
        "variant": tables.variant,
        "by_position": _by_position(tables),
        "largest": _largest_rows(tables),
        "levels": _levels(tables),
        "dynamic": _dynamic(tables),
        "switches": tables.table("switches", *SWITCHES).to_dict("records"),
        "few_checks": tables.table("few_checks", *FEW_CHECKS).to_dict("records"),
    }


def branch_facts(tables: BranchTables) -> dict:
    """The same of a variant with all jumps, whose section says more."""
    scores, chosen = tables.selected()
    numbers = ("estimate", "low", "high", "verdict")
    every = tables.table("claims", "positions", "claim", "statistic", "metric", "rule", "decides", *numbers)
    claims = every[every["positions"] == "all"]
    shared = ("method", "mse", "explained", "held_out_precision", "precision", "surprisal")
    methods = _methods(tables, _with_all_jumps(tables), "ojfa")
    return {
        **_common_facts(tables),
        "jump": chosen,
        "selected": scores.loc[chosen].to_dict(),
        "runner_up": _runner_up(scores, chosen),
        "single_jumps": _single_jumps(tables, claims, chosen),
        "methods": methods,
        "lenses": [lens for lens in SHARES if lens in methods],  # of the figure by level
        "claims": _statements(claims, every[every["positions"] == "1+"]),
        "crossing": int(_statistic(tables, claims, "crossing_level")),
        "fits": _fits(tables),
        "shared": tables.table("shared_jumps", *shared).to_dict("records"),
    }


def _with_all_jumps(tables: BranchTables) -> list[str]:
    """The methods of a variant with all jumps: of the lenses those that were evaluated."""
    found = set(tables.table("methods", "method")["method"])
    methods = [method for method in METHOD_ORDER if method != "joint_shortlist"]
    return [method for method in methods if method not in LENSES or method in found]


def _statements(claims: pd.DataFrame, later: pd.DataFrame) -> list[dict]:
    """The statements of all claims but those that only vary a bound or a window.

    Each has `later`, its verdict at positions 1 and more, null if there is none.
    """
    keys = ["claim", "statistic", "metric", "rule"]
    shown = claims[claims["rule"].notna() & ~claims["statistic"].str.endswith(tuple(filter(None, WINDOWS)))]
    shown = shown.drop_duplicates(["claim", "statistic", "metric"])  # of several bounds the main one comes first
    later = later[[*keys, "verdict"]].rename(columns={"verdict": "later"})
    return shown.merge(later, on=keys, how="left").to_dict("records")


def _statistic(tables: BranchTables, claims: pd.DataFrame, name: str) -> float:
    """The estimate of a statistic that only one claim has."""
    found = claims.loc[claims["statistic"] == name, "estimate"]
    if len(found) != 1:
        raise tables.error("claims", f"has {len(found)} rows of {name}, expected one,")
    return found.item()


def _runner_up(scores: pd.DataFrame, chosen: int) -> dict | None:
    """The jump with the second largest D_m, if there is one."""
    others = scores.drop(index=chosen)
    if others.empty:
        return None
    jump = int(others["score"].idxmax())
    return {"jump": jump, **others.loc[jump].to_dict()}


def _single_jumps(tables: BranchTables, claims: pd.DataFrame, chosen: int) -> dict:
    """Precision of each jump (row) at each exit level (column), OJFA's rank among them, and the first one's mean."""
    grid = tables.grid()
    means = grid.mean(axis=1)
    if chosen not in means.index:
        raise tables.error("transfer", f"does not have jump {chosen}, the selected one,")
    return {
        "grid": grid.round(3).to_numpy().tolist(),
        "rank": int(_statistic(tables, claims, "rank")),
        "count": len(means),
        "precision": means[chosen],
        "best": int(means.idxmax()),
        "best_precision": means.max(),
    }


def _methods(tables: BranchTables, methods: list[str], unit: str) -> dict[str, dict]:
    """The means of some methods over the exit levels; `ratio` is of parameters, to those of the method `unit`."""
    columns = ["parameters", "fit_cost", "check", "check_cost", *METRIC_COLUMNS]
    columns += ["precision_at_5", "worst_precision", "worst_level"]
    table = tables.table("methods", "method", *columns).set_index("method")
    missing = [method for method in methods if method not in table.index]
    if missing:
        raise tables.error("methods", f"does not have method {', '.join(missing)}")
    # Bold marks the largest number as the reader sees it, so methods that look equal share it.
    written = table["precision"].map(FORMATS["share"])
    best = written[table.loc[table.index.isin(RIVALS), "precision"].idxmax()]
    return {
        method: {
            **table.loc[method].to_dict(),
            "ratio": table.loc[method, "parameters"] / table.loc[unit, "parameters"],
            "best": method in RIVALS and written[method] == best,
        }
        for method in methods
    }


def _by_position(tables: BranchTables) -> dict:
    """Each method's means over the exit levels by the position of the chosen token, and the sentences in each group."""
    table = tables.table("by_position", "method", "level", "position", "n", *METRIC_COLUMNS)
    table = table[table["level"].isna()]
    groups = [group for group in POSITIONS if (table["position"] == group).any()]
    rows = {(row["method"], row["position"]): row for row in table.to_dict("records")}
    methods = [method for method in METHOD_ORDER if (method, groups[0]) in rows]
    return {
        "n": {group: int(rows[methods[0], group]["n"]) for group in groups},
        "rows": [{"method": method, "groups": [rows[method, group] for group in groups]} for method in methods],
    }


def _largest_rows(tables: BranchTables) -> dict[str, dict]:
    """What the largest rows of the training states hold: at the level where that is most, at level K, and after it."""
    table = tables.table("norms", "level", "largest", "rows", "share", "at_position_0", "share_of_position_0")
    table = table[table["largest"] == table["largest"].max()]
    levels = table[table["level"].notna()]
    if levels.empty or len(levels) == len(table):
        raise tables.error("norms", f"has {len(levels)} levels in {len(table)} rows, expected all and the final norm,")
    rows = {"most": levels.loc[levels["share"].idxmax()], "final": levels.loc[levels["level"].idxmax()]}
    rows |= {"normalised": table[table["level"].isna()].iloc[0]}
    return {name: row.to_dict() for name, row in rows.items()}


def _dynamic(tables: BranchTables) -> list[dict]:
    """What each method's dynamic exit gives on the test sentences, at the threshold chosen on the validation slice."""
    columns = ("agreement", "agreement_low", "agreement_high", "blocks", "checks", "plain_cost", "fused_cost")
    table = tables.table("dynamic_exit", "method", "threshold", "chosen", "held_out_agreement", *columns)
    return table[table["chosen"]].to_dict("records")


def _fits(tables: BranchTables) -> dict:
    """The fits of the levels' jumps in a few numbers, beside the joint jump's."""
    described = ["fit", "target", "rank", "parameters"]
    numbers = ["distance", "train_mse", "validation_mse", "ridge", "best_epoch"]
    table = tables.table("jumps", "jump", "n_rows", "gap", *described, *numbers[1:])
    kept = tables.kept_divergences()
    # Of a fit by divergence, its divergence on the validation slice; the gap is of another objective.
    table["distance"] = table["gap"] if kept.empty else table["jump"].map(kept)
    single, joint = table[table["jump"] != "joint"], table[table["jump"] == "joint"]
    if single.empty or len(joint) != 1:
        raise tables.error("jumps", f"has {len(single)} single and {len(joint)} joint jumps, expected some and one,")
    worst = single.sort_values("distance", ascending=False).iloc[0]
    return {
        "count": len(single),
        **{name: single[name].iloc[0] for name in described},
        **{name: single[name].median() for name in numbers},
        **{f"{name}_range": (single[name].min(), single[name].max()) for name in ("n_rows", "ridge", "best_epoch")},
        "worst": worst["distance"],
        "worst_jump": worst["jump"],
        "joint": joint.iloc[0].to_dict(),
    }


def _joint_fit(tables: BranchTables) -> dict:
    """The fit of a joint jump alone, and how far its training went."""
    columns = ["fit", "target", "rank", "n_rows", "parameters", "gap", "train_mse", "validation_mse", "ridge"]
    table = tables.table("jumps", "jump", *columns)
    curve = tables.table("curves", "jump", "step", "validation_kl", may_be_empty=True).dropna()
    joint = table[table["jump"] == "joint"]
    if len(joint) != 1:
        raise tables.error("jumps", f"has {len(joint)} joint jumps, expected one,")
    course = curve[curve["jump"] == "joint"].set_index("step")["validation_kl"]
    found = joint.iloc[0].to_dict()
    if not course.empty:
        found |= {"kl_start": course.iloc[0], "kl_best": course.min(), "best_step": int(course.idxmin())}
    return found


def _levels(tables: BranchTables) -> dict:
    """The table of exit levels, without the floor and lenses that no claim is about, and its numbers of sentences."""
    columns = ["precision_at_5", "exit_surprisal", "kl"]
    table = tables.table("levels", "method", "level", "n", *METRIC_COLUMNS, *columns).sort_values("level")
    table = table[~table["method"].isin([*FLOOR_METHODS, *(lens for lens in LENSES if lens not in SHARES)])]
    table = table.sort_values("method", key=lambda methods: methods.map(METHOD_ORDER.index), kind="stable")
    return {"rows": table.to_dict("records"), "n": (int(table["n"].min()), int(table["n"].max()))}
