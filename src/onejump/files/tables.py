"""Parquet tables with page checksums and a digest of each column."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onejump.files.atomic import OnejumpError, atomic_path, require_file
from onejump.files.digests import DIGEST_KEY


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers without nulls; Arrow's own conversion imports pandas, which takes a tenth of a short job."""
    return np.from_dlpack(table[name].combine_chunks())


def _column_digest(table: pa.Table, name: str) -> str:
    """SHA-256 of a column's values."""
    column = table[name].combine_chunks()
    if not pa.types.is_primitive(column.type):
        return hashlib.sha256(_repr(column).encode()).hexdigest()
    if column.null_count or pa.types.is_boolean(column.type):
        filled = column.fill_null(False if pa.types.is_boolean(column.type) else 0)
        parts = [part.to_numpy(zero_copy_only=False) for part in (column.is_valid(), filled)]
    else:
        parts = [np.ones(len(column), bool), numbers(table, name)]
    digest = hashlib.sha256(f"{column.type}".encode())
    for part in parts:
        digest.update(part.tobytes())
    return digest.hexdigest()


def _repr(column: pa.Array) -> str:
    """`repr(column.to_pylist())`; of texts, which repeat, each different one is made once."""
    if pa.types.is_string(column.type):
        column = column.dictionary_encode()
    if not pa.types.is_dictionary(column.type):
        return repr(column.to_pylist())
    texts = np.array([*map(repr, column.dictionary.to_pylist()), "None"], object)
    return f"[{', '.join(texts[column.indices.fill_null(len(texts) - 1).to_numpy()])}]"


def write_table(path: str | Path, table: pa.Table) -> None:
    """Write a Parquet table atomically, with a digest of each column: page checksums do not cover the footer."""
    digests = {f"{DIGEST_KEY}.{name}": _column_digest(table, name) for name in table.column_names}
    table = table.replace_schema_metadata(digests)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def write_frame(path: str | Path, frame) -> None:
    """Write a pandas DataFrame, without its index, as `write_table` does."""
    write_table(path, pa.Table.from_pandas(frame, preserve_index=False))


def read_table(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet table, or some of its columns.

    Raises:
        OnejumpError: The file is missing, damaged, or lacks a column.
    """
    require_file(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found, facts, prefix = file.schema_arrow.names, file.schema_arrow.metadata or {}, f"{DIGEST_KEY}."
            digests = {
                key.decode().removeprefix(prefix): facts[key] for key in facts if key.startswith(prefix.encode())
            }
            if digests and digests.keys() != set(found):  # tables of other programs have no digests
                raise ValueError("its columns are not those that it lists")
            missing = set(columns or ()) - set(found)
            if not missing:
                table = file.read(columns=columns)
                for name in table.column_names if digests else ():
                    if digests[name] != _column_digest(table, name).encode():
                        raise ValueError(f"column {name!r} does not match its checksum")
                return table.replace_schema_metadata(None)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OnejumpError(
            f"{path}: damaged (not a whole Parquet file: {reason}); remove the file and rerun the stage that makes it"
        ) from error
    raise OnejumpError(f"{path}: has no column {', '.join(sorted(missing))}, only {', '.join(found)}")
