"""From the stages' files to the tidy tables that figures and report are made from."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from onejump.analysis.bootstrap import interval
from onejump.analysis.columns import RANK_COLUMNS, SCORES
from onejump.analysis.dynamic_exit import METHODS, Costs, dynamic_exit_table
from onejump.analysis.grids import EVERY_SENTENCE_METHODS, EvaluationGrids
from onejump.analysis.selection import read_selection
from onejump.exits.columns import METRICS
from onejump.files.atomic import atomic_path
from onejump.files.tables import read_table
from onejump.files.tensors import TensorFile
from onejump.study.fits import FITS
from onejump.study.variants import joint_of, jumps_of, seeds_of

BRANCH_TABLES = (
    *("models", "levels", "methods", "single_jumps", "transfer", "jumps", "curves", "scores", "claims"),
    *("oracle", "shared_jumps", "dynamic_exit", "ranks"),
)


ACROSS_SEEDS_TABLES = ("verdicts", "spread", "chosen")


TABLES = (*BRANCH_TABLES, *ACROSS_SEEDS_TABLES)


BOOTSTRAP_SEED = 0


JOINT = -1  # the joint jump among single jumps, in an index


_BOUNDED = {"correct": "precision", "surprisal": "surprisal"}  # what has intervals, and its column


def summarise(results: str | Path, config: dict, folder: str | Path) -> None:
    """Stage `summarise`: all tables of a study, as `<folder>/<table>.csv` for each name in TABLES.

    Args:
        results: the study's folder, `results/<study>`.
        config: the study's config with all defaults filled in.
        folder: where the tables go.

    Raises:
        OnejumpError: a file of the study is missing, damaged, or does not fit the others.
    """
    results = Path(results)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in BRANCH_TABLES}
    for model in config["models"]:
        unembedding = TensorFile(results / model / "unembedding.safetensors")
        shape = unembedding.shape("weight")
        for seed in config["seeds"]:
            branch = results / model / f"seed-{seed}"
            tables["models"].append(_model_table(model, seed, unembedding, shape, branch, config))
            for variant, choices in config["variants"].items():
                if seed not in seeds_of(variant, config):
                    continue
                key = {"model": model, "seed": seed, "variant": variant}
                shared = f"{choices['target']}.{choices['positions']}"
                jtc = branch / "jtc" / f"{shared}.safetensors"
                references = branch / "references" / f"{shared}.parquet"
                jumps, joint = (branch / of(variant, config["variants"]) / "jumps" for of in (jumps_of, joint_of))
                files = {str(k): jumps / f"level-{k:02d}.safetensors" for k in range(unembedding.value("n_blocks"))}
                files["joint"] = joint / "joint.safetensors"
                for name, table in _variant_tables(
                    branch / variant, files, jtc, references, unembedding, shape
                ).items():
                    tables[name].append(table.assign(**key)[[*key, *table.columns]])
    whole = {name: pd.concat([part for part in parts if len(part)] or parts[:1]) for name, parts in tables.items()}
    for name, table in (whole | _across_seeds(whole["claims"], whole["scores"])).items():
        with atomic_path(Path(folder) / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)


def _model_table(
    model: str, seed: int, unembedding: TensorFile, shape: tuple[int, int], branch: Path, config: dict
) -> pd.DataFrame:
    positions = read_table(branch / "positions.parquet", ["split", "starts_with_bos"])
    split = positions["split"]
    row = {
        "model": model,
        "seed": seed,
        "name": unembedding.metadata["model"],
        "revision": unembedding.metadata["revision"],
        "dtype": unembedding.metadata["dtype"],
        "n_blocks": unembedding.value("n_blocks"),
        "hidden_size": shape[1],
        "vocabulary": shape[0],
        "parameters": unembedding.value("parameters"),
        "n_train": pc.sum(pc.equal(split, "train")).as_py(),
        "n_test": pc.sum(pc.equal(split, "test")).as_py(),
        "bos": pc.all(positions["starts_with_bos"]).as_py(),
        "transfer_sentences": config["evaluation"]["transfer_sentences"],
    }
    return pd.DataFrame([row])


def _variant_tables(
    folder: Path, jumps: dict[str, Path], jtc: Path, references: Path, unembedding: TensorFile, shape: tuple[int, int]
) -> dict[str, pd.DataFrame]:
    jump_files, n_blocks = {name: TensorFile(path) for name, path in jumps.items()}, len(jumps) - 1
    selection = read_selection(folder / "selection.json", n_blocks)
    ojfa = selection["ojfa"]
    grids = EvaluationGrids(references, folder / "evaluation.parquet", n_blocks)
    jumps = pd.DataFrame([_jump_row(name, file) for name, file in jump_files.items()])
    size = jumps.set_index("jump")["parameters"]
    parameters = {
        "identity": 0,
        "n_njtc": size.drop("joint").sum(),
        "ojfa": size[str(ojfa)],
        "joint": size["joint"],
        "jtc": n_parameters(TensorFile(jtc)),
        "arbitrary": size.drop(["joint", str(ojfa)], errors="ignore").max(),
    }
    transfer = read_table(folder / "transfer.parquet").to_pandas()
    metrics = ({method: grids.metric(method, name) for method in METHODS} for name in ("correct", "confidence"))
    costs = Costs(
        n_blocks, shape[1], shape[0], jump_files["joint"].value("rank"), unembedding.value("block_parameters")
    )
    nested = FITS[jump_files["joint"].metadata["fit"]].nested
    ranks = read_table(folder / "ranks.parquet").to_pandas() if nested else pd.DataFrame(columns=RANK_COLUMNS)
    oracle = read_table(folder / "oracle.parquet").to_pandas()
    return {
        "levels": _levels_table(grids),
        "methods": _methods_table(grids, ojfa, parameters),
        "single_jumps": _single_jumps_table(grids, ojfa),
        "transfer": transfer,
        "jumps": jumps,
        "curves": pd.concat([_curve(name, file) for name, file in jump_files.items()]),
        "scores": pd.DataFrame(
            {
                "jump": range(n_blocks),
                "score": selection["scores"],
                "softmax": selection["softmax"],
                "bootstrap_share": selection["bootstrap_share"],
                "ojfa": [m == ojfa for m in range(n_blocks)],
            }
        ),
        "claims": read_table(folder / "claims.parquet").to_pandas(),
        "oracle": _oracle_table(oracle[oracle["jump"].notna()], transfer),
        "shared_jumps": _shared_jumps_table(grids, ojfa, oracle.set_index(oracle["jump"].fillna(JOINT).astype(int))),
        "dynamic_exit": dynamic_exit_table(*metrics, costs),
        "ranks": ranks.astype({"jump": "Int32"}),  # null where it is no single jump
    }


def _across_seeds(claims: pd.DataFrame, scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What the seeds of each model and variant say together: verdicts, the spread of each statistic, jumps chosen."""

    def groups(table: pd.DataFrame, *names: str):
        return table.groupby(["model", "variant", *names], sort=False, dropna=False)

    verdicts = (
        groups(claims.drop_duplicates(["model", "seed", "variant", "claim"]), "claim")["claim_verdict"]
        .agg(
            # Seeds that disagree leave a claim open.
            verdict=lambda found: found.iloc[0] if found.nunique() == 1 else "inconclusive",
            seeds="size",
            supported=lambda found: (found == "supported").sum(),
            contradicted=lambda found: (found == "contradicted").sum(),
            inconclusive=lambda found: (found == "inconclusive").sum(),
        )
        .reset_index()
    )
    spread = (
        groups(claims, "claim", "statistic", "metric", "level")["estimate"]
        .agg(seeds="size", mean="mean", sd="std", min="min", max="max")
        .reset_index()
    )
    chosen = (
        groups(scores, "jump")
        .agg(seeds=("ojfa", "size"), chosen=("ojfa", "sum"), bootstrap_share=("bootstrap_share", "mean"))
        .reset_index()
    )
    return dict(zip(ACROSS_SEEDS_TABLES, (verdicts, spread, chosen), strict=True))


