"""Texts of the hub and of local files, read by `datasets`."""

import glob
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from onejump.corpus.documents import Document, _reason
from onejump.files.atomic import OnejumpError, require_file


@dataclass(frozen=True)
class HubDataset:
    """A text data set of the Hugging Face hub at one revision, streamed: one row is a document, one line a paragraph.

    Rows are shuffled within a buffer of 10,000 (and by shard), so only what is asked for is fetched. Rows without a
    title are named "<id>#<running number>".
    """

    id: str
    name: str | None
    revision: str
    split: str = "train"
    text_field: str = "text"
    title_field: str = "title"

    def documents(self, seed: int, at_least: int) -> Iterator[Document]:
        for number, row in enumerate(self._rows(seed)):
            _require_column(self.text_field, row, f"data set {self.id}")
            yield _document(row.get(self.title_field) or f"{self.id}#{number}", row[self.text_field])

    def _rows(self, seed: int) -> Iterator[dict]:
        datasets = _quiet_datasets()
        try:
            rows = datasets.load_dataset(self.id, self.name, split=self.split, revision=self.revision, streaming=True)
            yield from rows.shuffle(seed=seed, buffer_size=10_000)
        except Exception as error:  # several libraries lie beneath, and their errors have no common base
            raise OnejumpError(
                f"data set {self.id} ({self.name}, split {self.split}, revision {self.revision}): cannot be read from"
                f" the hub ({_reason(error)}); check the network and the names, or use local files"
            ) from error


_BUILDERS = {".parquet": ("parquet", {}), ".txt": ("text", {"sample_by": "document"}), ".jsonl": ("json", {})}


@dataclass(frozen=True)
class LocalFiles:
    """Files of text: .parquet and .jsonl with one document a row, .txt with one document a file; one line a paragraph.

    A .txt document is named by its file, a row by its title column or else "<file>#<row>". Rows stay on disk (Arrow,
    in a temporary directory) until they are yielded.
    """

    paths: Sequence[str | Path]
    text_field: str = "text"
    title_field: str = "title"

    def documents(self, seed: int, at_least: int) -> Iterator[Document]:
        with TemporaryDirectory(prefix="onejump-") as cache:
            tables = [(path, self._load(path, cache)) for path in map(Path, self.paths)]
            places = [(path, table, row) for path, table in tables for row in range(len(table))]
            random.Random(seed).shuffle(places)
            for path, table, row in places:
                values = table[row]
                default = path.name if path.suffix == ".txt" else f"{path.name}#{row}"
                text = values["text"] if path.suffix == ".txt" else values[self.text_field]
                yield _document(values.get(self.title_field) or default, text)

    def _load(self, path: Path, cache: str):
        """One file as a `datasets.Dataset`, memory-mapped from `cache`."""
        if path.suffix not in _BUILDERS:
            raise OnejumpError(
                f"{path}: unknown kind of text file; expected a name that ends in {', '.join(_BUILDERS)}"
            )
        require_file(path)
        builder, options = _BUILDERS[path.suffix]
        datasets = _quiet_datasets()
        try:
            table = datasets.load_dataset(
                builder, data_files=[glob.escape(str(path))], split="train", cache_dir=cache, **options
            )
        except Exception as error:  # `datasets` passes on what each reader raises
            raise OnejumpError(
                f"{path}: not a readable {path.suffix} file ({_reason(error.__cause__ or error)}); fix or remove it"
            ) from error
        if path.suffix != ".txt":
            _require_column(self.text_field, table.column_names, str(path))
        return table


def _quiet_datasets():
    """The module `datasets` without progress bars and log lines; what goes wrong is raised."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _require_column(column: str, found: Iterable[str], where: str) -> None:
    if column not in found:
        raise OnejumpError(f"{where}: has no column {column!r}, only {', '.join(found)}; set text_field to one of them")


def _document(title: str, text: str | None) -> Document:
    return Document(str(title), [line.strip() for line in (text or "").split("\n") if line.strip()])
