"""What exit checks and blocks cost, in multiply-adds."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Costs:
    """Multiply-adds for one token, without those of attention that grow with the context.

    They follow from K, H, V, r, `block`, the multiply-adds of one block (one for each of its weights that a token
    uses), gates, `shortlist`, the multiply-adds of a check with a shortlist, if there is one, and `lenses`, the
    multiply-adds of each lens's map, which come before the whole output head.
    """

    n_blocks: int
    hidden_size: int
    vocabulary: int
    rank: int
    block: int
    gated: bool = False
    shortlist: int | None = None
    lenses: Mapping[str, int] = field(default_factory=dict)

    @property
    def plain_check(self) -> int:
        """An exit check by the whole output head: `H V`; a jump before it adds `2 H r`, at most a hundredth of it."""
        return self.hidden_size * self.vocabulary

    @property
    def fused_check(self) -> int:
        """An exit check by a fused head: `H r` to the coordinates, `r V` to the logits; a gate needs the whole too."""
        return self.rank * (self.hidden_size + self.vocabulary) + self.gated * self.plain_check

    @property
    def full(self) -> int:
        """The full model: all blocks and the output head."""
        return self.n_blocks * self.block + self.plain_check

    def levels(self, method: str) -> int:
        """At how many levels to check: what sees no hidden state is the same at each, so that the first is enough."""
        return 1 if self.check(method) == 0 else self.n_blocks

    def check(self, method: str) -> int | None:
        """An exit check of a method as it is cheapest; looking up a table takes no multiply-adds."""
        match method:
            case "constant" | "constant_by_position" | "token_table":
                return 0
            case "identity" | "identity_temperature":
                return self.plain_check
            case lens if lens in self.lenses:
                return self.plain_check + self.lenses[lens]
            case "joint_shortlist":
                return self.shortlist
        return self.fused_check
