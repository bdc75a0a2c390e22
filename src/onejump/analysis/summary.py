"""The tidy tables of a whole study, which figures and report are made from."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from scipy.special import stdtrit

from onejump.analysis import tables
from onejump.analysis.bootstrap import CONFIDENCE
from onejump.analysis.claims import n_parameters
from onejump.analysis.columns import RANK_COLUMNS, SHORTLIST_COLUMNS, STATEMENT_COLUMNS, WITH_INTERVALS
from onejump.analysis.costs import Costs
from onejump.analysis.dynamic_exit import METHODS, dynamic_exit_table
from onejump.analysis.few_checks import few_checks_table
from onejump.analysis.one_jump import claims_against, one_jump_table
from onejump.analysis.reading import EvaluationGrids, read_origins, read_selection
from onejump.exits.columns import JUMP_METHODS, REFERENCE_METHODS
from onejump.files.tables import read_table
from onejump.files.tensors import TensorFile
from onejump.study.layout import Layout
from onejump.study.lenses import LENSES
from onejump.study.variants import refit_of


def study_tables(layout: Layout) -> dict[str, pd.DataFrame]:
    """All tables of a study whose stages have run.

    Raises:
        OnejumpError: a file of the study is missing, damaged, or does not fit the others.
    """
    config = layout.config
    models = [_model_row(layout, model, seed) for model in config["models"] for seed in config["seeds"]]
    parts: dict[str, list[pd.DataFrame]] = {"models": [pd.DataFrame(models)]}
    read_grids = _reader(layout)
    for branch in layout.branches():
        for name, table in _branch_tables(layout, branch, read_grids).items():
            parts.setdefault(name, []).append(table.assign(**branch)[[*branch, *table.columns]])
    # Tables without rows are left out, since pandas would let their columns decide the types of the others.
    whole = {name: pd.concat([part for part in found if len(part)] or found[:1]) for name, found in parts.items()}
    variants = config["variants"]
    refits = {variant: refit_of(variant, variants) for variant in variants}
    whole |= _across_seeds(whole["claims"], whole["one_jump"], whole["scores"], whole["methods"], refits)
    for name, table in whole.items():
        if "jump" in table:  # 0.. and, in some tables, joint
            whole[name] = table.astype({"jump": "string"})
    return {name: whole[name] for name in layout.tables}


def _model_row(layout: Layout, model: str, seed: int) -> dict:
    unembedding = TensorFile(layout.path("unembedding", model=model))
    vocabulary, hidden_size = unembedding.shape("weight")
    positions = read_table(layout.path("positions", model=model, seed=seed), ["split", "starts_with_bos"])
    return {
        "model": model,
        "seed": seed,
        "name": unembedding.metadata["model"],
        **{key: unembedding.metadata[key] for key in ("revision", "dtype")},
        "n_blocks": unembedding.value("n_blocks"),
        "hidden_size": hidden_size,
        "vocabulary": vocabulary,
        "parameters": unembedding.value("parameters"),
        **{f"n_{split}": pc.sum(pc.equal(positions["split"], split)).as_py() for split in ("train", "test")},
        "bos": pc.all(positions["starts_with_bos"]).as_py(),
        "transfer_sentences": layout.config["evaluation"]["transfer_sentences"],
    }


def _branch_tables(layout: Layout, branch: dict, read_grids: Callable[..., EvaluationGrids]) -> dict[str, pd.DataFrame]:
    """The tables of one model, seed and variant."""
    unembedding = TensorFile(layout.path("unembedding", model=branch["model"]))
    vocabulary, hidden_size = unembedding.shape("weight")
    n_blocks = unembedding.value("n_blocks")
    files = {str(level): TensorFile(path) for level, path in enumerate(layout.jumps(**branch))}
    files["joint"] = TensorFile(layout.joint(**branch))
    all_jumps = layout.has_all_jumps(branch["variant"])
    grids = read_grids(**branch)
    selection = read_selection(layout.path("selection", **branch), n_blocks) if all_jumps else {"ojfa": None}

    jumps = pd.DataFrame([tables.jump_row(name, file) for name, file in files.items()]).astype(
        {"converged": "boolean", "gap": float, "optimum_mse": float}
    )
    size = jumps.set_index("jump")["parameters"]
    parameters = {
        "constant": vocabulary,
        "constant_by_position": 2 * vocabulary,
        "token_table": None,
        "identity": 0,
        "identity_temperature": n_blocks,
        "joint": size["joint"],
    }
    if all_jumps:
        parameters |= {
            "middle": size[str(n_blocks // 2)],
            "n_njtc": size.drop("joint").sum(),
            "ojfa": size[str(selection["ojfa"])],
            "arbitrary": size.drop(["joint", str(selection["ojfa"])], errors="ignore").max(),
        }
    lenses = {lens: TensorFile(path) for lens, path in layout.lenses("lens", **branch).items()}
    parameters |= {lens: n_parameters(file) for lens, file in lenses.items()}
    fit_costs = {lens: file.value("multiply_adds") for lens, file in lenses.items()}
    shortlist = pd.DataFrame(columns=SHORTLIST_COLUMNS)
    if layout.has_shortlist(branch["variant"]):
        shortlist = read_table(layout.path("shortlist", **branch), list(SHORTLIST_COLUMNS)).to_pandas()
        parameters["joint_shortlist"] = size["joint"]
    gated = layout.config["variants"][branch["variant"]]["gate"] != "none"
    rank, block = files["joint"].value("rank"), unembedding.value("block_parameters")
    check = next(iter(shortlist.loc[shortlist["chosen"].astype(bool), "check"]), None)
    maps = {lens: tables.map_cost(file) for lens, file in lenses.items()}
    costs = Costs(n_blocks, hidden_size, vocabulary, rank, block, gated, check, maps)
    held_out = _held_out_grids(layout, branch, n_blocks)
    exits = _exits(grids), _exits(held_out)
    found = {
        "levels": tables.levels_table(grids),
        "methods": tables.methods_table(grids, selection["ojfa"], parameters, costs, fit_costs),
        "by_position": tables.positions_table(grids),
        "jumps": jumps,
        "curves": pd.concat([tables.curve(name, file) for name, file in files.items()]),
        "lenses": tables.lens_levels(lenses),
        "dynamic_exit": dynamic_exit_table(*exits, grids.documents, costs),
        "few_checks": few_checks_table(*exits, grids.documents, costs),
        "switches": tables.switches_table(grids, held_out, costs),
        "gates": pd.concat([tables.gates(name, file) for name, file in files.items()]),
        "norms": read_table(layout.of_rows("norms", **branch)).to_pandas().astype({"level": "Int32"}),
        "shortlist": shortlist,
        "one_jump": _against_others(layout, branch, read_grids),
    }
    if layout.generates:
        found["by_origin"] = tables.origins_table(
            grids, read_origins(layout.path("positions", **branch), grids.sentences)
        )
    return found | _selection_tables(layout, branch, grids, selection) if all_jumps else found


def _reader(layout: Layout) -> Callable[..., EvaluationGrids]:
    """A function that reads the evaluation of a branch, and keeps those of a model and seed for the next."""

    @functools.lru_cache(maxsize=len(layout.config["variants"]))
    def read(**branch: str | int) -> EvaluationGrids:
        n_blocks = layout.config["models"][branch["model"]]["blocks"]
        all_jumps = layout.has_all_jumps(branch["variant"])
        methods = {layout.of_rows("references", **branch): REFERENCE_METHODS}
        methods |= {layout.path("evaluation", **branch): (*JUMP_METHODS, "arbitrary") if all_jumps else ("joint",)}
        if layout.has_shortlist(branch["variant"]):
            methods[layout.path("shortlist_evaluation", **branch)] = ("joint_shortlist",)
        methods |= {path: (lens,) for lens, path in layout.lenses("lens_evaluation", **branch).items()}
        about = (layout.path(name, **branch) for name in (layout.texts, "positions"))
        return EvaluationGrids(methods, *about, n_blocks)

    return read


def _held_out_grids(layout: Layout, branch: dict, n_blocks: int) -> EvaluationGrids:
    """The evaluation of the validation slice."""
    jumps = JUMP_METHODS if layout.has_all_jumps(branch["variant"]) else ("joint",)
    methods = {layout.of_rows("references_held_out", **branch): ("token_table", "identity")}
    methods |= {layout.path("held_out", **branch): jumps}
    if layout.has_shortlist(branch["variant"]):
        methods[layout.path("shortlist_held_out", **branch)] = ("joint_shortlist",)
    return EvaluationGrids(methods, *(layout.path(name, **branch) for name in (layout.texts, "positions")), n_blocks)


def _exits(grids: EvaluationGrids) -> dict[str, np.ndarray]:
    """Whether the exits of METHODS are right, and how confident they are: [2, level, sentence]."""
    return {
        method: np.stack([grids.metric(method, name) for name in ("correct", "confidence")])
        for method in METHODS
        if method in grids.methods
    }


def _against_others(layout: Layout, branch: dict, read_grids: Callable[..., EvaluationGrids]) -> pd.DataFrame:
    """The joint jump of a variant that has it alone, against those of all variants that it can be set against."""
    variants, parts = layout.config["variants"], []
    for other in layout.branches() if not layout.has_all_jumps(branch["variant"]) else ():
        claims = claims_against(variants[branch["variant"]], variants[other["variant"]])
        if claims and other == branch | {"variant": other["variant"]}:
            grids = (read_grids(**which) for which in (branch, other))
            table = one_jump_table(*grids, claims, branch["seed"])
            parts.append(table.assign(against=other["variant"]))
    if not parts:
        return pd.DataFrame(columns=["against", *STATEMENT_COLUMNS])
    return pd.concat(parts)[["against", *parts[0].columns.drop("against")]]


def _selection_tables(layout: Layout, branch: dict, grids: EvaluationGrids, selection: dict) -> dict[str, pd.DataFrame]:
    """The tables about the choice among a variant's jumps, which not every variant has."""
    ojfa = selection["ojfa"]
    transfer, claims, oracle = (
        read_table(layout.path(name, **branch)).to_pandas() for name in ("transfer", "claims", "oracle")
    )
    nested = "ranks" in layout.figures(branch["variant"])
    ranks = read_table(layout.path("ranks", **branch)).to_pandas() if nested else pd.DataFrame(columns=RANK_COLUMNS)
    scores = {"score": selection["scores"]} | {name: selection[name] for name in ("softmax", "bootstrap_share")}
    n_jumps = len(selection["scores"])
    return {
        "single_jumps": tables.single_jumps_table(grids, ojfa),
        "transfer": transfer,
        "scores": pd.DataFrame({"jump": range(n_jumps), **scores, "ojfa": np.arange(n_jumps) == ojfa}),
        "claims": claims,
        "oracle": tables.oracle_table(oracle[oracle["jump"].notna()], grids),
        "shared_jumps": tables.shared_jumps_table(grids, ojfa, oracle),
        "ranks": ranks.astype({"jump": "Int32"}),  # null where it is no single jump
    }


