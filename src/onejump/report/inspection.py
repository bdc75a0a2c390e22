"""The content of a study's file, and the differences between two studies, as text for a terminal."""

import json
from pathlib import Path

import pandas as pd
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
            low, high, mean = map(float, (tensor.min(), tensor.max(), tensor.double().mean()))
            line += f", {low:.4g} to {high:.4g}, mean {mean:.4g}"
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
    content = read_json(path, object)
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

    Studies are given by their folders, `results/<study>`.

    Raises:
        OnejumpError: A study has no summary, or the two have no model, seed and variant in common.
    """
    studies, keys = [Path(first), Path(second)], ["model", "seed", "variant"]

    def read(name: str, *columns: str) -> list[pd.DataFrame]:
        return [read_summary(study / "summary", name, *columns) for study in studies]

    methods, scores = read("methods", *keys, "method", "precision"), read("scores", *keys, "jump", "ojfa")
    chosen = pd.merge(*(table.loc[table["ojfa"], [*keys, "jump"]] for table in scores), on=keys)
    common = pd.merge(*methods, on=[*keys, "method"]).merge(chosen, on=keys)
    if common.empty:
        branches = (table[keys].drop_duplicates().itertuples(index=False) for table in methods)
        found = ["; ".join("/".join(map(str, row)) for row in rows) for rows in branches]
        each = f"the first has {found[0]}, the second {found[1]}"
        raise OnejumpError(f"{studies[0]} and {studies[1]}: no model, seed and variant in common; {each}")
    lines = []
    for (model, seed, variant, *jumps), rows in common.groupby([*keys, "jump_x", "jump_y"], sort=False):
        lines.append(f"{model}, seed {seed}, variant {variant}: jump {jumps[0]} | {jumps[1]}")
        for row in rows.itertuples():
            precision, other = row.precision_x, row.precision_y
            lines.append(f"  {row.method:<20} {precision:.4f} | {other:.4f}  {other - precision:+.4f}")
    claimed = ["model", "variant", "positions", "claim"]
    both = pd.merge(*read("verdicts", *claimed, "verdict"), on=claimed)
    for row in both[both["verdict_x"] != both["verdict_y"]].itertuples():
        where = f"{row.model}, variant {row.variant}, positions {row.positions}"
        lines.append(f"{where}, {row.claim}: {row.verdict_x} | {row.verdict_y}")
    return "\n".join(lines)
