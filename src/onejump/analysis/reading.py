"""The evaluation, cosines and selection of one model, seed and variant, read and checked without PyTorch."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from onejump.exits.columns import EVERY_SENTENCE_METHODS, METRICS
from onejump.files.atomic import OnejumpError
from onejump.files.sealed import read_sealed_json
from onejump.files.tables import numbers, read_table
from onejump.files.tensors import TensorFile


class EvaluationGrids:
    """The evaluation of a variant and of its reference methods as arrays, with the same sentences at every level.

    Attributes:
        sentences: [sentence], their ids, in the order of the arrays.
        documents: [sentence] int32, the number of the document of each.
        positions: [sentence] int32, that of the chosen token in each.
        methods: method -> [metric, level, sentence] float64, on all test sentences.
        arbitrary: [metric, jump, level, sentence] float64, on the transfer sentences, which are the first ones; None
            unless `arbitrary` is among the methods.

    Raises:
        OnejumpError: a file is missing or damaged, or its levels or sentences are not those expected.
    """

    def __init__(
        self, methods: Mapping[Path, Sequence[str]], sentences_file: Path, positions_file: Path, n_blocks: int
    ) -> None:
        """Read some methods of each table of an evaluation, and what is known of their sentences."""
        self._n_blocks, self.sentences, self.arbitrary = n_blocks, None, None
        grids = {}
        for file, wanted in methods.items():
            rows = dict(list(read_table(file).to_pandas().groupby("method", observed=True)))
            grids |= {method: self._grid(file, method, rows)[:, 0] for method in wanted if method != "arbitrary"}
            if "arbitrary" in wanted:
                self.arbitrary = self._grid(file, "arbitrary", rows, n_blocks)
            if "n_njtc" in wanted and (rows["n_njtc"]["jump"] != rows["n_njtc"]["level"]).any():
                raise OnejumpError(f"{file}: n_njtc uses other jumps than each level's own; rerun evaluate-jumps")
        self.methods = {method: grids[method] for method in EVERY_SENTENCE_METHODS if method in grids}
        self.documents = read_documents(sentences_file, self.sentences)
        self.positions = numbers(_rows_of(positions_file, "position", self.sentences), "position")

    def _grid(self, file: Path, method: str, methods: dict, n_jumps: int | None = None) -> np.ndarray:
        """[metric, jump, level, sentence] from rows in this order; without `n_jumps`, one jump and all sentences."""
        if method not in methods:
            raise OnejumpError(f"{file}: has no rows of {method}; rerun the stage that makes it")
        rows = methods[method]
        n = len(rows) // (self._n_blocks * (n_jumps or 1))
        if self.sentences is None:
            self.sentences = rows["sentence_id"].to_numpy()[:n]
        sentences = self.sentences if n_jumps is None else self.sentences[:n]
        axes = (range(self._n_blocks), range(n_jumps or 1), sentences)
        expected = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        found = rows.assign(jump=0) if n_jumps is None else rows
        if not np.array_equal(found[["level", "jump", "sentence_id"]], expected.reshape(-1, 3)):
            raise OnejumpError(
                f"{file}: the rows of {method} are not of {self._n_blocks} levels with the same sentences at each; "
                "rerun the stages that evaluate"
            )
        values = rows[list(METRICS)].to_numpy(np.float64)
        return values.reshape(*expected.shape[:3], len(METRICS)).transpose(3, 1, 0, 2)

    def where(self, kept: np.ndarray) -> "EvaluationGrids":
        """The same for some of the sentences, by a mask over them."""
        part = copy.copy(self)
        part.sentences, part.documents, part.positions = (
            of_sentence[kept] for of_sentence in (self.sentences, self.documents, self.positions)
        )
        part.methods = {method: values[..., kept] for method, values in self.methods.items()}
        if self.arbitrary is not None:
            part.arbitrary = self.arbitrary[..., kept[: self.arbitrary.shape[-1]]]
        return part

    def metric(self, method: str, name: str) -> np.ndarray:
        """One metric of one method: [level, sentence]."""
        return self.methods[method][METRICS.index(name)]

    def single_jumps(self, name: str) -> np.ndarray:
        """One metric of all single jumps: [jump, level, sentence]."""
        return self.arbitrary[METRICS.index(name)]

    def others(self, name: str, ojfa: int) -> np.ndarray:
        """One metric of all single jumps but the selected one: [jump, level, sentence]."""
        return np.delete(self.single_jumps(name), ojfa, 0)


def read_documents(sentences_file: str | Path, sentences: np.ndarray) -> np.ndarray:
    """The document of each of some sentences, given by their ids: [sentence] int32, numbered as they come."""
    titles = _rows_of(sentences_file, "document", sentences)["document"]
    return titles.combine_chunks().dictionary_encode().indices.to_numpy()


def read_origins(positions_file: str | Path, sentences: np.ndarray) -> np.ndarray:
    """Whether each of some sentences, given by their ids, is of the `corpus` or `generated`: [sentence] str."""
    return np.array(_rows_of(positions_file, "origin", sentences)["origin"].to_pylist())


def _rows_of(file: str | Path, column: str, sentences: np.ndarray) -> pa.Table:
    """The rows of some sentences, in the order of their ids here."""
    table = read_table(file, ["sentence_id", column])
    ids = numbers(table, "sentence_id")
    order = np.argsort(ids)
    rows = order[np.searchsorted(ids, sentences, sorter=order).clip(max=len(ids) - 1)]
    if not np.array_equal(ids[rows], sentences):
        raise OnejumpError(f"{file}: lacks sentences of the activations; rerun the stage that makes it, or theirs")
    return table.take(rows)


def read_cosines(path: str | Path):
    """The cosines of a variant's jumps, [jump, level, sentence] float32, and the ids [sentence] of the sentences.

    Raises:
        OnejumpError: the file is damaged, or a cosine is not finite.
    """
    file = TensorFile(path)
    cosines = file.tensor("cosine")
    if not cosines.isfinite().all():
        raise OnejumpError(f"{path}: NaN or infinite cosines; rerun score-jumps")
    return cosines, file.tensor("sentence_id").numpy()


def read_selection(path: str | Path, n_jumps: int) -> dict:
    """A selection.json; an OnejumpError if it is damaged or selects among other than `n_jumps` jumps."""
    selection = read_sealed_json(path)
    if (found := len(selection.get("scores", ()))) != n_jumps:
        raise OnejumpError(f"{path}: selects among {found} jumps, expected {n_jumps}; rerun select-jump")
    return selection
