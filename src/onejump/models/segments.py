"""A model's blocks in segments that texts go through only as far as they must: what generation with early exits runs.

A token's state that has left one segment waits before the next. When a token has to go deeper, all that wait there go
with it in one batch, so that the next segment's keys and values are the full model's, and every state is what a plain
forward pass computes. CALM (Schuster et al. 2022, arXiv 2207.07061) instead makes the keys and values of skipped blocks
from the state at the exit. That spares those blocks, but changes all later states, and jumps were not fitted to such.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from onejump.models.anatomy import Anatomy
from onejump.models.passes import Pass, first_tensor

# What models call their cache: `cache` since Transformers 5.24, `past_key_values` before.
CACHE = next(name for name in ("cache", "past_key_values") if name in CausalLMOutputWithPast.__dataclass_fields__)


@dataclass
class Cost:
    """What a generation has run.

    Attributes:
        block_calls: how often a block was called, for however many tokens. Where memory is the limit, this is the time.
        block_tokens: tokens that went through a block, summed over blocks and texts, without those of the prompt.
        exits: level -> tokens that left there; level K is the full model.
        drafted: tokens that were drafted.
        accepted: tokens among them that the full model agreed with.
    """

    block_calls: int = 0
    block_tokens: int = 0
    exits: dict[int, int] = field(default_factory=dict)
    drafted: int = 0
    accepted: int = 0


class Segments:
    """The texts of a batch on their way through the blocks.

    Attributes:
        cost: what has been run.
        seen: number of tokens that each segment has seen.
        levels: K.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        begin: Callable[..., Pass],
        cache,
        bounds: Sequence[int],
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **inputs,
    ) -> None:
        """Begin with no tokens.

        Args:
            anatomy: of the model.
            begin: begins a pass, from `anatomy.passes()`.
            cache: an empty cache of Transformers with one layer a block.
            bounds: levels from 0 on, ascending; segment s is the blocks from bounds[s] to bounds[s + 1].
            attention_mask: of the prompts, [B, P], or None for ones; all later tokens are seen.
            position_ids: of the prompts, [B, P], or None for the model's own.
            **inputs: other inputs of the model in each pass.
        """
        self.cost, self.levels = Cost(), len(anatomy.blocks)
        self._begin, self._cache = begin, cache
        self._blocks, self._mask, self._positions = list(pairwise(bounds)), attention_mask, position_ids
        self._device = anatomy.device if anatomy.device.type != "meta" else None  # then accelerate moves ids
        self._inputs = {CACHE: cache, "use_cache": True} | inputs
        self._ids: Tensor | None = None
        self._prompt = 0
        self.seen = [0] * len(self._blocks)
        self._left: list[object] = [None] * len(self._blocks)  # what a segment's last block gave to those that wait

    @property
    def tokens(self) -> int:
        """Number of tokens of each text."""
        return 0 if self._ids is None else self._ids.shape[1]

    def add(self, ids: Tensor) -> None:
        """The next tokens of each text, [B, n]; the first ones are the prompts."""
        if self._ids is None:
            self._ids, self._prompt = ids, ids.shape[1]
        else:
            self._ids = torch.cat([self._ids, ids], 1)

    def keep(self, tokens: int) -> None:
        """Forget all but the first tokens of each text, where none waits; the cache has to forget them too."""
        if self._ids is not None:
            self._ids = self._ids[:, :tokens]
        self.seen = [min(seen, tokens) for seen in self.seen]

    def run(self, number: int, logits_to_keep: int = 1) -> Tensor:
        """Run a segment on all tokens that have passed the ones before it and not this.

        Args:
            number: of the segment.
            logits_to_keep: of how many last tokens of each text the logits are asked for.

        Returns:
            What enters the block behind the segment, [B, n, H], for all these tokens; or behind the last block, the
            model's logits [B, logits_to_keep, V].
        """
        first, last = self._blocks[number]
        seen, total = self.seen[number], self.seen[number - 1] if number else self.tokens
        given = self._left[number - 1] if number else None
        with self._only(first, last):
            one = self._begin(**self._tokens(seen, total), **self._inputs_of(logits_to_keep))
            one.skip_to(first, given)
            h = first_tensor(*one.arguments)
            while one.level < last:
                h = next(one)
            if last == self.levels:
                found = one.finish().logits[:, -logits_to_keep:]
            else:
                found = h
                if number + 1 < len(self._blocks):
                    self._left[number] = _joined(self._left[number], one.given)
                one.throw()
        if number:
            self._left[number - 1] = None
        self.seen[number] = total
        self.cost.block_calls += last - first
        self.cost.block_tokens += (last - first) * len(self._ids) * max(0, total - max(seen, self._prompt))
        return found

    def _inputs_of(self, logits_to_keep: int) -> dict:
        """The inputs of a pass beside its tokens."""
        return self._inputs | ({"logits_to_keep": logits_to_keep} if "logits_to_keep" in self._inputs else {})

    def _tokens(self, first: int, last: int) -> dict[str, Tensor]:
        """The model's inputs for tokens first..last-1."""
        inputs, more = {"input_ids": self._ids[:, first:last]}, max(0, last - self._prompt)
        if self._mask is not None:
            ones = self._mask.new_ones(len(self._mask), more)
            inputs["attention_mask"] = torch.cat([self._mask, ones], 1)[:, :last]
        if self._positions is not None:
            later = self._positions[..., -1:] + torch.arange(1, more + 1, device=self._positions.device)
            inputs["position_ids"] = torch.cat([self._positions, later], -1)[..., first:last]
        return {name: tensor.to(device=self._device) for name, tensor in inputs.items()}

    @contextmanager
    def _only(self, first: int, last: int) -> Iterator[None]:
        """The cache as if all blocks had seen what these have: models read off one layer how far the cache is."""
        own = self._cache.layers
        here = own[first:last]

        def stand_in(layer):
            return next((one for one in here if type(one) is type(layer)), here[0])

        if here:
            self._cache.layers = [*map(stand_in, own[:first]), *here, *map(stand_in, own[last:])]
        try:
            yield
        finally:
            self._cache.layers = own


def _joined(earlier: object, later: object) -> object:
    """What a block gave to earlier and later tokens, as one: a tensor, or a tuple with one."""
    if earlier is None:
        return later
    h, more = first_tensor(earlier), first_tensor(later)
    both = torch.cat([h, more], 1)
    return both if later is more else tuple(both if value is more else value for value in later)
