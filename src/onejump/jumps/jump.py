"""The jump: a low-rank cast of an early hidden state to the final representation.

`y = BatchNorm_m(h) A_m B_m` (OJFA, Eq. 1). In evaluation mode a jump folds into one affine map to rank r,
`z = h P + q`, followed by `B`; every later stage works on z.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from onejump.files.atomic import OnejumpError
from onejump.files.tensors import TensorFile, write_tensors
from onejump.models.unembedding import Unembedding

BATCH_NORM_EPS = 1e-5


def default_rank(hidden_size: int) -> int:
    """floor(H / 100), the paper's rank; at least 1, for the small models of tests."""
    return max(1, hidden_size // 100)


def target_of(final: Tensor, unembedding: Unembedding, target: str) -> Tensor:
    """What a jump predicts, from h^K [N, H] before the final norm: itself (`pre_norm`) or its norm (`post_norm`)."""
    return unembedding.normalise(final) if target == "post_norm" else final.float()


@dataclass(frozen=True)
class FoldedJump:
    """A jump in evaluation mode, as `z = h P + q` and `y = z B`.

    Attributes:
        P: [H, r] float32.
        q: [r] float32.
        B: [r, H] float32.
    """

    P: Tensor
    q: Tensor
    B: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        """[N, H] -> the coordinates z [N, r]."""
        return h @ self.P + self.q

    def to(self, device: torch.device | str) -> "FoldedJump":
        """The same jump on another device."""
        return FoldedJump(self.P.to(device), self.q.to(device), self.B.to(device))


class Jump(nn.Module):
    """`BatchNorm(h) A B` with A [H, r], B [r, H], no biases, and an affine BatchNorm with running statistics (Eq. 1).

    Its parameters are `2 H r + 4 H` numbers: A, B, and the BatchNorm's weight, bias, running mean and running variance,
    exactly the counts that the paper gives.
    """

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(hidden_size, eps=BATCH_NORM_EPS)
        self.A = nn.Parameter(torch.empty(hidden_size, rank))
        self.B = nn.Parameter(torch.empty(rank, hidden_size))

    def forward(self, h: Tensor) -> Tensor:
        """[N, H] -> [N, H]."""
        return self.bn(h) @ self.A @ self.B

    def _tensors(self) -> dict[str, Tensor]:
        names = ("weight", "bias", "running_mean", "running_var")
        return {"A": self.A, "B": self.B} | {f"bn.{name}": getattr(self.bn, name) for name in names}

    @property
    def n_parameters(self) -> int:
        """Numbers that inference needs, counted in the tensors."""
        return sum(tensor.numel() for tensor in self._tensors().values())

    @torch.no_grad()
    def fold(self) -> FoldedJump:
        """The jump in evaluation mode as one affine map; folded in float64 on the CPU, kept in float32."""
        double = {name: tensor.cpu().double() for name, tensor in self._tensors().items()}
        scale = double["bn.weight"] / (double["bn.running_var"] + self.bn.eps).sqrt()
        P = scale[:, None] * double["A"]
        q = (double["bn.bias"] - double["bn.running_mean"] * scale) @ double["A"]
        return FoldedJump(P.float(), q.float(), double["B"].float()).to(self.A.device)

    def save(self, path: str | Path, metadata: dict) -> None:
        """Write the jump's tensors; `metadata` must hold level, target and unembedding_sha256."""
        write_tensors(path, self._tensors(), {"kind": "jump", "eps": self.bn.eps} | metadata)

    @classmethod
    def load(cls, path: str | Path, unembedding: Unembedding) -> tuple["Jump", TensorFile]:
        """Read a jump and the file that tells how it was fitted.

        Raises:
            OnejumpError: the file is missing, damaged, not a jump, or was trained for another model's head.
        """
        file = open_for_unembedding(path, unembedding, "jump")
        tensors = file.tensors()
        jump = cls(*tensors["A"].shape)
        jump.bn.eps = file.value("eps")
        with torch.no_grad():
            for name, tensor in jump._tensors().items():
                tensor.copy_(tensors[name])
        return jump.eval(), file


def open_for_unembedding(path: str | Path, unembedding: Unembedding, kind: str) -> TensorFile:
    """Open a fitted file (`jump` or `jtc`) and check that it was made for this head.

    Raises:
        OnejumpError: it is of another kind or belongs to another head.
    """
    file = TensorFile(path)
    if file.metadata.get("kind") != kind:
        raise OnejumpError(f"{path}: holds {file.metadata.get('kind', 'something else')}, expected {kind}")
    if file.metadata["unembedding_sha256"] != unembedding.metadata["sha256"]:
        raise OnejumpError(
            f"{path}: was trained for the head {file.metadata['unembedding_sha256']}, not for {unembedding.metadata['sha256']} of "
            f"{unembedding.metadata['model']}; use jumps only with the model that they were trained for"
        )
    return file


def _load_folded(path: str | Path, unembedding: Unembedding, target: str, level: str) -> FoldedJump:
    jump, file = Jump.load(path, unembedding)
    found = (file.metadata["level"], file.metadata["target"])
    if found != (level, target):
        raise OnejumpError(
            f"{path}: is the jump of level {found[0]} for the {found[1]} target, expected level {level} and {target}; "
            "give the jumps of one variant, in order"
        )
    return jump.fold()


def load_folded_jumps(paths: Iterable[str | Path], unembedding: Unembedding, target: str) -> list[FoldedJump]:
    """Jumps 0..K-1, folded.

    Raises:
        OnejumpError: as `Jump.load`, or the files are not levels 0..K-1 in order, or were fitted to another target.
    """
    jumps = [_load_folded(path, unembedding, target, str(level)) for level, path in enumerate(paths)]
    if len(jumps) != unembedding.metadata["n_blocks"]:
        raise OnejumpError(
            f"{len(jumps)} jumps were given, but {unembedding.metadata['model']} has {unembedding.metadata['n_blocks']}"
        )
    return jumps


def load_joint_jump(path: str | Path, unembedding: Unembedding, target: str) -> FoldedJump:
    """The joint jump, folded; errors as in `load_folded_jumps`."""
    return _load_folded(path, unembedding, target, "joint")
