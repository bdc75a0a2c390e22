"""The tables of one model, seed and variant, from its evaluation and from the metadata of its jumps."""

import numpy as np
import pandas as pd

from onejump.analysis.bootstrap import interval
from onejump.analysis.claims import n_parameters
from onejump.analysis.columns import SCORES, WITH_INTERVALS
from onejump.analysis.grids import EVERY_SENTENCE_METHODS, EvaluationGrids
from onejump.exits.columns import METRICS
from onejump.files.tensors import TensorFile
from onejump.study.fits import FITS

BOOTSTRAP_SEED = 0
_COLUMN_OF = {name: column for column, name in WITH_INTERVALS.items()} | {"correct_at_5": "precision_at_5"}


def levels_table(grids: EvaluationGrids) -> pd.DataFrame:
    """Each method at each exit level: the means of all metrics over sentences, with intervals where they have them."""
    bounds = _intervals(
        {(method, name): grids.metric(method, name) for method in grids.methods for name in WITH_INTERVALS.values()}
    )
    parts = []
    for method, values in grids.methods.items():
        n_levels, n = values.shape[1:]
        columns = {"method": method, "level": range(n_levels), "n": n}
        for name, means in zip(METRICS, values.mean(2), strict=True):
            column = _COLUMN_OF.get(name, name)
            columns[column] = means
            if (method, name) in bounds:
                columns[f"{column}_low"], columns[f"{column}_high"] = bounds[method, name]
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts)


def methods_table(grids: EvaluationGrids, ojfa: int, parameters: dict[str, int]) -> pd.DataFrame:
    """Each method's means over exit levels and sentences, with intervals, its size and its worst level.

    Args:
        grids: the evaluation.
        ojfa: the selected jump.
        parameters: method -> how many numbers it needs at inference.
    """
    names = (*WITH_INTERVALS.values(), "correct_at_5")
    methods = {method: {name: grids.metric(method, name) for name in names} for method in EVERY_SENTENCE_METHODS}
    # Arbitrary jumps have fewer sentences, and so resamples of their own.
    arbitrary = {"arbitrary": {name: grids.others(name, ojfa).mean(0) for name in names}}
    bounds, rows = {}, []
    for alike in (methods, arbitrary):
        bounds |= _intervals(
            {(method, name): alike[method][name].mean(0) for method in alike for name in WITH_INTERVALS.values()}
        )
    for method, grid in (methods | arbitrary).items():
        row = {"method": method, "parameters": parameters[method]}
        for column, name in WITH_INTERVALS.items():
            low, high = bounds[method, name]
            row |= {column: grid[name].mean(0).mean(), f"{column}_low": float(low), f"{column}_high": float(high)}
        by_level = grid["correct"].mean(1)
        row |= {"precision_at_5": grid["correct_at_5"].mean()}
        row |= {"worst_precision": by_level.min(), "worst_level": int(by_level.argmin())}
        rows.append(row)
    return pd.DataFrame(rows)


def single_jumps_table(grids: EvaluationGrids, ojfa: int) -> pd.DataFrame:
    """OJFA, the joint jump, and mean and quantiles of all other single jumps, by level, on the transfer sentences."""
    parts = []
    n_transfer = grids.arbitrary.shape[3]
    for column, name in WITH_INTERVALS.items():
        others = grids.others(name, ojfa).mean(2)  # [jump, level]
        columns = {
            "metric": column,
            "level": range(others.shape[1]),
            "ojfa": grids.single_jumps(name)[ojfa].mean(1),
            "joint": grids.metric("joint", name)[:, :n_transfer].mean(1),
            "arbitrary_mean": others.mean(0),
        }
        quantiles = {f"arbitrary_q{q:02d}": np.quantile(others, q / 100, axis=0) for q in (5, 25, 75, 95)}
        parts.append(pd.DataFrame(columns | quantiles))
    return pd.concat(parts)


def oracle_table(oracle: pd.DataFrame, transfer: pd.DataFrame) -> pd.DataFrame:
    """How well each score predicts a jump's mean precision over exit levels.

    The oracle is the jump with the best precision on training sentences that no jump was fitted to. Each score is
    compared with it by rank correlation over the jumps (Spearman's) and by regret, the precision lost by taking the
    score's jump. That regret is biased in the oracle's favour, which is the luckiest of K jumps on these sentences;
    `test_regret` is the same loss on the transfer sentences, and may be negative.

    Args:
        oracle: d_m, cosine, squared_cosine, mse and precision of each single jump, on those training sentences.
        transfer: jump, level and precision on the transfer sentences.
    """
    precision, rows = oracle["precision"], []
    on_test = transfer.groupby("jump")["precision"].mean()
    best = int(precision.idxmax())
    for score, sign in SCORES.items():
        jump = int((sign * oracle[score]).idxmax())
        rows.append(
            {
                "score": score,
                "jump": jump,
                "oracle": best,
                "rank_correlation": (sign * oracle[score]).rank().corr(precision.rank()),
                "regret": precision[best] - precision[jump],
                "test_regret": on_test[best] - on_test[jump],
            }
        )
    return pd.DataFrame(rows)


def shared_jumps_table(grids: EvaluationGrids, ojfa: int, oracle: pd.DataFrame) -> pd.DataFrame:
    """The two jumps that serve all levels: the error they were fitted to beside the precision they are used for.

    `mse` is Eq. 2's error over all exit levels and `explained` the share by which it is below that of predicting
    mean(Y), both on the training sentences; `held_out_precision` is on their validation slice, precision and surprisal
    on the test sentences.
    """
    rows = []
    for method, own in (("ojfa", oracle["jump"] == ojfa), ("joint", oracle["jump"].isna())):
        facts = oracle[own].iloc[0]
        rows.append(
            {
                "method": method,
                "jump": ojfa if method == "ojfa" else None,
                "mse": facts["mse"],
                "explained": facts["explained"],
                "held_out_precision": facts["precision"],
                **{column: grids.metric(method, name).mean() for column, name in WITH_INTERVALS.items()},
            }
        )
    return pd.DataFrame(rows).astype({"jump": "Int32"})


def jump_row(name: str, file: TensorFile) -> dict:
    """What a jump's file says about its fit; `name` is the jump's level, or `joint`."""
    facts = file.metadata
    return {
        "jump": name,
        "fit": facts["fit"],
        "target": facts["target"],
        "rank": file.value("rank"),
        "parameters": n_parameters(file),
        **{key: file.value(key) for key in ("n_rows", "train_mse", "validation_mse", "optimum_mse", "mean_mse", "gap")},
        **{key: file.value(key) if key in facts else None for key in ("ridge", "best_epoch")},
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


def _intervals(columns: dict[tuple[str, str], np.ndarray]) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Interval of the mean over the last axis of each entry; entries of equal shape share the resamples."""
    low, high = interval(np.stack([np.moveaxis(values, -1, 0) for values in columns.values()], 1), BOOTSTRAP_SEED)
    return dict(zip(columns, zip(low, high, strict=True), strict=True))
