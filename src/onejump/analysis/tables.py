"""The tables of one model, seed and variant, from its evaluation and from the metadata of its jumps."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from onejump.analysis.bootstrap import interval
from onejump.analysis.claims import n_parameters
from onejump.analysis.columns import CLAIM_POSITIONS, LENS_COLUMNS, METRIC_COLUMNS, POSITIONS, SCORES, WITH_INTERVALS
from onejump.analysis.costs import Costs
from onejump.analysis.reading import EvaluationGrids
from onejump.exits.columns import METRICS, REFERENCE_METHODS
from onejump.files.tensors import TensorFile
from onejump.jumps.settings import GAP_CONVERGED
from onejump.study.fits import FITS

_COLUMN_OF = {name: column for column, name in WITH_INTERVALS.items()} | {"correct_at_5": "precision_at_5"}


def levels_table(grids: EvaluationGrids) -> pd.DataFrame:
    """Each method at each exit level: the means of all metrics over sentences, with intervals where they have them."""
    metrics = {method: dict(zip(METRICS, values, strict=True)) for method, values in grids.methods.items()}
    return _by_level(metrics, grids.documents)


def _by_level(metrics: dict[str, dict[str, np.ndarray]], documents: np.ndarray) -> pd.DataFrame:
    """Means over sentences of some methods' metrics [level, sentence], with intervals where they have them."""
    bounds = _intervals(
        {(method, name): metrics[method][name] for method in metrics for name in WITH_INTERVALS.values()}, documents
    )
    parts = []
    for method, of_method in metrics.items():
        levels, n = next(iter(of_method.values())).shape
        columns = {"method": method, "level": range(levels), "n": n}
        for name, values in of_method.items():
            column = _COLUMN_OF.get(name, name)
            columns[column] = values.mean(1)
            if (method, name) in bounds:
                columns[f"{column}_low"], columns[f"{column}_high"] = bounds[method, name]
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts)


def methods_table(
    grids: EvaluationGrids,
    ojfa: int | None,
    parameters: dict[str, int | None],
    costs: Costs,
    fit_costs: dict[str, int],
) -> pd.DataFrame:
    """Each method's means over exit levels and sentences, with intervals, its size, its cost and its worst level.

    `fit_cost` is the multiply-adds of a lens's fit, null of other methods, `check` those of one exit check, and
    `check_cost` its share of the full model's. Without `ojfa`, the variant has the joint jump alone.
    """
    names, rows = (*WITH_INTERVALS.values(), "correct_at_5"), []
    methods = {method: {name: grids.metric(method, name) for name in names} for method in grids.methods}
    # Arbitrary jumps have fewer sentences, and so resamples of their own.
    arbitrary = {} if ojfa is None else {"arbitrary": {name: grids.others(name, ojfa).mean(0) for name in names}}
    for alike in filter(None, (methods, arbitrary)):
        for method, columns in _means_over_levels(alike, grids.documents).items():
            grid = alike[method]
            by_level, at_5 = grid["correct"].mean(1), grid["correct_at_5"].mean()
            worst = {"worst_precision": by_level.min(), "worst_level": int(by_level.argmin())}
            check = costs.check(method)
            row = {"method": method, "parameters": parameters[method], "fit_cost": fit_costs.get(method)}
            row |= {"check": check, "check_cost": check / costs.full}
            rows.append(row | columns | {"precision_at_5": at_5} | worst)
    return pd.DataFrame(rows).astype({"parameters": "Int64", "fit_cost": "Int64"})  # null where there is no such number


def switches_table(grids: EvaluationGrids, held_out: EvaluationGrids, costs: Costs) -> pd.DataFrame:
    """Each method with a switch a level to identity, where that has the better precision on the validation slice.

    `identity_levels` are these levels, null for none; `held_out_precision` is the precision there, and `check` the mean
    over levels of a check's multiply-adds. The rest is as in `methods_table`.
    """
    rows, metrics = [], {}
    for method in held_out.methods:
        if method in REFERENCE_METHODS:
            continue
        own, identity = (held_out.metric(name, "correct").mean(1) for name in (method, "identity"))
        switched = identity > own
        metrics[method] = {
            name: np.where(switched[:, None], *(grids.metric(which, name) for which in ("identity", method)))
            for name in WITH_INTERVALS.values()
        }
        checks = np.where(switched, costs.check("identity"), costs.check(method))
        row = {"method": method, "identity_levels": ", ".join(map(str, np.flatnonzero(switched))) or None}
        rows.append(row | {"held_out_precision": np.maximum(own, identity).mean(), "check": checks.mean()})
    means = _means_over_levels(metrics, grids.documents)
    return pd.DataFrame([row | means[row["method"]] for row in rows])


