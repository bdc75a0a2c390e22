"""A lens: one affine map a level, `h -> h W + b`, before the final norm and the output head.

JTC, the tuned lens, LoRA-Lens and the Jacobian lens differ in how the map is found and in its form: whole, as two
factors of low rank, beside h itself (residual), or the same at all levels. What reads a lens need not know which it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onejump.activations.reading import tensor_name
from onejump.files.tensors import write_tensors
from onejump.jumps.storage import open_fitted
from onejump.models.unembedding import Unembedding

EVERY = "every"  # of the tensors that all levels share, in place of a level's name


@dataclass(frozen=True)
class AffineLens:
    """`h W + b`, or `h + h W + b`, in float32.

    Attributes:
        factors: W [H, H], or A [H, r] and B [r, H] with W = A B.
        bias: [H], or None.
        residual: whether h itself is added.
    """

    factors: tuple[Tensor, ...]
    bias: Tensor | None = None
    residual: bool = False

    def __call__(self, h: Tensor) -> Tensor:
        """From hidden states [N, H] to predictions [N, H] of the target."""
        *first, last = self.factors
        z = h
        for factor in first:
            z = z @ factor
        z = z @ last if self.bias is None else torch.addmm(self.bias, z, last)
        return h + z if self.residual else z

    def to(self, device: torch.device | str) -> "AffineLens":
        """The same lens on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return AffineLens(tuple(factor.to(device) for factor in self.factors), bias, self.residual)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All that inference needs, by names that begin with the level's."""
        names = ("weight",) if len(self.factors) == 1 else ("A", "B")
        found = {f"{name}.{part}": factor for part, factor in zip(names, self.factors, strict=True)}
        return found if self.bias is None else found | {f"{name}.bias": self.bias}


def save_lens(
    path: str | Path, lens: str, levels: Sequence[AffineLens], target: str, unembedding: Unembedding, facts: Mapping
) -> None:
    """Write a lens, a key of LENSES: the maps of levels 0..K-1, or one for all of them.

    `target` is what they predict, `pre_norm` or `post_norm`, and `facts` say how they were fitted.
    """
    names = [EVERY] if len(levels) == 1 else [tensor_name(level) for level in range(len(levels))]
    tensors = {}
    for name, level in zip(names, levels, strict=True):
        tensors |= level.tensors(name)
    metadata = {"kind": "lens", "lens": lens, "target": target, "residual": levels[0].residual}
    metadata["n_levels"] = len(levels)  # 1 where all levels share one map
    write_tensors(path, tensors, metadata | {"unembedding_sha256": unembedding.metadata["sha256"]} | facts)


class LensFile:
    """A lens that is read a level at a time.

    Attributes:
        lens: its name, a key of LENSES.
        target: what it predicts, `pre_norm` or `post_norm`.

    Raises:
        OnejumpError: the file is missing, damaged, no lens, or was fitted for another unembedding.
    """

    def __init__(self, path: str | Path, unembedding: Unembedding) -> None:
        """Open the file and check what it was made for."""
        self._file = open_fitted(path, unembedding, "lens")
        found = self._file.metadata
        self.lens, self.target = found["lens"], found["target"]
        self._residual, self._shared = self._file.value("residual"), self._file.value("n_levels") == 1

    def at(self, level: int) -> AffineLens:
        """The lens of a level.

        Raises:
            OnejumpError: the level is missing or damaged.
        """
        names = self._file.names
        name = EVERY if self._shared else tensor_name(level)
        parts = ("A", "B") if f"{name}.A" in names else ("weight",)
        bias = self._file.tensor(f"{name}.bias") if f"{name}.bias" in names else None
        return AffineLens(tuple(self._file.tensor(f"{name}.{part}") for part in parts), bias, self._residual)
