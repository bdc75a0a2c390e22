"""The jump (OJFA, Eq. 1): a low-rank map from an early hidden state to the final representation.

`y = BatchNorm_m(h) A_m B_m`. In evaluation mode a jump folds into one affine map to rank r, `z = h P + q`, followed by
`B`; every later stage works on z.

Gates and scales are ours. A gated jump predicts the state behind the final norm, `y = a_k norm(h) + z B`: a number a_k
for each level k lets so much of the normalised hidden state through. a = 0 is a jump, and a = 1 without the rest is
identity. A scaled jump, one for all levels, has r numbers s_k for each of them that multiply its coordinates, `s_k z`,
as VeRA scales one pair of matrices for each layer (Kopiczko et al. 2024).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onejump.models.unembedding import Unembedding

BATCH_NORM_EPS = 1e-5


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
    scales: Tensor | None = None  # [K, r], of a scaled jump

    def __call__(self, h: Tensor, level: int) -> Tensor:
        """From hidden states [N, H] of a level to the coordinates z [N, r]."""
        z = h @ self.P + self.q
        return z if self.scales is None else z * self.scales[level]

    def gate(self, level: int) -> float:
        """a_k of a level: the joint jump has one for each, a level's own jump takes its own to all levels."""
        return self.gates[level if len(self.gates) > 1 else 0] if self.gates else 0.0

    def to(self, device: torch.device | str) -> "FoldedJump":
        """The same jump on another device."""
        scales = None if self.scales is None else self.scales.to(device)
        return FoldedJump(self.P.to(device), self.q.to(device), self.B.to(device), self.gates, scales)


class Jump(nn.Module):
    """`BatchNorm(h) A B` with A [H, r], B [r, H], no biases, and an affine BatchNorm with running statistics.

    Its parameters are `2 H r + 4 H` numbers: A, B, and the BatchNorm's weight, bias, running mean and running variance,
    exactly as many as the paper counts; gates and scales come besides.
    """

    def __init__(self, hidden_size: int, rank: int, n_gates: int = 0, n_scales: int = 0) -> None:
        """A jump of the given H and r, with A, B, gates and scales, of so many levels, not yet set."""
        super().__init__()
        self.gates = nn.Parameter(torch.empty(n_gates)) if n_gates else None
        self.scales = nn.Parameter(torch.empty(n_scales, rank)) if n_scales else None
        self.bn = nn.BatchNorm1d(hidden_size, eps=BATCH_NORM_EPS)
        self.A = nn.Parameter(torch.empty(hidden_size, rank))
        self.B = nn.Parameter(torch.empty(rank, hidden_size))

    def forward(self, h: Tensor) -> Tensor:
        """From hidden states [N, H] to predictions [N, H], without gates and scales."""
        return self.bn(h) @ self.A @ self.B

    def tensors(self) -> dict[str, Tensor]:
        """All that inference needs, by name."""
        names = ("weight", "bias", "running_mean", "running_var")
        tensors = {"A": self.A, "B": self.B} | {f"bn.{name}": getattr(self.bn, name) for name in names}
        ours = {"gates": self.gates, "scales": self.scales}
        return tensors | {name: tensor for name, tensor in ours.items() if tensor is not None}

    @torch.no_grad()
    def fold(self) -> FoldedJump:
        """The jump in evaluation mode as one affine map; folded in float64 on the CPU, kept in float32."""
        double = {name: tensor.cpu().double() for name, tensor in self.tensors().items()}
        scale = double["bn.weight"] / (double["bn.running_var"] + self.bn.eps).sqrt()
        P = scale[:, None] * double["A"]
        q = (double["bn.bias"] - double["bn.running_mean"] * scale) @ double["A"]
        gates = tuple(double["gates"].tolist()) if "gates" in double else ()
        scales = double["scales"].float() if "scales" in double else None
        return FoldedJump(P.float(), q.float(), double["B"].float(), gates, scales).to(self.A.device)


@torch.no_grad()
def bias_jump(bias: Tensor) -> Jump:
    """The jump that predicts bias [H] whatever it sees: its BatchNorm's weight is 0."""
    jump = Jump(len(bias), 1)
    jump.bn.weight.zero_()
    jump.bn.bias.zero_()[0] = 1.0
    jump.A.zero_()[0] = 1.0
    jump.B.copy_(bias)
    return jump.eval()
