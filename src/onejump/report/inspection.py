"""The content of a study's file, and the differences between two studies, as text for a terminal."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from onejump.files.atomic import OnejumpError, read_json, require_file
from onejump.files.digests import DIGEST_KEY
from onejump.files.sealed import read_sealed_json
from onejump.files.tables import read_table
from onejump.files.tensors import TensorFile
from onejump.report.tables import read_summary

LONGEST = 100  # characters of a value in a line


def describe(path: str | Path) -> str:
    """A file's content in a few lines: its metadata, and each tensor, column or value. All digests are verified.

    Raises:
        OnejumpError: The file is missing, damaged, or of a kind that no stage writes.
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
    parts = [f"  {name}: {kind}"]
    if column.null_count:
        parts.append(f"{column.null_count:,} null")
    if column.null_count < len(column):
        parts += _describe_values(column.cast(kind).drop_null(), kind)
    return ", ".join(parts)


def _describe_values(values: pa.ChunkedArray, kind: pa.DataType) -> list[str]:
    """What is said of values, at least one and none of them null; nothing where there is no short way to."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.min_max(pc.list_value_length(values)).as_py()
        return [f"{lengths['min']} to {lengths['max']} values each"]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found = pc.unique(values).to_pylist()
        return [_shortened(", ".join(found)) if len(found) <= 8 else f"{len(found):,} different values"]
    if pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind):
        limits = pc.min_max(values).as_py()
        return [f"{limits['min']} to {limits['max']}"]
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return []
    numbers = values.cast(pa.float64(), safe=False)
    limits = pc.min_max(numbers).as_py()
    return [f"{limits['min']:.4g} to {limits['max']:.4g}", f"mean {pc.mean(numbers).as_py():.4g}"]


def _describe_json(path: Path) -> list[str]:
    content = read_json(path)
    if isinstance(content, dict) and DIGEST_KEY in content:
        content = read_sealed_json(path)
    if not isinstance(content, dict | list):
        return [f"  {_shortened(json.dumps(content))}"]
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    return [f"  {key}: {_shortened(json.dumps(value))}" for key, value in pairs]


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def compare(first: str | Path, second: str | Path) -> str:
    """The branches that two studies share, side by side: chosen jumps, mean precision of each method, and verdicts.

    Args:
        first: A study's folder, `results/<study>`.
        second: The other study's folder.

    Raises:
        OnejumpError: A study has no summary, or the two have no model, seed and variant in common.
    """
    studies, branch_columns = [Path(first), Path(second)], ["model", "seed", "variant"]
    methods, scores, verdicts = (
        [read_summary(study / "summary", name, *columns) for study in studies]
        for name, columns in (
            ("methods", [*branch_columns, "method", "precision"]),
            ("scores", [*branch_columns, "jump", "ojfa"]),
            ("verdicts", ["model", "variant", "claim", "verdict"]),
        )
    )
    branches = [table[branch_columns].drop_duplicates() for table in methods]
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
            table[(table[branch_columns] == list(branch)).all(axis=1)].set_index("method")["precision"]
            for table in methods
        ]
        chosen = [
            table[(table[branch_columns] == list(branch)).all(axis=1) & table["ojfa"]]["jump"].item()
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
