"""The divergence of a jump's predictions, by the fused unembedding, so that no H-wide prediction is formed.

In training, a row costs r V multiply-adds, and H V more where a gate lets through the logits of the hidden state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onejump.jumps.divergence import Divergence, Outputs
from onejump.jumps.exact import AffineMap
from onejump.jumps.objective import Rows
from onejump.models.fused import FusedUnembedding, fuse
from onejump.models.unembedding import Unembedding


class JumpDivergence(Divergence):
    """KL(full || exit) of a map as a function of parameters of similar size.

    The coordinates z of a typical row are about 1, and B scales them to the size of a typical target: one learning rate
    then suits every model. Typical is the median, since a few massive activations would dominate a mean.

    Attributes:
        parameters: W [H, r], c [r], B [r, H], and, of those that are to be fitted, gates [n_gates] and scales [K, r],
            float32, in this order.
    """

    def __init__(
        self,
        start: AffineMap,
        gates: Sequence[float],
        fit_gates: bool,
        fit_scales: bool,
        rows: Rows,
        unembedding: Unembedding,
        target: str,
    ) -> None:
        """The divergence at a start, scaled by what is typical of the rows; gates as in `Jump`, scales all 1."""
        super().__init__(unembedding, target)
        self._start = start
        W, c, B, self._mean_x, self._std_x = (
            part.to(rows.y.device, torch.float32) for part in (start.W, start.c, start.V.T, start.mean_x, start.std_x)
        )
        z = torch.cat([self._coordinates(x, W, c) for x in rows.x])
        spread = z.abs().median(0).values.clamp_min(1e-30)
        self._scale = float(rows.y.square().mean(1).sqrt().median().clamp_min(1e-30))
        scaled = [W / spread, c / spread, B * (spread / self._scale)[:, None]]
        self._gates = torch.tensor(gates).to(B) if gates else None
        self._fitted = {"gates": self._gates} if fit_gates else {}
        self._fitted |= {"scales": B.new_ones(len(rows.x), len(B))} if fit_scales else {}
        self.parameters = [part.requires_grad_() for part in (*scaled, *self._fitted.values())]
        self._own = torch.empty_like(self._logits) if gates else None

    def result(self, parameters: Sequence[Tensor]) -> tuple[AffineMap, list[float], Tensor | None]:
        """Values of the parameters as a map, in float64, and its gates and scales."""
        W, c, B, *fitted = (parameter.detach().to(self._start.W) for parameter in parameters)
        ours = dict(zip(self._fitted, fitted, strict=True))
        gates = ours.get("gates", self._gates)
        found = replace(self._start, W=W, c=c, V=(B * self._scale).T)
        return found, [] if gates is None else gates.tolist(), ours.get("scales")

    def _coordinates(self, x: Tensor, W: Tensor, c: Tensor) -> Tensor:
        return (x - self._mean_x) / self._std_x @ W + c

    def _outputs(self, parameters: Sequence[Tensor], rows: Rows, levels: Tensor, sentences: Tensor) -> "_JumpOutputs":
        W, c, B, *fitted = parameters
        ours = dict(zip(self._fitted, fitted, strict=True))
        B = B * self._scale
        fused = fuse(self.unembedding, [B], self.target)[0]
        z = self._coordinates(rows.x[levels, sentences], W, c)
        normed = fused.normalise(z * ours["scales"][levels] if "scales" in ours else z)
        if self._gates is None:
            return _JumpOutputs(B, self.target, fused, normed)
        all_gates = ours.get("gates", self._gates)
        gates = all_gates[levels if len(all_gates) > 1 else torch.zeros_like(levels)]
        states = self.unembedding.normalise(rows.states[levels, sentences])
        return _JumpOutputs(B, self.target, fused, normed, states, gates, self._own)


@dataclass(frozen=True)
class _JumpOutputs(Outputs):
    """Normalised coordinates [b, r]; with gates [b], the normalised states [b, H] too, and memory [BLOCK, V]."""

    B: Tensor
    target: str
    fused: FusedUnembedding
    normed: Tensor
    states: Tensor | None = None
    gates: Tensor | None = None
    own: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        gates = [self.gates] if self.gates is not None and self.gates.requires_grad else []
        return [self.normed, self.fused.M, *gates]

    def mean_logits(self, mean: Unembedding) -> Tensor:
        fused = fuse(mean, [self.B], self.target)[0]
        logits = torch.linalg.vecdot(self.normed, fused.M.T)
        if fused.constant is not None:
            logits = logits + fused.constant
        if self.states is not None:
            logits = logits + self.gates * torch.linalg.vecdot(self.states, mean.weight)
        return mean.scale * logits

    def logits(self, part: Tensor, out: Tensor) -> Tensor:
        if self.states is None:
            torch.mm(self.normed[part], self.fused.M, out=out)
        else:
            weight = self.fused.unembedding.weight
            own = torch.mm(self.states[part], weight.T, out=self.own[: len(part)])
            torch.mul(own, self.gates[part, None], out=out).addmm_(self.normed[part], self.fused.M)
        return out if self.fused.constant is None else out.add_(self.fused.constant)

    def add_gradients(self, gradients: list[Tensor], part: Tensor, logits: Tensor, factors: Tensor) -> None:
        gradients[0][part] = (self.fused.M @ logits.T * factors).T
        gradients[1].addmm_((self.normed[part] * factors[:, None]).T, logits)
        if len(gradients) > 2:
            gradients[2][part] = torch.linalg.vecdot(logits, self.own[: len(part)]) * factors
