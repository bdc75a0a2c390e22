"""A tiny model in files, whose states are taken whole and one block at a time."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_architectures import VOCABULARY

from onejump.activations.dump import gather_levels
from onejump.models.anatomy import Anatomy, find_anatomy
from onejump.models.blocks import Blocks
from onejump.models.sources import ModelSource
from onejump.models.weights import Weights

CPU = torch.device("cpu")
BUDGET = 24


def sentences_of(lengths=(5, 1, 9, 3, 12, 7, 2, 9)) -> list[list[int]]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@dataclass
class Saved:
    """A model in files, and its parts as they are found when it is loaded whole."""

    source: ModelSource
    anatomy: Anatomy

    def blocks(self, dtype: str = "float32") -> Blocks:
        """The model, to be loaded one block at a time."""
        paths = self.anatomy.paths
        return Blocks(self.source, Weights(self.source.find_weights()), dtype, CPU, paths["blocks"], paths["head"])

    def streamed(self, blocks: Blocks, budget: int = BUDGET, checkpoint=None) -> torch.Tensor:
        """States of the sentences, one block at a time."""
        anatomy = Anatomy(blocks.model, **self.anatomy.paths)
        return gather_levels(anatomy, sentences_of(), budget, None, checkpoint, blocks)[0]

    def whole(self, budget: int = BUDGET) -> torch.Tensor:
        """The same of the whole model."""
        return gather_levels(self.anatomy, sentences_of(), budget)[0]


def saved(model: torch.nn.Module, folder: Path, dtype: str = "float32", **how) -> Saved:
    """The model in files of a folder."""
    model.save_pretrained(folder, **how)
    source = ModelSource(str(folder))
    return Saved(source, find_anatomy(source.load_model(dtype)))
