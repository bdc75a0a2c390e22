"""The jump (OJFA, Eq. 1): a low-rank map from an early hidden state to the final representation.

`y = BatchNorm_m(h) A_m B_m`. In evaluation mode a jump folds into one affine map to rank r, `z = h P + q`, followed by
`B`; every later stage works on z.

A gated jump, which is ours, predicts the state behind the final norm, `y = a_k norm(h) + z B`: a number a_k for each
level k lets so much of the normalised hidden state through. a = 0 is a jump, and a = 1 without the rest is identity.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onejump.models.unembedding import Unembedding

BATCH_NORM_EPS = 1e-5


def default_rank(hidden_size: int) -> int:
    """The paper's rank, floor(H / 100); at least 1, for the small models of tests."""
    return max(1, hidden_size // 100)


def target_of(final: Tensor, unembedding: Unembedding, target: str) -> Tensor:
    """What a jump predicts, [N, H] float32: h^K [N, H] itself for `pre_norm`, its final norm for `post_norm`."""
    return unembedding.normalise(final) if target == "post_norm" else final.float()


@dataclass(frozen=True)
class FoldedJump:
    """A jump in evaluation mode, as `z = h P + q` and `y = z B`, in float32; a gated one adds `a_k norm(h)` to y."""

    P: Tensor  # [H, r]
    q: Tensor  # [r]
    B: Tensor  # [r, H]
    gates: tuple[float, ...] = ()  # a_k of each level, or one number for all levels; none of a jump without gates

    def __call__(self, h: Tensor) -> Tensor:
        """From hidden states [N, H] to the coordinates z [N, r]."""
        return h @ self.P + self.q

    def gate(self, level: int) -> float:
        """a_k of a level: the joint jump has one for each, a level's own jump takes its own to all levels."""
        return self.gates[level if len(self.gates) > 1 else 0] if self.gates else 0.0

    def to(self, device: torch.device | str) -> "FoldedJump":
        """The same jump on another device."""
        return FoldedJump(self.P.to(device), self.q.to(device), self.B.to(device), self.gates)


class Jump(nn.Module):
    """`BatchNorm(h) A B` with A [H, r], B [r, H], no biases, and an affine BatchNorm with running statistics.

    Its parameters are `2 H r + 4 H` numbers: A, B, and the BatchNorm's weight, bias, running mean and running variance,
    exactly as many as the paper counts; a gated jump has its gates besides.
    """

    def __init__(self, hidden_size: int, rank: int, n_gates: int = 0) -> None:
        """A jump of the given H and r, with A, B and gates not yet set."""
        super().__init__()
        self.gates = nn.Parameter(torch.empty(n_gates)) if n_gates else None
        self.bn = nn.BatchNorm1d(hidden_size, eps=BATCH_NORM_EPS)
        self.A = nn.Parameter(torch.empty(hidden_size, rank))
        self.B = nn.Parameter(torch.empty(rank, hidden_size))

    def forward(self, h: Tensor) -> Tensor:
        """From hidden states [N, H] to predictions [N, H], without what gates let through."""
        return self.bn(h) @ self.A @ self.B

    def tensors(self) -> dict[str, Tensor]:
        """All that inference needs, by name."""
        names = ("weight", "bias", "running_mean", "running_var")
        gates = {} if self.gates is None else {"gates": self.gates}
        return {"A": self.A, "B": self.B} | {f"bn.{name}": getattr(self.bn, name) for name in names} | gates

    @torch.no_grad()
    def fold(self) -> FoldedJump:
        """The jump in evaluation mode as one affine map; folded in float64 on the CPU, kept in float32."""
        double = {name: tensor.cpu().double() for name, tensor in self.tensors().items()}
        scale = double["bn.weight"] / (double["bn.running_var"] + self.bn.eps).sqrt()
        P = scale[:, None] * double["A"]
        q = (double["bn.bias"] - double["bn.running_mean"] * scale) @ double["A"]
        gates = tuple(double["gates"].tolist()) if "gates" in double else ()
        return FoldedJump(P.float(), q.float(), double["B"].float(), gates).to(self.A.device)


@torch.no_grad()
def bias_jump(bias: Tensor) -> Jump:
    """The jump that predicts bias [H] whatever it sees: its BatchNorm's weight is 0."""
    jump = Jump(len(bias), 1)
    jump.bn.weight.zero_()
    jump.bn.bias.zero_()[0] = 1.0
    jump.A.zero_()[0] = 1.0
    jump.B.copy_(bias)
    return jump.eval()
