"""The divergence KL(full || exit) of predictions from the full model's, with gradients in closed form.

Of the full model's distributions p, what is needed beside their entropy are means of the output embedding under p,
`E_p[W] = p W`, since logits are linear in it: the mean logit of an exit is its logit for a token with that embedding.
These are computed once, with H numbers a sentence. So what a row costs in training is the exit's own logits. All arrays
as wide as the vocabulary are of BLOCK rows, whatever the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onejump.jumps.objective import Rows
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


class Divergence(ABC):
    """KL(full || exit) as a function of what is fitted; each kind of exit says how its logits follow from that.

    Attributes:
        parameters: what is fitted, float32, on the unembedding's device.
        unembedding, target: as given.
    """

    parameters: list[Tensor]

    def __init__(self, unembedding: Unembedding, target: str) -> None:
        """The divergence of exits by this unembedding, on its device, from targets `pre_norm` or `post_norm`."""
        self.unembedding, self.target = unembedding, target
        # Memory of this size is slow to get anew for each block. Laid out by token: the weight first, as in `fuse`.
        self._logits = unembedding.norm_weight.new_empty(len(unembedding.weight), BLOCK).T

    @abstractmethod
    def _outputs(self, parameters: Sequence[Tensor], rows: Rows, levels: Tensor, sentences: Tensor) -> "Outputs":
        """What rows, each of a sentence at a level ([b] int64), give up to the last products."""

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
        with torch.set_grad_enabled(backward):
            outputs = self._outputs(parameters, rows, levels, sentences)
            mean = None if full.mean is None else outputs.mean_logits(full.mean_of(sentences))
        tensors = outputs.tensors()
        gradients = [torch.zeros_like(part) for part in tensors]
        total = -full.entropy[sentences].sum() if mean is None else -(full.entropy[sentences] + mean.detach()).sum()
        with torch.no_grad():
            for part in torch.arange(len(levels), device=levels.device).split(BLOCK):
                logits = outputs.logits(part, self._logits[: len(part)])
                p = None
                if mean is None:
                    p = torch.softmax(full_logits(rows.y[sentences[part]], self.unembedding, self.target), 1)
                losses, factors = self._cross_entropy(logits, p)
                total += losses.sum()
                if backward:
                    outputs.add_gradients(gradients, part, logits, factors)
        if backward:
            if mean is not None:
                tensors, gradients = [*tensors, mean], [*gradients, -torch.ones_like(mean)]
            for parameter in parameters:
                parameter.grad = None
            torch.autograd.backward(tensors, gradients)
            for parameter in parameters:
                parameter.grad /= len(levels)
        return float(total) / len(levels)

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


class Outputs(ABC):
    """What a batch of b rows gives up to the last products, which are as wide as the vocabulary."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The tensors whose gradients `add_gradients` computes; they lead back to the parameters."""

    @abstractmethod
    def mean_logits(self, mean: Unembedding) -> Tensor:
        """Each row's mean logit under the full model's distribution, [b], from the token that has it."""

    @abstractmethod
    def logits(self, part: Tensor, out: Tensor) -> Tensor:
        """What the linear maps give for some of the rows, [n, V], in the memory `out`."""

    @abstractmethod
    def add_gradients(self, gradients: list[Tensor], part: Tensor, logits: Tensor, factors: Tensor) -> None:
        """Add what these rows give to the gradients of `tensors`, from that of their logits but for the factors [n]."""
