"""The summary tables of a study, as figures and report read them."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from onejump.files.atomic import OnejumpError
from onejump.files.tables import read_table


@dataclass(frozen=True)
class BranchTables:
    """The rows of a study's summary tables about one model, seed and variant."""

    summary: Path
    model: str
    seed: int
    variant: str

    def __str__(self) -> str:
        """What the rows are about, as a message says it."""
        return f"model {self.model}, seed {self.seed}, variant {self.variant}"

    def table(self, name: str, *columns: str, may_be_empty: bool = False) -> pd.DataFrame:
        """Rows of the table `name`, which must have `columns`.

        Raises:
            OnejumpError: the file is missing, is not a table, or has no such rows (unless `may_be_empty`).
        """
        table = read_summary(self.summary, name, "model", "seed", "variant", *columns)
        chosen = (table["model"] == self.model) & (table["seed"] == self.seed) & (table["variant"] == self.variant)
        if not (chosen.any() or may_be_empty):
            raise self.error(name, "has no rows")
        return table[chosen].reset_index(drop=True)

    def selected(self) -> tuple[pd.DataFrame, int]:
        """The scores by jump, and the jump that OJFA selected."""
        scores = self.table("scores", "jump", "score", "softmax", "bootstrap_share", "ojfa")
        scores = scores.astype({"jump": int}).sort_values("jump").set_index("jump")
        if scores["ojfa"].sum() != 1:
            raise self.error("scores", f"marks {scores['ojfa'].sum()} jumps as ojfa, expected one,")
        return scores, int(scores.index[scores["ojfa"]][0])

    def kept_divergences(self) -> pd.Series:
        """Validation KL, in nats, of the step that each jump's fit kept, by jump; empty for fits by squared error."""
        curves = self.table("curves", "jump", "validation_kl", may_be_empty=True).dropna()
        return curves.groupby("jump")["validation_kl"].min()

    def grid(self) -> pd.DataFrame:
        """Precision of each single jump (row) at each exit level (column), in their order."""
        table = self.table("transfer", "jump", "level", "precision").astype({"jump": int})
        return table.pivot(index="jump", columns="level", values="precision").sort_index().sort_index(axis=1)

    def error(self, name: str, found: str) -> OnejumpError:
        """What is wrong with the rows of the table `name`."""
        return OnejumpError(f"{self.summary / name}.parquet: {found} for {self}; rerun summarise")


@dataclass(frozen=True)
class Comparison:
    """What the variants of a model can be compared on: sentences and seeds that all have, or all seeds if none is."""

    summary: Path
    model: str
    seeds: tuple[int, ...]
    positions: str  # `all`, or `1+` if some variants leave first tokens out

    @classmethod
    def of(cls, summary: Path, model: str) -> "Comparison":
        """The widest one that a study's summary tables have."""
        table = read_summary(summary, "by_position", "model", "seed", "variant", "position")
        table = table[table["model"] == model]
        seeds = [set(part) for _, part in table.groupby("variant")["seed"]]
        with_first = table.loc[table["position"] == "0", "variant"].nunique()
        positions = "1+" if 0 < with_first < table["variant"].nunique() else "all"
        return cls(summary, model, tuple(sorted(set.intersection(*seeds) or set.union(*seeds))), positions)

    def verdicts(self) -> pd.DataFrame:
        """Verdicts on the paper's claims [variant, claim] over these seeds, which leave it open where they disagree.

        Of variants that differ in their random choices alone, the first has a row.
        """
        first = read_summary(self.summary, "verdicts", "variant")["variant"]
        table = read_summary(self.summary, "claims", *_BRANCH, "positions", "claim", "claim_verdict")
        table = self._of(table[(table["positions"] == self.positions) & table["variant"].isin(first)])
        found = table.groupby(["variant", "claim"], sort=False)["claim_verdict"].agg(
            lambda verdicts: verdicts.iloc[0] if verdicts.nunique() == 1 else "inconclusive"
        )
        return found.unstack().loc[list(dict.fromkeys(table["variant"]))]

    def means(self) -> pd.DataFrame:
        """variant, method, multiply-adds of a check, precision and surprisal over these seeds and sentences."""
        metrics = ["precision", "surprisal"]
        found = self._of(read_summary(self.summary, "methods", *_BRANCH, "method", "check", *metrics))
        if self.positions != "all":
            by_position = read_summary(self.summary, "by_position", *_BRANCH, "method", "position", "level", *metrics)
            kept = by_position["level"].isna() & (by_position["position"] == self.positions)
            found = found.drop(columns=metrics).merge(self._of(by_position[kept]), on=[*_BRANCH, "method"])
        return found.groupby(["variant", "method"], sort=False)[["check", *metrics]].mean().reset_index()

    def _of(self, table: pd.DataFrame) -> pd.DataFrame:
        return table[(table["model"] == self.model) & table["seed"].isin(self.seeds)]


_BRANCH = ("model", "seed", "variant")


def read_summary(summary: Path, name: str, *columns: str) -> pd.DataFrame:
    """Columns of a summary table; errors as in `read_table`."""
    return read_table(Path(summary) / f"{name}.parquet", list(columns)).to_pandas()
