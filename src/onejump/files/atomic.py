"""Text and JSON files, written whole or not at all."""

import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UMASK = os.umask(0)
os.umask(_UMASK)


class OnejumpError(Exception):
    """An error that a user can fix: one line with what is wrong, what was found, what was expected, and what to do."""


@contextmanager
def errors_name(path: str | Path) -> Iterator[None]:
    """Prefix every OnejumpError raised in the block with the file that it is about."""
    try:
        yield
    except OnejumpError as error:
        raise OnejumpError(f"{path}: {error}") from error


def remove_temporaries(path: str | Path) -> None:
    """Remove what killed writers of `path` left beside it."""
    path = Path(path)
    for folder in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder `.<name>.<8 digits>.tmp` beside `path`, removed in the end with all that is in it."""
    path = Path(path)
    remove_temporaries(path)  # of killed jobs: one job at a time writes a file
    folder = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path in a temporary folder; the file written there is moved to `path` if the block succeeds.

    In a folder, since libraries make temporary files of their own beside the file that they write.
    """
    path = Path(path)
    with temporary_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        os.chmod(temporary, 0o666 & ~_UMASK)  # safetensors creates files that only their owner can read
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically, with sorted keys so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: str | Path, kind: type = dict):
    """Read a JSON file that holds an object, or a value of another kind.

    Raises:
        OnejumpError: The file is missing, is not JSON, or holds something else.
    """
    require_file(path)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OnejumpError(
            f"{path}: not valid JSON ({error}); remove the file and rerun the stage that makes it"
        ) from error
    if not isinstance(value, kind):
        raise OnejumpError(f"{path}: holds {json.dumps(value)[:40]}, expected a JSON object; give the right file")
    return value


def require_room(path: str | Path, size: int) -> None:
    """Raise OnejumpError if a file of `size` bytes does not fit on the disk of `path`."""
    folder = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
    if (free := shutil.disk_usage(folder).free) < size:
        raise OnejumpError(f"{path}: needs {size / 1e9:,.2f} GB, but its disk has {free / 1e9:,.2f} GB free; make room")


def require_file(path: str | Path) -> Path:
    """Return `path` if it is a file, else raise OnejumpError."""
    path = Path(path)
    if not path.is_file():
        raise OnejumpError(f"{path}: no such file; run the stage that makes it, or correct the path")
    return path
