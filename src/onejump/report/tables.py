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

    def grid(self) -> pd.DataFrame:
        """Precision of each single jump (row) at each exit level (column), in their order."""
        table = self.table("transfer", "jump", "level", "precision").astype({"jump": int})
        return table.pivot(index="jump", columns="level", values="precision").sort_index().sort_index(axis=1)

    def error(self, name: str, found: str) -> OnejumpError:
        """What is wrong with the rows of the table `name`."""
        return OnejumpError(f"{self.summary / name}.parquet: {found} for {self}; rerun summarise")


def read_summary(summary: Path, name: str, *columns: str) -> pd.DataFrame:
    """Columns of a summary table; errors as in `read_table`."""
    return read_table(Path(summary) / f"{name}.parquet", list(columns)).to_pandas()