def positions_table(grids: EvaluationGrids, groups: Sequence[str] = tuple(POSITIONS)) -> pd.DataFrame:
    """Each method at each exit level, and over all of them (level null), by the position of the chosen token.

    Groups, of POSITIONS or `all`, without a sentence have no rows.
    """
    parts = []
    for group in groups:
        first, last = POSITIONS.get(group, (0, math.inf))
        kept = (first <= grids.positions) & (grids.positions <= last)
        if not kept.any():
            continue
        documents, names = grids.documents[kept], WITH_INTERVALS.values()
        metrics = {method: {name: grids.metric(method, name)[:, kept] for name in names} for method in grids.methods}
        rows = _means_over_levels(metrics, documents)
        means = [{"method": method, "n": kept.sum()} | row for method, row in rows.items()]
        levels = _by_level(metrics, documents)[["method", "level", "n", *METRIC_COLUMNS]]
        parts.append(pd.concat([pd.DataFrame(means), levels]).assign(position=group))
    return pd.concat(parts).astype({"level": "Int32"})


def origins_table(grids: EvaluationGrids, origins: np.ndarray) -> pd.DataFrame:
    """As `positions_table`, of the corpus and of what the model wrote apart: `origins` [sentence], and a column."""
    parts = {origin: grids.where(origins == origin) for origin in ("corpus", "generated")}
    return pd.concat(
        [
            positions_table(part, CLAIM_POSITIONS).assign(origin=name)
            for name, part in parts.items()
            if len(part.sentences)
        ]
    )


def _means_over_levels(metrics: dict[str, dict[str, np.ndarray]], documents: np.ndarray) -> dict[str, dict[str, float]]:
    """METRIC_COLUMNS of some methods, from their metrics [level, sentence]: means over both, with intervals."""
    means = {(method, name): metrics[method][name].mean(0) for method in metrics for name in WITH_INTERVALS.values()}
    bounds, rows = _intervals(means, documents), {}
    for method in metrics:
        rows[method] = row = {}
        for column, name in WITH_INTERVALS.items():
            low, high = map(float, bounds[method, name])
            row |= {column: means[method, name].mean(), f"{column}_low": low, f"{column}_high": high}
    return rows


def single_jumps_table(grids: EvaluationGrids, ojfa: int) -> pd.DataFrame:
    """OJFA, the joint jump, and mean and quantiles of all other single jumps, by level, on the transfer sentences."""
    parts = []
    for column, name in WITH_INTERVALS.items():
        others = grids.others(name, ojfa)
        by_level = others.mean(2)  # [jump, level]
        columns = {
            "metric": column,
            "level": range(others.shape[1]),
            "ojfa": grids.single_jumps(name)[ojfa].mean(1),
            "joint": grids.metric("joint", name)[:, : others.shape[2]].mean(1),
            "arbitrary_mean": by_level.mean(0),
        }
        quantiles = {f"arbitrary_q{q:02d}": np.quantile(by_level, q / 100, axis=0) for q in (5, 25, 75, 95)}
        parts.append(pd.DataFrame(columns | quantiles))
    return pd.concat(parts)


def oracle_table(oracle: pd.DataFrame, grids: EvaluationGrids) -> pd.DataFrame:
    """How well each score predicts a jump's mean precision over exit levels.

    The oracle is the jump with the best precision on training sentences that no jump was fitted to. Each score is
    compared with it by rank correlation over the jumps (Spearman's) and by regret, the precision lost by taking the
    score's jump. That regret is biased in the oracle's favour, which is the luckiest of K jumps on these sentences;
    `test_regret` is the same loss on the transfer sentences, which chose nothing: it has an interval, and may be
    negative.
    """
    precision, on_test = oracle["precision"], grids.single_jumps("correct").mean(1)  # [jump, sentence]
    signed = {score: sign * oracle[score] for score, sign in SCORES.items()}
    table = pd.DataFrame({"score": list(SCORES), "jump": [int(score.idxmax()) for score in signed.values()]})
    table["oracle"] = best = int(precision.idxmax())
    table["rank_correlation"] = [score.rank().corr(precision.rank()) for score in signed.values()]
    table["regret"] = [precision[best] - precision[jump] for jump in table["jump"]]
    lost = (on_test[best] - on_test[table["jump"]]).T
    low, high = interval(lost, grids.documents[: len(lost)])
    return table.assign(test_regret=lost.mean(0), test_regret_low=low, test_regret_high=high)


