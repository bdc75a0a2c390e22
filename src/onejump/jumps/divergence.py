"""The divergence KL(full || exit) of a map's predictions from the full model's, with gradients in closed form.

The unembedding is fused, so that no H-wide prediction is formed. Of the full model's distributions p, what is needed
beside their entropy are means of the output embedding under p, `E_p[W] = p W`, since logits are linear in it: the mean
logit of an exit is its logit for a token with that embedding. These are computed once, with H numbers a sentence. So
what a row costs in training is the exit's own logits: r V multiply-adds, and H V more where a gate lets through the
logits of the hidden state itself. All arrays as wide as the vocabulary are of BLOCK rows, whatever the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onejump.jumps.exact import AffineMap
from onejump.jumps.objective import Rows
from onejump.models.fused import FusedUnembedding, fuse
from onejump.models.unembedding import Unembedding

BLOCK = 96  # rows whose logits are in memory: fewer make products slower, more do not make them faster


@dataclass(frozen=True)
class FullModel:
    """What the divergence needs of the full model's distributions of n sentences.

    Attributes:
        entropy: [n] float32, in nats.
        mean: the unembedding with one token a sentence, whose logit is the mean logit under the sentence's
            distribution. With a soft cap there is no such token, and it is None.
    """

    entropy: Tensor
    mean: Unembedding | None

    @classmethod
    @torch.no_grad()
    def of(cls, y: Tensor, unembedding: Unembedding, target: str) -> "FullModel":
        """Of targets y [n, H] float32, which are on the unembedding's device."""
        entropy, weight = y.new_empty(len(y)), torch.empty_like(y)
        bias = None if unembedding.bias is None else y.new_empty(len(y))
        for first in range(0, len(y), BLOCK):
            rows = slice(first, first + BLOCK)
            logits = full_logits(y[rows], unembedding, target)
            p = torch.softmax(logits, 1)
            entropy[rows] = torch.logsumexp(logits, 1) - torch.linalg.vecdot(p, logits)
            weight[rows] = p @ unembedding.weight.float()
            if bias is not None:
                bias[rows] = p @ unembedding.bias
        return cls(entropy, None if unembedding.softcap else replace(unembedding, weight=weight, bias=bias))

    def mean_of(self, sentences: Tensor) -> Unembedding:
        """`mean` with the tokens of some sentences, [b] int64."""
        bias = None if self.mean.bias is None else self.mean.bias[sentences]
        return replace(self.mean, weight=self.mean.weight[sentences], bias=bias)


def full_logits(y: Tensor, unembedding: Unembedding, target: str) -> Tensor:
    """The full model's logits [n, V] from targets [n, H]."""
    return unembedding.project(y) if target == "post_norm" else unembedding.logits(y)


