"""Which jump each method exits by at a level: one jump at all levels for OJFA (Eq. 3), each level's own for N-NJTC.

Used at a level other than its own, a jump keeps its A, its B and its BatchNorm's running statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from onejump.jumps.jump import FoldedJump

Method = tuple[str, int | None]  # name, and number of the jump, None for the joint one


@dataclass(frozen=True)
class JumpExits:
    """The jumps of one variant, on the device.

    Attributes:
        jumps: jumps 0..K-1.
        ojfa: number of the selected one.
        joint: the joint jump.
    """

    jumps: Sequence[FoldedJump]
    ojfa: int
    joint: FoldedJump

    @property
    def all_jumps(self) -> tuple[FoldedJump, ...]:
        """Jumps 0..K-1, then the joint jump."""
        return *self.jumps, self.joint

    def at(self, level: int) -> dict[Method, int]:
        """For each method that is evaluated on all sentences, which of `all_jumps` it uses at a level."""
        return {("n_njtc", level): level, ("ojfa", self.ojfa): self.ojfa, ("joint", None): len(self.jumps)}

    def arbitrary(self) -> dict[Method, int]:
        """The same for every single jump, whatever the level."""
        return {("arbitrary", m): m for m in range(len(self.jumps))}
