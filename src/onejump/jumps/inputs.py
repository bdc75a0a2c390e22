"""What a jump sees: the hidden states, or, for nulls, nothing or the hidden states of other sentences.

Gates see the hidden states in any case. With a gate, `none` is the null "gate and one bias", and `shuffled` tells
whether it matters which states a jump of the same form and size is fitted to. Such jumps are evaluated as all others
are, on the true states.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from onejump.activations.reading import Activations
from onejump.jumps.moments import validation_start


class JumpInputs:
    """Activations with what a jump sees in place of the exit levels 0..K-1; level K, the target's, is as it was.

    Attributes:
        kind: one of `variants.INPUTS`.
        n_blocks, hidden_size: of the activations.
    """

    def __init__(self, activations: Activations, inputs: str, seed: int) -> None:
        """As `inputs` says, one of `variants.INPUTS`: for `none`, zeros everywhere; for `shuffled`, states of others.

        Each sentence is given those of another one, drawn from the seed, the same one at all levels; sentences of the
        validation slice change among themselves.
        """
        self._activations, self.kind = activations, inputs
        self.n_blocks, self.hidden_size = activations.n_blocks, activations.hidden_size
        self._order = _others(len(activations), seed) if inputs == "shuffled" else None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._activations)

    def shards(self, *levels: int) -> Iterator[tuple[Tensor, ...]]:
        """As `Activations.shards`."""
        exits = {level for level in levels if level != self.n_blocks}
        shuffled = (
            {} if self._order is None else {level: self._activations.level(level)[self._order] for level in exits}
        )
        first = 0
        for shard in self._activations.shards(*levels):
            rows = slice(first, first := first + len(shard[0]))
            if self.kind == "none":
                shard = tuple(torch.zeros_like(h) if k in exits else h for k, h in zip(levels, shard, strict=True))
            yield tuple(shuffled[k][rows] if k in shuffled else h for k, h in zip(levels, shard, strict=True))

    def level(self, level: int) -> Tensor:
        """As `Activations.level`."""
        return torch.cat([rows for (rows,) in self.shards(level)])


def _others(n_rows: int, seed: int) -> Tensor:
    """For each row another one of its slice, [n_rows]: each slice is one cycle, so that no row keeps its own."""
    others, generator = torch.empty(n_rows, dtype=torch.int64), torch.Generator().manual_seed(seed)
    for rows in torch.arange(n_rows).tensor_split([validation_start(n_rows)]):
        drawn = rows[torch.randperm(len(rows), generator=generator)]
        others[drawn] = drawn.roll(1)
    return others
