"""Files between the stages: written whole or not at all, and checked when read.

Two formats: safetensors for tensors, Parquet for tables. A safetensors file carries its own SHA-256 digests (one for
each tensor, one for the header), since the format itself would not notice a flipped byte. Parquet pages carry
checksums.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIGEST_KEY = "sha256"
DEVICE_LINE = "onejump: runs on "  # begins the log of each job that computes
_UMASK = os.umask(0)
os.umask(_UMASK)


class OnejumpError(Exception):
    """What a user can mend: one line that says what, what was found, what was expected, and what to do."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it when the block ends well and removed when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_UMASK)  # safetensors makes files that only their owner can read
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically, with sorted keys so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: str | Path) -> dict:
    """Read a JSON object.

    Raises:
        OnejumpError: the file is missing or is not JSON.
    """
    require_file(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise OnejumpError(
            f"{path}: not valid JSON ({error}); remove the file and rerun the stage that makes it"
        ) from error


def require_file(path: str | Path) -> Path:
    """Return `path` if it is a file, else raise OnejumpError."""
    path = Path(path)
    if not path.is_file():
        raise OnejumpError(f"{path}: no such file; run the stage that makes it, or mend the path")
    return path


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(require_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: str | Path, sha256: str, name: str | None = None) -> None:
    """Raise OnejumpError unless the file at `path` has the digest; `name` is what the message calls the file."""
    found = sha256_of_file(path)
    if found != sha256:
        raise OnejumpError(
            f"{name or path}: its sha256 is {found}, expected {sha256}; fetch it again or correct the config"
        )


# ------------------------------------------------------------------------------------------------------- safetensors


def _tensor_digest(tensor) -> str:
    """SHA-256 of dtype, shape and values of a tensor on the CPU."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()


def _header_digest(metadata: Mapping[str, str]) -> str:
    """SHA-256 of all metadata, the tensors' digests included: the identity of the file's content."""
    content = {key: value for key, value in metadata.items() if key != DIGEST_KEY}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_tensors(path: str | Path, tensors: Mapping, metadata: Mapping[str, object]) -> str:
    """Write tensors and metadata atomically to a safetensors file.

    Args:
        path: the file's final name.
        tensors: name -> tensor (any device; copied to the CPU).
        metadata: name -> value; values other than strings are stored as JSON.

    Returns:
        The SHA-256 of the content (tensors and metadata), also stored under `sha256`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    header |= {f"{DIGEST_KEY}.{name}": _tensor_digest(tensor) for name, tensor in tensors.items()}
    header[DIGEST_KEY] = _header_digest(header)
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, header)
        except SafetensorError as error:
            raise OnejumpError(f"{path}: cannot be written ({error}); make room or mend the rights") from error
        _sort_header(temporary)
    return header[DIGEST_KEY]


