"""The exit head: logits from a jump's coordinates z [N, r], without ever forming the H-wide prediction.

After a rank-r jump, final norm and output head collapse to rank r. For RMSNorm, with `y = z B`,

    logits = (z (B diag(w) W')) / sqrt(z' (B B') z / H + eps)

and for LayerNorm the same with B's rows centred, plus the constant `b W' + head bias`. An exit check costs r V instead
of H V multiply-adds.
"""

import torch
from torch import Tensor

from onejump.models import Head


class FusedHead:
    """Final norm and output head of one jump, fused to rank r.

    Attributes:
        M: [r, V] float32.
        gram: [r, r] float32, so that `z gram z' / H` is the mean square (RMSNorm) or variance (LayerNorm) of y; None
            for the post-norm target, whose prediction is already normalised.
        constant: [V] float32 or None.
    """

    def __init__(self, head: Head, B: Tensor, target: str) -> None:
        """Fuse.

        Args:
            head: on B's device.
            B: [r, H] float32.
            target: `pre_norm` or `post_norm`.
        """
        self._head = head
        self.constant = head.bias
        if target == "post_norm":
            self.gram = None
        else:
            if head.norm_kind == "layer":
                B = B - B.mean(1, keepdim=True)
            self.gram = B @ B.T
            B = B * head.norm_weight
            if head.norm_bias is not None:
                shift = head.weight.float() @ head.norm_bias
                self.constant = shift if head.bias is None else shift + head.bias
        self.M = B @ head.weight.float().T

    def logits(self, z: Tensor) -> Tensor:
        """[N, r] -> [N, V], equal to the model's head on `z B`."""
        if self.gram is not None:
            mean_square = ((z @ self.gram) * z).sum(-1, keepdim=True) / self._head.hidden_size
            z = z * torch.rsqrt(mean_square + self._head.eps)
        logits = z @ self.M if self.constant is None else torch.addmm(self.constant, z, self.M)
        return self._head.finish(logits)