def _intervals(columns: dict[tuple[str, str], np.ndarray]) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Interval of the mean over the last axis of each entry; entries of equal shape share the resamples."""
    low, high = interval(np.stack([np.moveaxis(values, -1, 0) for values in columns.values()], 1), BOOTSTRAP_SEED)
    return dict(zip(columns, zip(low, high, strict=True), strict=True))


def _levels_table(grids: EvaluationGrids) -> pd.DataFrame:
    parts = []
    bounds = _intervals({(method, name): grids.metric(method, name) for method in grids.methods for name in _BOUNDED})
    for method, values in grids.methods.items():
        n_levels, n = values.shape[1:]
        means = dict(zip(METRICS, values.mean(2), strict=True))
        parts.append(
            pd.DataFrame(
                {
                    "method": method,
                    "level": range(n_levels),
                    "n": n,
                    "precision": means["correct"],
                    "precision_low": bounds[method, "correct"][0],
                    "precision_high": bounds[method, "correct"][1],
                    "precision_at_5": means["correct_at_5"],
                    "surprisal": means["surprisal"],
                    "surprisal_low": bounds[method, "surprisal"][0],
                    "surprisal_high": bounds[method, "surprisal"][1],
                    "exit_surprisal": means["exit_surprisal"],
                    "kl": means["kl"],
                    "confidence": means["confidence"],
                }
            )
        )
    return pd.concat(parts)


def _methods_table(grids: EvaluationGrids, ojfa: int, parameters: dict[str, int]) -> pd.DataFrame:
    rows, names = [], (*_BOUNDED, "correct_at_5")
    methods = {method: {name: grids.metric(method, name) for name in names} for method in EVERY_SENTENCE_METHODS}
    arbitrary = {"arbitrary": {name: grids.others(name, ojfa).mean(0) for name in names}}  # of fewer sentences
    bounds = {}
    for alike in (methods, arbitrary):
        bounds |= _intervals({(method, name): alike[method][name].mean(0) for method in alike for name in _BOUNDED})
    for method, grid in (methods | arbitrary).items():
        row = {"method": method, "parameters": parameters[method]}
        for name, column in _BOUNDED.items():
            low, high = bounds[method, name]
            row |= {column: grid[name].mean(0).mean(), f"{column}_low": float(low), f"{column}_high": float(high)}
        by_level = grid["correct"].mean(1)
        row |= {"precision_at_5": grid["correct_at_5"].mean()}
        row |= {"worst_precision": by_level.min(), "worst_level": int(by_level.argmin())}
        rows.append(row)
    return pd.DataFrame(rows)


def _single_jumps_table(grids: EvaluationGrids, ojfa: int) -> pd.DataFrame:
    parts = []
    for name, column in _BOUNDED.items():
        n_transfer = grids.arbitrary.shape[3]
        others = grids.others(name, ojfa).mean(2)  # [jump, level]
        parts.append(
            pd.DataFrame(
                {
                    "metric": column,
                    "level": range(others.shape[1]),
                    "ojfa": grids.arbitrary[METRICS.index(name), ojfa].mean(1),
                    "joint": grids.metric("joint", name)[:, :n_transfer].mean(1),
                    "arbitrary_mean": others.mean(0),
                    **{f"arbitrary_q{q:02d}": np.quantile(others, q / 100, axis=0) for q in (5, 25, 75, 95)},
                }
            )
        )
    return pd.concat(parts)


def _oracle_table(oracle: pd.DataFrame, transfer: pd.DataFrame) -> pd.DataFrame:
    """How well each score foretells a jump's mean precision over exit levels.

    Against the oracle, the jump with the best precision on training sentences that no jump was fitted to: the rank
    correlation (Spearman) over jumps, and the regret, the precision lost by the score's jump. The oracle has picked the
    luckiest of K there; `test_regret` is the same loss on the transfer sentences, and may be negative.
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