def shared_jumps_table(grids: EvaluationGrids, ojfa: int, oracle: pd.DataFrame) -> pd.DataFrame:
    """The two jumps that serve all levels: the error they were fitted to beside the precision they are used for.

    `mse` is Eq. 2's error over all exit levels and `explained` the share by which it is below that of predicting
    mean(Y), both on the training sentences; `held_out_precision` is on their validation slice, precision and surprisal
    on the test sentences.
    """
    rows = []
    for method, jump, own in (("ojfa", ojfa, oracle["jump"] == ojfa), ("joint", None, oracle["jump"].isna())):
        facts = oracle[own].iloc[0].rename({"precision": "held_out_precision"})
        row = {"method": method, "jump": jump, **facts[["mse", "explained", "held_out_precision"]]}
        row |= {column: grids.metric(method, name).mean() for column, name in WITH_INTERVALS.items()}
        rows.append(row)
    return pd.DataFrame(rows).astype({"jump": "Int32"})


def jump_row(name: str, file: TensorFile) -> dict:
    """What a jump's file says about its fit; `name` is the jump's level, or `joint`.

    `converged` is null for closed forms, and gap and optimum are null where there is none to compare with. Adam fits
    have converged if their gap is at most GAP_CONVERGED, KL fits if the divergence came to a plateau.
    """
    facts, gap, converged = file.metadata, file.value("gap"), None
    if "converged" in facts:
        converged = file.value("converged")
    elif FITS[facts["fit"]].course is not None and gap is not None:
        converged = gap <= GAP_CONVERGED
    return {
        "jump": name,
        "fit": facts["fit"],
        **{key: facts[key] for key in ("target", "gate", "scales", "inputs")},
        "rank": file.value("rank"),
        "parameters": n_parameters(file),
        **{key: file.value(key) for key in ("n_rows", "train_mse", "validation_mse", "optimum_mse", "mean_mse")},
        "gap": gap,
        **{key: file.value(key) if key in facts else None for key in ("ridge", "best_epoch")},
        "converged": converged,
    }


def curve(name: str, file: TensorFile) -> pd.DataFrame:
    """The progress of an iterative fit, at the epochs or steps at which it was validated. No rows for other fits."""
    course = FITS[file.metadata["fit"]].course
    columns = ["jump", "step", "gap", "validation_mse", "validation_kl"]
    if course is None:
        return pd.DataFrame(columns=columns)
    table = {"step": file.value("curve_steps"), course.column: file.value("validation_curve")}
    if course.column == "validation_mse":
        optimum, mean = file.value("optimum_mse"), file.value("mean_mse")
        table["gap"] = (np.array(file.value("train_curve")) - optimum) / (mean - optimum)
    return pd.DataFrame(dict.fromkeys(columns) | {"jump": name} | table)


def lens_levels(lenses: Mapping[str, TensorFile]) -> pd.DataFrame:
    """The fit of each lens at each level: its ridge, or its best step, the divergence there, and whether it converged.

    Lenses that are made of derivatives have no rows.
    """
    rows = []
    for lens, file in lenses.items():
        for name in sorted(one for one in file.metadata if one.startswith("level.")):
            facts = file.value(name)
            row = {"lens": lens, "level": int(name.removeprefix("level."))}
            row |= {key: facts.get(key) for key in LENS_COLUMNS[2:]}
            rows.append(row | {"validation_kl": min(facts.get("validation_curve", [math.nan]))})
    kinds = {"ridge": "Float64", "best_step": "Int32", "validation_kl": "Float64", "converged": "boolean"}
    return pd.DataFrame(rows, columns=LENS_COLUMNS).astype(kinds)


def map_cost(file: TensorFile) -> int:
    """Multiply-adds of a lens's map for one state: one for each weight of one level."""
    shapes = [file.shape(name) for name in file.names]
    return sum(math.prod(shape) for shape in shapes if len(shape) == 2) // file.value("n_levels")


def gates(name: str, file: TensorFile) -> pd.DataFrame:
    """The gates of a jump: of the joint one a number for each level, of a level's own one. No rows without gates.

    The level of a gate that is one number for all levels is null.
    """
    values = file.array("gates").tolist() if "gates" in file.names else []
    if file.metadata["gate"] != "level":
        levels = [None] * len(values)
    else:
        levels = range(len(values)) if name == "joint" else [int(name)]
    return pd.DataFrame({"jump": name, "level": pd.array(levels, "Int32"), "gate": pd.array(values, "Float64")})


def _intervals(
    columns: dict[tuple[str, str], np.ndarray], documents: np.ndarray
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Interval of the mean over the last axis of each entry, which share the resamples: some of the first sentences."""
    values = np.stack([np.moveaxis(values, -1, 0) for values in columns.values()], 1)
    bounds = interval(values, documents[: len(values)])
    return dict(zip(columns, zip(*bounds, strict=True), strict=True))
