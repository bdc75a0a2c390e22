"""What is in a file of a study, and how two studies differ, as text for a terminal."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from onejump.files.atomic import OnejumpError, read_json, require_file
from onejump.files.tables import read_table
from onejump.files.tensors import TensorFile

LONGEST = 100  # characters of a value in a line


def describe(path: str | Path) -> str:
    """Summarise a file's content in a few lines: its metadata, and each tensor, column or value. Digests are verified.

    Raises:
        OnejumpError: the file is missing, damaged, or of a kind that no stage writes.
    """
    path = require_file(path)
    readers = {".safetensors": _describe_tensors, ".parquet": _describe_table, ".json": _describe_json}
    if path.suffix not in readers:
        raise OnejumpError(f"{path}: no stage writes {path.suffix or 'such'} files; give one of {', '.join(readers)}")
    return "\n".join([str(path), *readers[path.suffix](path)])


def _describe_tensors(path: Path) -> list[str]:
    file = TensorFile(path)
    facts = {key: value for key, value in sorted(file.metadata.items()) if not key.startswith("sha256.")}
    lines = [f"  {key}: {_shortened(value)}" for key, value in facts.items()]
    for name in file.names:
        tensor = file.tensor(name)
        line = f"  {name}: {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        if tensor.numel():
            line += (
                f", {float(tensor.min()):.4g} to {float(tensor.max()):.4g}, mean {float(tensor.double().mean()):.4g}"
            )
        lines.append(line)
    return lines


def _describe_table(path: Path) -> list[str]:
    table = read_table(path)
    return [f"  {len(table):,} rows", *(_describe_column(table, name) for name in table.column_names)]


def _describe_column(table: pa.Table, name: str) -> str:
    column = table[name]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    line = f"  {name}: {kind}"
    if pa.types.is_list(kind):
        lengths = pc.list_value_length(column)
        return f"{line}, {pc.min(lengths)} to {pc.max(lengths)} values each"
    if pa.types.is_string(kind):
        found = pc.unique(column.cast(kind)).to_pylist()
        return f"{line}, {_shortened(', '.join(found)) if len(found) <= 8 else f'{len(found):,} different values'}"
    if column.null_count:
        line += f", {column.null_count:,} null"
    if column.null_count < len(column):
        values = column.cast(pa.float64()) if not pa.types.is_boolean(kind) else column.cast(pa.int8())
        limits = pc.min_max(values)
        line += f", {limits['min'].as_py():.4g} to {limits['max'].as_py():.4g}, mean {pc.mean(values).as_py():.4g}"
    return line


def _describe_json(path: Path) -> list[str]:
    content = read_json(path)
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    return [f"  {key}: {_shortened(json.dumps(value))}" for key, value in pairs]


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def compare(first: str | Path, second: str | Path) -> str:
    """Two studies side by side: selected jumps, mean precision of each method, and verdicts that differ.

    Args:
        first: a study's folder, `results/<study>`.
        second: another's.

    Raises:
        OnejumpError: a study has no summary, or the two have no model and variant in common.
    """
    studies = [Path(first), Path(second)]
    methods, scores, verdicts = (_pair(studies, name) for name in ("methods", "scores", "verdicts"))
    branches = [table[["model", "seed", "variant"]].drop_duplicates() for table in methods]
    common = branches[0].merge(branches[1])
    if common.empty:
        found = ["; ".join("/".join(map(str, row)) for row in table.itertuples(index=False)) for table in branches]
        raise OnejumpError(
            f"{studies[0]} and {studies[1]}: no model, seed and variant in common; the first has {found[0]}, the "
            f"second {found[1]}"
        )
    lines = []
    for branch in common.itertuples(index=False):
        own = [
            table[(table[["model", "seed", "variant"]] == list(branch)).all(axis=1)].set_index("method")["precision"]
            for table in methods
        ]
        chosen = [
            table[(table[["model", "seed", "variant"]] == list(branch)).all(axis=1) & table["ojfa"]]["jump"].item()
            for table in scores
        ]
        lines.append(f"{branch.model}, seed {branch.seed}, variant {branch.variant}: jump {chosen[0]} | {chosen[1]}")
        lines += [
            f"  {method:<10} {own[0][method]:.4f} | {own[1][method]:.4f}  {own[1][method] - own[0][method]:+.4f}"
            for method in own[0].index
        ]
    both = verdicts[0].merge(verdicts[1], on=["model", "variant", "claim"])
    for row in both[both["verdict_x"] != both["verdict_y"]].itertuples():
        lines.append(f"{row.model}, variant {row.variant}, {row.claim}: {row.verdict_x} | {row.verdict_y}")
    return "\n".join(lines)


def _pair(studies: list[Path], name: str) -> list[pd.DataFrame]:
    return [pd.read_csv(require_file(study / "summary" / f"{name}.csv"), dtype={"variant": str}) for study in studies]
