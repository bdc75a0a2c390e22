"""The fused unembedding: logits from a jump's coordinates z [N, r], without forming the H-wide prediction.

After a rank-r jump, final norm and output head collapse to rank r. For RMSNorm, with `y = z B`,

    logits = (z (B diag(w) W')) / sqrt(z' (B B') z / H + eps)

and for LayerNorm the same with B's rows centred, plus the constant `b W' + head bias`. An exit check costs r V instead
of H V multiply-adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onejump.models.unembedding import Unembedding


@dataclass(frozen=True)
class FusedUnembedding:
    """Final norm and output head of one jump, fused to rank r.

    Attributes:
        M: [r, V] float32.
        gram: [r, r] float32, so that `z gram z' / H` is the mean square (RMSNorm) or variance (LayerNorm) of y; None
            where y is not normalised: for the post-norm target, or a model without a final norm.
        constant: [V] float32 or None.
        unembedding: the model's.
    """

    M: Tensor
    gram: Tensor | None
    constant: Tensor | None
    unembedding: Unembedding

    def normalise(self, z: Tensor) -> Tensor:
        """[N, r] -> [N, r]: z divided by what the norm divides `z B` by."""
        if self.gram is None:
            return z
        mean_square = ((z @ self.gram) * z).sum(-1, keepdim=True) / self.unembedding.hidden_size
        return z * torch.rsqrt(mean_square + self.unembedding.eps)

    def linear(self, normed: Tensor) -> Tensor:
        """From `normalise` to logits before `Unembedding.finish`: [N, r] -> [N, V]."""
        return normed @ self.M if self.constant is None else torch.addmm(self.constant, normed, self.M)

    def project(self, normed: Tensor, passed: Tensor | None = None) -> Tensor:
        """From `normalise` to logits: [N, r] -> [N, V]; `passed` [N, V] is what a gate lets through, if there is one.

        That is `a W norm(h)`, as `Unembedding.linear` gives it for a = 1.
        """
        logits = self.linear(normed)
        return self.unembedding.finish(logits if passed is None else logits + passed)

    def logits(self, z: Tensor) -> Tensor:
        """[N, r] -> [N, V], equal to the unembedding of `z B`."""
        return self.project(self.normalise(z))


class _Product(torch.autograd.Function):
    """`B @ weight.T` for few rows B [r, H] beside a frozen weight [V, H].

    With the weight first, since BLAS libraries differ most in products of few rows; its gradient as of the other order.
    """

    @staticmethod
    def forward(ctx, B: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return (weight @ B.T).T.contiguous()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.saved_tensors[0], None


def fuse(unembedding: Unembedding, Bs: Sequence[Tensor], target: str) -> list[FusedUnembedding]:
    """The fused unembeddings of several jumps, from one product with the output embedding.

    Args:
        unembedding: on the jumps' device.
        Bs: each jump's B, [r, H] float32.
        target: `pre_norm` or `post_norm`.
    """
    sizes = [len(B) for B in Bs]
    B, constant = torch.cat(list(Bs)), unembedding.bias
    grams = [None] * len(sizes)
    if target == "pre_norm" and unembedding.norm_kind != "none":
        if unembedding.norm_kind == "layer":
            B = B - B.mean(1, keepdim=True)
        grams = [part @ part.T for part in B.split(sizes)]
        B = B * unembedding.norm_weight
        if unembedding.norm_bias is not None:
            shift = unembedding.weight.float() @ unembedding.norm_bias
            constant = shift if unembedding.bias is None else shift + unembedding.bias
    M = _Product.apply(B, unembedding.weight.float())
    return [
        FusedUnembedding(part, gram, constant, unembedding) for part, gram in zip(M.split(sizes), grams, strict=True)
    ]