def _sort_header(path: Path) -> None:
    """Put the header's keys in order, which safetensors leaves to chance, so that equal content gives equal bytes."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) != size:
            raise OnejumpError(f"{path}: its metadata cannot be written in order; use plain text in names")
        file.seek(8)
        file.write(text)


class TensorFile:
    """A safetensors file of this project, opened lazily: each tensor is verified when it is first asked for.

    Metadata and shapes are read without PyTorch.

    Raises:
        OnejumpError: the file is missing, cut short, altered, or not written by this project.
    """

    def __init__(self, path: str | Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = require_file(path)
        try:
            file = safe_open(self.path, framework="np")
            self.metadata: dict[str, str] = dict(file.metadata() or {})
            self._shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
            self.names: list[str] = list(self._shapes)
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise OnejumpError(self._damaged(f"not a whole safetensors file: {error}")) from error
        if DIGEST_KEY not in self.metadata:
            raise OnejumpError(f"{path}: has no {DIGEST_KEY} in its metadata, so it was not written by onejump")
        if _header_digest(self.metadata) != self.metadata[DIGEST_KEY]:
            raise OnejumpError(self._damaged("its metadata do not match their checksum"))
        if [key for key in sorted(self.metadata) if key.startswith(f"{DIGEST_KEY}.")] != [
            f"{DIGEST_KEY}.{name}" for name in self.names
        ]:
            raise OnejumpError(self._damaged("its tensors are not those that its metadata list"))
        self._verified: set[str] = set()

    def _damaged(self, why: str) -> str:
        return f"{self.path}: damaged ({why}); remove the file and rerun the stage that makes it"

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, as returned by `write_tensors`."""
        return self.metadata[DIGEST_KEY]

    def value(self, key: str):
        """A metadata value that was stored as JSON."""
        return json.loads(self.metadata[key])

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, which is not read.

        Raises:
            OnejumpError: there is no such tensor.
        """
        if name not in self._shapes:
            raise OnejumpError(f"{self.path}: has no tensor {name!r}, only {', '.join(self.names)}")
        return self._shapes[name]

    def tensor(self, name: str, rows: slice | None = None):
        """Read one tensor, or some consecutive rows of it (on the CPU); the whole is verified the first time.

        Raises:
            OnejumpError: there is no such tensor, or it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        self.shape(name)
        try:
            # Opened anew, since what has been read of a file stays in memory as long as it is open.
            with safe_open(self.path, framework="pt") as file:
                if rows is not None and name in self._verified:
                    return file.get_slice(name)[rows]
                tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise OnejumpError(self._damaged(str(error))) from error
        if name not in self._verified and _tensor_digest(tensor) != self.metadata[f"{DIGEST_KEY}.{name}"]:
            raise OnejumpError(self._damaged(f"tensor {name!r} does not match its checksum"))
        self._verified.add(name)
        return tensor if rows is None else tensor[rows]

    def tensors(self) -> dict:
        """All tensors, each verified."""
        return {name: self.tensor(name) for name in self.names}


# ----------------------------------------------------------------------------------------------------------- Parquet


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers without gaps; Arrow's own conversion would import pandas, a tenth of a short job."""
    return np.from_dlpack(table[name].combine_chunks())


def _column_digest(table: pa.Table, name: str) -> str:
    """SHA-256 of a column's values."""
    column = table[name].combine_chunks()
    if not pa.types.is_primitive(column.type):
        return hashlib.sha256(repr(column.to_pylist()).encode()).hexdigest()
    if column.null_count or pa.types.is_boolean(column.type):
        filled = column.fill_null(False if pa.types.is_boolean(column.type) else 0)
        parts = [part.to_numpy(zero_copy_only=False) for part in (column.is_valid(), filled)]
    else:
        parts = [np.ones(len(column), bool), numbers(table, name)]
    digest = hashlib.sha256(f"{column.type}".encode())
    for part in parts:
        digest.update(part.tobytes())
    return digest.hexdigest()


def write_table(path: str | Path, table: pa.Table) -> None:
    """Write a Parquet table atomically, with a digest of each column: page checksums do not cover the footer."""
    digests = {f"{DIGEST_KEY}.{name}": _column_digest(table, name) for name in table.column_names}
    table = table.replace_schema_metadata(digests)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_table(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet table, or some of its columns.

    Raises:
        OnejumpError: the file is missing, damaged, or lacks a column.
    """
    require_file(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = set(columns or ()) - set(file.schema_arrow.names)
            if not missing:
                table = file.read(columns=columns)
                facts = table.schema.metadata or {}
                for name in table.column_names:
                    digest = _column_digest(table, name).encode()
                    if facts.get(f"{DIGEST_KEY}.{name}".encode(), digest) != digest:
                        raise ValueError(f"column {name!r} does not match its checksum")
                return table.replace_schema_metadata(None)
            found = file.schema_arrow.names
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OnejumpError(
            f"{path}: damaged (not a whole Parquet file: {reason}); remove the file and rerun the stage that makes it"
        ) from error
    raise OnejumpError(f"{path}: has no column {', '.join(sorted(missing))}, only {', '.join(found)}")
