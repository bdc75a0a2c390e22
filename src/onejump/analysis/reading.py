"""The cosines and the selection of a variant, read and checked without PyTorch."""

from pathlib import Path

from onejump.files.atomic import OnejumpError
from onejump.files.sealed import read_sealed_json
from onejump.files.tensors import TensorFile


def read_cosines(path: str | Path):
    """The cosines of a variant's jumps, [jump, level, sentence] float32.

    Raises:
        OnejumpError: the file is damaged, or its cosines are not finite.
    """
    cosines = TensorFile(path).tensor("cosine")
    if not cosines.isfinite().all():
        raise OnejumpError(f"{path}: NaN or infinite cosines; rerun score-jumps")
    return cosines


def read_selection(path: str | Path, n_jumps: int) -> dict:
    """A selection.json, checked.

    Raises:
        OnejumpError: the file is damaged, or selects among another number of jumps.
    """
    selection = read_sealed_json(path)
    if (found := len(selection.get("scores", ()))) != n_jumps:
        raise OnejumpError(f"{path}: selects among {found} jumps, expected {n_jumps}; rerun select-jump")
    return selection