def _across_seeds(
    claims: pd.DataFrame,
    one_jump: pd.DataFrame,
    scores: pd.DataFrame,
    methods: pd.DataFrame,
    refits: Mapping[str, str],
) -> dict[str, pd.DataFrame]:
    """What the seeds of each model and variant say together: verdicts, spread of each statistic, selected jumps.

    Variants that differ only in `fit_seed` count as fits of one, which `refits` names for each; one jump is set against
    the first of them alone.
    """

    def groups(table: pd.DataFrame, *names: str):
        return table.groupby(["model", "variant", *names], sort=False, dropna=False)

    def shared(verdicts: pd.Series) -> str | None:  # seeds that disagree leave it open
        return verdicts.iloc[0] if verdicts.nunique(dropna=False) == 1 else "inconclusive"

    def spread(statements: pd.DataFrame, *names: str) -> pd.DataFrame:
        names = (*names, "positions", "claim", "statistic", "metric", "level", "rule", "decides")
        found = _spread(statements, ["model", "variant", *names])
        return found.assign(verdict=groups(statements, *names)["verdict"].agg(shared))

    one = ("positions", "claim")
    verdicts = claims.drop_duplicates(["model", "seed", "variant", *one]).replace({"variant": refits})
    claims, one_jump, refitted = (table.replace({"variant": refits}) for table in (claims, one_jump, methods))
    one_jump = one_jump[one_jump["against"].map(refits) == one_jump["against"]]
    # A reference or lens is one, however many refits it stands beside.
    again = methods["method"].isin((*REFERENCE_METHODS, *LENSES)) & (methods["variant"] != refitted["variant"])
    refitted = refitted[~again]
    means = [refitted.assign(metric=metric, estimate=refitted[metric]) for metric in WITH_INTERVALS]
    tables = {
        "verdicts": groups(verdicts, *one).agg(
            verdict=("claim_verdict", shared),
            seeds=("seed", "nunique"),
            fits=("seed", "size"),
            **{
                name: ("claim_verdict", lambda found, name=name: (found == name).sum())
                for name in ("supported", "contradicted", "inconclusive")
            },
        ),
        "spread": spread(claims),
        "one_jump_spread": spread(one_jump, "against"),
        "methods_spread": _spread(pd.concat(means), ["model", "variant", "method", "metric"]),
        "chosen": groups(scores, "jump").agg(
            seeds=("ojfa", "size"), chosen=("ojfa", "sum"), bootstrap_share=("bootstrap_share", "mean")
        ),
    }
    return {name: table.reset_index() for name, table in tables.items()}