def _shared_jumps_table(grids: EvaluationGrids, ojfa: int, oracle: pd.DataFrame) -> pd.DataFrame:
    """The two jumps that serve all levels: what they were fitted for beside what they are used for.

    `mse` and `explained` (Eq. 2's error over all exit levels, and by what share it is below mean(Y)'s) are of the
    training sentences, `held_out_precision` of their validation slice, precision and surprisal of the test sentences.
    """
    rows = []
    for method, jump in (("ojfa", ojfa), ("joint", JOINT)):
        facts = oracle.loc[jump]
        means = {column: grids.metric(method, name).mean() for name, column in _BOUNDED.items()}
        rows.append(
            {
                "method": method,
                "jump": None if jump == JOINT else jump,
                "mse": facts["mse"],
                "explained": facts["explained"],
                "held_out_precision": facts["precision"],
                **means,
            }
        )
    return pd.DataFrame(rows).astype({"jump": "Int32"})


def _jump_row(name: str, file: TensorFile) -> dict:
    facts = file.metadata
    return {
        "jump": name,
        "fit": facts["fit"],
        "target": facts["target"],
        "rank": file.value("rank"),
        "parameters": n_parameters(file),
        "n_rows": file.value("n_rows"),
        "train_mse": file.value("train_mse"),
        "validation_mse": file.value("validation_mse"),
        "optimum_mse": file.value("optimum_mse"),
        "mean_mse": file.value("mean_mse"),
        "gap": file.value("gap"),
        "ridge": file.value("ridge") if "ridge" in facts else None,
        "best_epoch": file.value("best_epoch") if "best_epoch" in facts else None,
    }


def n_parameters(file: TensorFile) -> int:
    """How many numbers a fitted file holds: what inference needs of it."""
    return sum(tensor.numel() for tensor in file.tensors().values())


def _curve(name: str, file: TensorFile) -> pd.DataFrame:
    """The course of an iterative fit, at the epochs or steps at which it was validated."""
    course = FITS[file.metadata["fit"]].course
    columns = ["jump", "step", "gap", "validation_mse", "validation_kl"]
    if course is None:
        return pd.DataFrame(columns=columns)
    table = {"step": file.value("curve_steps"), course.column: file.value("validation_curve")}
    if course.column == "validation_mse":
        optimum, mean = file.value("optimum_mse"), file.value("mean_mse")
        table["gap"] = (np.array(file.value("train_curve")) - optimum) / (mean - optimum)
    return pd.DataFrame(dict.fromkeys(columns) | {"jump": name} | table)
