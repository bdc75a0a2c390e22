"""Read texts from the hub and from local files with `datasets`."""

import glob
import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from onejump.corpus.documents import Document, reason_of, without_surrogates
from onejump.files.atomic import OnejumpError, require_file


@dataclass(frozen=True)
class HubDataset:
    """A text data set on the Hugging Face hub, in which each row is a document and each line a paragraph.

    Rows without a title are called "<id>#<running number>".
    """

    id: str  # owner/name
    name: str | None  # of its configuration
    revision: str  # commit or tag
    split: str = "train"
    text_field: str = "text"
    title_field: str = "title"

    def documents(self, seed: int, at_least: int) -> Iterator[Document]:
        """Stream the rows, shuffled by shard and within a buffer of 10,000, so that only what is used is downloaded.

        Raises:
            OnejumpError: the hub cannot be reached, or the data set has no such column.
        """
        for number, row in enumerate(self._rows(seed)):
            where = f"data set {self.id}"
            _require_column(self.text_field, row, where)
            yield _document(row.get(self.title_field) or f"{self.id}#{number}", row, self.text_field, where)

    def _rows(self, seed: int) -> Iterator[dict]:
        datasets = _quiet_datasets()
        try:
            rows = datasets.load_dataset(self.id, self.name, split=self.split, revision=self.revision, streaming=True)
            yield from rows.shuffle(seed=seed, buffer_size=10_000)
        except Exception as error:  # The libraries underneath share no base class of errors.
            raise OnejumpError(
                f"data set {self.id} ({self.name}, split {self.split}, revision {self.revision}): cannot be read from"
                f" the hub ({reason_of(error)}); check the network and the names, or use local files"
            ) from error


_KINDS = (".parquet", ".txt", ".jsonl")
_BUILDERS = {".parquet": ("parquet", {}), ".txt": ("text", {"sample_by": "document"})}


@dataclass(frozen=True)
class LocalFiles:
    """Local .parquet and .jsonl files, in which each row is a document, and .txt files, each of which is a document.

    Each line of a text is a paragraph. A row without a title is called "<file>#<row>", and a file by its path below the
    folder that holds them all, so that files of the same name are told apart.
    """

    paths: Sequence[str | Path]
    text_field: str = "text"
    title_field: str = "title"

    def documents(self, seed: int, at_least: int) -> Iterator[Document]:
        """Yield all documents in random order; rows stay on disk, in a temporary directory, until then.

        Raises:
            OnejumpError: a file is missing, damaged or of an unknown kind, or has no such column.
        """
        with TemporaryDirectory(prefix="onejump-") as cache:
            tables = [(path, self._load(path, cache)) for path in map(Path, self.paths)]
            places = [(path, table, row) for path, table in tables for row in range(len(table))]
            random.Random(seed).shuffle(places)
            folder = os.path.commonpath([path.absolute().parent for path, _ in tables])
            for path, table, row in places:
                with _readable(path):
                    values = table[row]
                name = path.absolute().relative_to(folder).as_posix()
                title = name if path.suffix == ".txt" else values.get(self.title_field) or f"{name}#{row}"
                yield _document(title, values, "text" if path.suffix == ".txt" else self.text_field, str(path))

    def _load(self, path: Path, cache: str):
        """Open the rows of one file; `datasets` maps them to memory from `cache`."""
        if path.suffix not in _KINDS:
            raise OnejumpError(f"{path}: unknown kind of text file; expected a name ending in {', '.join(_KINDS)}")
        require_file(path)
        with _readable(path):
            if path.suffix == ".jsonl":
                rows = _JsonLines(path)
            else:
                builder, options = _BUILDERS[path.suffix]
                rows = _quiet_datasets().load_dataset(
                    builder, data_files=[glob.escape(str(path))], split="train", cache_dir=cache, **options
                )
        if path.suffix != ".txt":
            _require_column(self.text_field, rows.column_names, str(path))
        if path.suffix == ".parquet":
            used = (self.text_field, self.title_field)
            rows = rows.select_columns([name for name in rows.column_names if name in used])
        return rows


class _JsonLines:
    """The rows of a .jsonl file, checked once and read again when needed; Arrow's reader crashes on a row `null`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts: list[int] = []
        self.column_names: dict[str, None] = {}
        start = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is not an object")
                    self.column_names |= dict.fromkeys(row)
                    self._starts.append(start)
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: int) -> dict:
        with open(self._path, "rb") as file:
            file.seek(self._starts[row])
            return json.loads(file.readline())


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn any error of `datasets`, which passes on whatever each reader raises, into an OnejumpError."""
    try:
        yield
    except Exception as error:
        raise OnejumpError(
            f"{path}: not a readable {path.suffix} file ({reason_of(error.__cause__ or error)}); fix or remove it"
        ) from error


def _quiet_datasets():
    """Import `datasets` and turn off its progress bars and log messages; errors are still raised."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _require_column(column: str, found: Iterable[str], where: str) -> None:
    if column not in found:
        raise OnejumpError(f"{where}: has no column {column!r}, only {', '.join(found)}; set text_field to one of them")


def _document(title: object, row: Mapping, text_field: str, where: str) -> Document:
    text = row.get(text_field)
    if not isinstance(text, str | None):
        raise OnejumpError(
            f"{where}: column {text_field!r} holds {type(text).__name__}, not text; set text_field to a column of text"
        )
    lines = [line.strip() for line in without_surrogates(text or "").split("\n")]
    return Document(without_surrogates(str(title)), [line for line in lines if line])
