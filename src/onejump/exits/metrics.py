"""What each method predicts at an exit level, sentence by sentence, against the full model."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """A distribution, the full model's or an exit's, for some sentences."""

    probabilities: Tensor  # [n, V]
    log_probabilities: Tensor  # [n, V]
    entropy: Tensor  # [n], nats
    token: Tensor  # [n], the most probable
    fifth: Tensor  # [n], log probability of the fifth most probable

    @classmethod
    def of(cls, logits: Tensor) -> "Prediction":
        """From logits [n, V]."""
        token, top = argmax(logits)
        log_probabilities = logits - top
        probabilities = log_probabilities.exp()
        # Summed pairwise: log_softmax sums in a row, and over 50,000 terms in float32 that costs KL 1e-4 nats.
        normaliser = probabilities.sum(1, keepdim=True)
        probabilities /= normaliser
        log_probabilities -= normaliser.log()
        fifth = log_probabilities.topk(min(5, logits.shape[1]), -1).values[:, -1]
        entropy = -torch.linalg.vecdot(probabilities, log_probabilities)
        return cls(probabilities, log_probabilities, entropy, token[:, 0], fifth)

    def __getitem__(self, rows: slice) -> "Prediction":
        """The same for some of the sentences."""
        return Prediction(**{name: value[rows] for name, value in vars(self).items()})


def exit_metrics(logits: Tensor, full: Prediction, expected: Tensor | None = None) -> Tensor:
    """All METRICS of an exit, from its logits [n, V], which are overwritten, and their mean under `full`, if known [n].

    Returns:
        [6, n] float32.
    """
    if expected is None:
        expected = torch.linalg.vecdot(full.probabilities, logits)
    token, top = argmax(logits)
    token, top = token[:, 0], top[:, 0]
    target = logits.gather(1, full.token[:, None])[:, 0]
    log_normaliser = logits.sub_(top[:, None]).exp_().sum(1).log()
    exit_log_probability = full.log_probabilities.gather(1, token[:, None])[:, 0]
    return torch.stack(
        [
            (token == full.token).float(),
            (exit_log_probability >= full.fifth).float(),
            log_normaliser - (target - top),
            -exit_log_probability,
            log_normaliser - (expected - top) - full.entropy,
            (-log_normaliser).exp(),
        ]
    )


def argmax(logits: Tensor, width: int = 64) -> tuple[Tensor, Tensor]:
    """Index and value of each row's maximum, each [n, 1]; by blocks, since PyTorch's argmax is slow on a CPU."""
    n, size = logits.shape
    whole = size // width * width
    if whole == 0:
        value, index = logits.max(1, keepdim=True)
        return index, value
    blocks = logits[:, :whole].unflatten(1, (-1, width))
    block = blocks.amax(2).argmax(1)
    value, inner = blocks[torch.arange(n, device=logits.device), block].max(1, keepdim=True)
    index = block[:, None] * width + inner
    if whole < size:
        rest, inner = logits[:, whole:].max(1, keepdim=True)
        index, value = torch.where(rest > value, inner + whole, index), torch.maximum(rest, value)
    return index, value