def _spread(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """How the `estimate` of each group spreads over seeds, and over the fits of one seed.

    Returns:
        A row for each group: seeds; fits, of all seeds together; mean, of the seeds' means over their fits; sd, between
        these means; min and max, of all fits; low and high, where three seeds or more have a 95 % t interval for the
        mean of all seeds that there could be; and where a seed has several fits, by the analysis of variance of one
        random factor, sd_fits, between fits to one text, and sd_texts, what is left of sd^2 without it. Fits without an
        estimate do not count, and where a seed has none at all, mean, sd, low, high and sd_texts are null.
    """

    def groups(cells: pd.DataFrame):
        return cells.groupby(by, sort=False, dropna=False)

    of_seed = table.groupby([*by, "seed"], sort=False, dropna=False)["estimate"]
    cells = of_seed.agg(mean="mean", fits="count", variance="var").reset_index()
    cells["freedom"], cells["inverse"] = (cells["fits"] - 1).clip(lower=0), 1 / cells["fits"]
    cells["squares"] = (cells["variance"] * cells["freedom"]).where(cells["freedom"] > 0, 0)
    found = groups(cells).agg(seeds=("seed", "size"), fits=("fits", "sum"), mean=("mean", "mean"), sd=("mean", "std"))
    n = groups(cells)["mean"].count()
    found[["mean", "sd"]] = found[["mean", "sd"]].where(n == found["seeds"])
    found = found.join(groups(table)["estimate"].agg(["min", "max"]))
    reach = stdtrit(n.where(n > 2) - 1, (1 + CONFIDENCE) / 2) * found["sd"] / np.sqrt(n)
    freedom = groups(cells)["freedom"].sum()
    within = groups(cells)["squares"].sum(min_count=1) / freedom.where(freedom > 0)
    between = found["sd"] ** 2 - within * groups(cells)["inverse"].mean()
    ends = {"low": found["mean"] - reach, "high": found["mean"] + reach}
    return found.assign(**ends, sd_fits=np.sqrt(within), sd_texts=np.sqrt(between.clip(lower=0)))