class Divergence:
    """KL(full || exit) of a map as a function of parameters of similar size.

    The coordinates z of a typical row are about 1, and B scales them to the size of a typical target: one learning rate
    then suits every model. Typical is the median, since a few massive activations would dominate a mean.

    Attributes:
        parameters: W [H, r], c [r], B [r, H], and, if there are gates to be fitted, these [n_gates], float32, in this
            order.
    """

    def __init__(
        self,
        start: AffineMap,
        gates: Sequence[float],
        fit_gates: bool,
        rows: Rows,
        unembedding: Unembedding,
        target: str,
    ) -> None:
        """The divergence at a start, scaled by what is typical of the rows; gates as in `Jump`."""
        self.unembedding, self.target, self._start = unembedding, target, start
        W, c, B, self._mean_x, self._std_x = (
            part.to(rows.y.device, torch.float32) for part in (start.W, start.c, start.V.T, start.mean_x, start.std_x)
        )
        z = torch.cat([self._coordinates(x, W, c) for x in rows.x])
        spread = z.abs().median(0).values.clamp_min(1e-30)
        self._scale = float(rows.y.square().mean(1).sqrt().median().clamp_min(1e-30))
        scaled = [W / spread, c / spread, B * (spread / self._scale)[:, None]]
        self._gates = torch.tensor(gates).to(B) if gates else None
        self.parameters = [part.requires_grad_() for part in [*scaled, *([self._gates] if fit_gates else [])]]
        # Memory of this size is slow to get anew for each block.
        self._logits, self._own = (B.new_empty(BLOCK, len(unembedding.weight)) for _ in range(2))

    def result(self, parameters: Sequence[Tensor]) -> tuple[AffineMap, list[float]]:
        """Values of the parameters as a map, in float64, and its gates."""
        W, c, B, *gates = (parameter.detach().to(self._start.W) for parameter in parameters)
        if self._gates is not None:
            gates = gates or [self._gates]
        return replace(self._start, W=W, c=c, V=(B * self._scale).T), gates[0].tolist() if gates else []

    def _coordinates(self, x: Tensor, W: Tensor, c: Tensor) -> Tensor:
        return (x - self._mean_x) / self._std_x @ W + c

    def gradients(self, rows: Rows, full: FullModel, levels: Tensor, sentences: Tensor) -> float:
        """As the call, at the parameters, whose gradients are set."""
        return self(self.parameters, rows, full, levels, sentences, backward=True)

    def __call__(
        self,
        parameters: Sequence[Tensor],
        rows: Rows,
        full: FullModel,
        levels: Tensor,
        sentences: Tensor,
        backward: bool = False,
    ) -> float:
        """Mean divergence of rows, each of a sentence at a level ([b] int64), in nats, for values of the parameters.

        `full` is that of all sentences of `rows`.
        """
        W, c, B, *fitted = parameters
        all_gates, gated = fitted[0] if fitted else self._gates, self._gates is not None
        states = self.unembedding.normalise(rows.states[levels, sentences]) if gated else None
        with torch.set_grad_enabled(backward):
            fused = fuse(self.unembedding, [B * self._scale], self.target)[0]
            normed = fused.normalise(self._coordinates(rows.x[levels, sentences], W, c))
            gates = all_gates[levels if len(all_gates) > 1 else torch.zeros_like(levels)] if gated else None
            mean = None
            if full.mean is not None:
                mean = self._mean_logits(normed, B, states, gates, full.mean_of(sentences))
        outputs = [normed, fused.M] + ([gates] if gated and gates.requires_grad else [])
        gradients = [torch.zeros_like(part) for part in outputs]
        total = -full.entropy[sentences].sum() if mean is None else -(full.entropy[sentences] + mean.detach()).sum()
        with torch.no_grad():
            for part in torch.arange(len(levels), device=levels.device).split(BLOCK):
                let_through = (states[part], gates[part]) if gated else None
                logits = self._exit_logits(normed[part], fused, let_through)
                p = None
                if mean is None:
                    p = torch.softmax(full_logits(rows.y[sentences[part]], self.unembedding, self.target), 1)
                losses, factors = self._cross_entropy(logits, p)
                total += losses.sum()
                if backward:
                    gradients[0][part] = logits @ fused.M.T * factors[:, None]
                    gradients[1].addmm_((normed[part] * factors[:, None]).T, logits)
                    if len(gradients) > 2:
                        gradients[2][part] = torch.linalg.vecdot(logits, self._own[: len(part)]) * factors
        if backward:
            if mean is not None:
                outputs, gradients = [*outputs, mean], [*gradients, -torch.ones_like(mean)]
            for parameter in parameters:
                parameter.grad = None
            torch.autograd.backward(outputs, gradients)
            for parameter in parameters:
                parameter.grad /= len(levels)
        return float(total) / len(levels)

    def _mean_logits(
        self, normed: Tensor, B: Tensor, states: Tensor | None, gates: Tensor | None, mean: Unembedding
    ) -> Tensor:
        """Each row's mean logit under the full model's distribution, [b], from the token that has it."""
        fused = fuse(mean, [B * self._scale], self.target)[0]
        logits = torch.linalg.vecdot(normed, fused.M.T)
        if fused.constant is not None:
            logits = logits + fused.constant
        if states is not None:
            logits = logits + gates * torch.linalg.vecdot(states, mean.weight)
        return self.unembedding.scale * logits

    def _exit_logits(
        self, normed: Tensor, fused: FusedUnembedding, let_through: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """What the linear maps give for up to BLOCK rows, [b, V], in memory that the next call takes again."""
        logits = self._logits[: len(normed)]
        if let_through is None:
            torch.mm(normed, fused.M, out=logits)
        else:
            states, gates = let_through
            own = torch.mm(states, self.unembedding.weight.T, out=self._own[: len(normed)])
            torch.mul(own, gates[:, None], out=logits).addmm_(normed, fused.M)
        return logits if fused.constant is None else logits.add_(fused.constant)

    def _cross_entropy(self, logits: Tensor, p: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cross entropies [b] of what the linear maps give, [b, V], which becomes their gradient but for a factor.

        The factors [b] are returned too. Without the full model's distributions p [b, V], which only a soft cap needs,
        the entropies are without their linear part, the mean logits.
        """
        scale, softcap = self.unembedding.scale, self.unembedding.softcap
        if scale != 1.0:
            logits *= scale
        if softcap is not None:
            logits.div_(softcap).tanh_()
            slopes = 1 - logits.square()
            logits *= softcap
            mean = torch.linalg.vecdot(p, logits)
        top = logits.amax(1)
        total = logits.sub_(top[:, None]).exp_().sum(1)
        losses = total.log() + top
        if softcap is None:
            return losses, scale / total
        logits.div_(total[:, None]).sub_(p).mul_(slopes)
        return losses - mean, torch.full_like(total, scale)
