"""The jump (OJFA, Eq. 1): a low-rank map from an early hidden state to the final representation.

`y = BatchNorm_m(h) A_m B_m`. In evaluation mode a jump folds into one affine map to rank r, `z = h P + q`, followed by
`B`; every later stage works on z.
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
    """A jump in evaluation mode, as `z = h P + q` and `y = z B`, in float32."""

    P: Tensor  # [H, r]
    q: Tensor  # [r]
    B: Tensor  # [r, H]

    def __call__(self, h: Tensor) -> Tensor:
        """From hidden states [N, H] to the coordinates z [N, r]."""
        return h @ self.P + self.q

    def to(self, device: torch.device | str) -> "FoldedJump":
        """The same jump on another device."""
        return FoldedJump(self.P.to(device), self.q.to(device), self.B.to(device))


class Jump(nn.Module):
    """`BatchNorm(h) A B` with A [H, r], B [r, H], no biases, and an affine BatchNorm with running statistics.

    Its parameters are `2 H r + 4 H` numbers: A, B, and the BatchNorm's weight, bias, running mean and running variance,
    exactly as many as the paper counts.
    """

    def __init__(self, hidden_size: int, rank: int) -> None:
        """A jump of the given H and r, with A and B not yet set."""
        super().__init__()
        self.bn = nn.BatchNorm1d(hidden_size, eps=BATCH_NORM_EPS)
        self.A = nn.Parameter(torch.empty(hidden_size, rank))
        self.B = nn.Parameter(torch.empty(rank, hidden_size))

    def forward(self, h: Tensor) -> Tensor:
        """From hidden states [N, H] to predictions [N, H]."""
        return self.bn(h) @ self.A @ self.B

    def tensors(self) -> dict[str, Tensor]:
        """All that inference needs, by name."""
        names = ("weight", "bias", "running_mean", "running_var")
        return {"A": self.A, "B": self.B} | {f"bn.{name}": getattr(self.bn, name) for name in names}

    @torch.no_grad()
    def fold(self) -> FoldedJump:
        """The jump in evaluation mode as one affine map; folded in float64 on the CPU, kept in float32."""
        double = {name: tensor.cpu().double() for name, tensor in self.tensors().items()}
        scale = double["bn.weight"] / (double["bn.running_var"] + self.bn.eps).sqrt()
        P = scale[:, None] * double["A"]
        q = (double["bn.bias"] - double["bn.running_mean"] * scale) @ double["A"]
        return FoldedJump(P.float(), q.float(), double["B"].float()).to(self.A.device)
