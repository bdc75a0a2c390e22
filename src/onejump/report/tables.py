"""Reading the CSV tables of a study."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from onejump.files.atomic import OnejumpError, require_file


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
        """Rows of `<name>.csv`, which must have `columns`.

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

    def error(self, name: str, found: str) -> OnejumpError:
        """What is wrong with the rows of `<name>.csv`."""
        return OnejumpError(f"{self.summary / name}.csv: {found} for {self}; rerun summarise")


def read_summary(summary: Path, name: str, *columns: str) -> pd.DataFrame:
    """Read `<name>.csv` of a summary folder; columns and errors as in `read_csv`."""
    return read_csv(Path(summary) / f"{name}.csv", *columns)


def read_csv(path: str | Path, *columns: str) -> pd.DataFrame:
    """Read a table that a stage has written.

    Args:
        path: the file.
        columns: columns that it must have.

    Raises:
        OnejumpError: the file is missing, is not CSV, or lacks a column.
    """
    path = require_file(path)
    text = {"model": str, "variant": str, "jump": str, "revision": str}  # jumps are '0'.. and 'joint'
    try:
        # Only an empty field is missing: a variant may be called "null" or "none".
        table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""], float_precision="round_trip")
    except (ValueError, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OnejumpError(f"{path}: not a table ({reason}); remove the file and rerun its stage") from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise OnejumpError(
            f"{path}: has no column {', '.join(missing)}, only {', '.join(table.columns)}; rerun its stage"
        )
    return table
