"""The divergence of a lens's predictions at one level: `h + h W + b`, then the model's own final norm and head.

In training, a row costs 2 H V multiply-adds, half of them for its gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onejump.jumps.divergence import Divergence, Outputs
from onejump.jumps.jump import BATCH_NORM_EPS
from onejump.jumps.lenses import AffineLens
from onejump.jumps.objective import Rows
from onejump.models.unembedding import Unembedding


class LensDivergence(Divergence):
    """KL(full || exit) of a residual affine map before the final norm, which starts at identity.

    Inputs are standardised, and what is added to h is in units of a typical one's size, since the final norm divides by
    that: one learning rate then suits every level and model. Typical is the median.

    Attributes:
        parameters: c [H], then W [H, H], or its factors A [H, r] and B [r, H], float32. As in LoRA, B starts at 0.
    """

    def __init__(self, rows: Rows, unembedding: Unembedding, rank: int | None, seed: int) -> None:
        """The divergence on rows of one level; without a rank, W is whole. The seed is of A's start."""
        super().__init__(unembedding, "pre_norm")
        x, H = rows.x[0], unembedding.hidden_size
        self._mean, std = x.mean(0), (x.var(0, unbiased=False) + BATCH_NORM_EPS).sqrt()
        self._size = x.square().mean(1).sqrt().median()
        self._unit = self._size / std
        factors = [torch.zeros(H, H)]
        if rank is not None:
            generator = torch.Generator().manual_seed(seed)
            factors = [torch.randn(H, rank, generator=generator) / H**0.5, torch.zeros(rank, H)]
        self.parameters = [part.to(x.device).requires_grad_() for part in (torch.zeros(H), *factors)]

    def lens(self, parameters: Sequence[Tensor]) -> AffineLens:
        """The lens that values of the parameters give, folded in float64: whole, or with h beside the factors."""
        c, first, *rest = (part.detach().cpu().double() for part in parameters)
        mean, unit, size = (part.cpu().double() for part in (self._mean, self._unit, self._size))
        factors = [unit[:, None] * first, *rest]
        shift = mean
        for factor in factors:
            shift = shift @ factor
        bias = (size * c - shift).float()
        if rest:
            return AffineLens(tuple(factor.float() for factor in factors), bias, residual=True)
        return AffineLens(((factors[0] + torch.eye(len(c), dtype=torch.float64)).float(),), bias)

    def _outputs(self, parameters: Sequence[Tensor], rows: Rows, levels: Tensor, sentences: Tensor) -> "_LensOutputs":
        c, *factors = parameters
        x = rows.x[0, sentences]
        z = (x - self._mean) * self._unit
        for factor in factors:
            z = z @ factor
        return _LensOutputs(self.unembedding, self.unembedding.normalise(x + z + self._size * c))


@dataclass(frozen=True)
class _LensOutputs(Outputs):
    """Normalised predictions [b, H]."""

    unembedding: Unembedding
    normed: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.normed]

    def mean_logits(self, mean: Unembedding) -> Tensor:
        logits = torch.linalg.vecdot(self.normed, mean.weight)
        return mean.scale * (logits if mean.bias is None else logits + mean.bias)

    def logits(self, part: Tensor, out: Tensor) -> Tensor:
        torch.mm(self.normed[part], self.unembedding.weight.T, out=out)
        return out if self.unembedding.bias is None else out.add_(self.unembedding.bias)

    def add_gradients(self, gradients: list[Tensor], part: Tensor, logits: Tensor, factors: Tensor) -> None:
        gradients[0][part] = (self.unembedding.weight.T @ logits.T * factors).T
