"""The floor: what predicts the next token without an early hidden state, or with nothing but the unembedding.

A jump is worth what it adds to these. All are fitted on the training sentences:

- `constant`: the mean of the full model's distributions, which of all constants has the smallest KL(full || constant).
- `constant_by_position`: one such constant for position 0, and one for the rest.
- `token_table`: the mean over the n sentences that are cut after the same token, backed off to the constant,
  `(sum of their distributions + BACK_OFF constant) / (n + BACK_OFF)`.
- identity with a temperature for each level, which changes no prediction but makes its probabilities honest.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy.optimize import toms748
from torch import Tensor

from onejump.activations.reading import Activations
from onejump.exits.chunks import ROWS, cached_rows, chunks, metrics_of
from onejump.exits.columns import METRICS
from onejump.exits.metrics import Prediction
from onejump.files.progress import progress_bar
from onejump.jumps.moments import validation_start
from onejump.models.devices import by_device
from onejump.models.unembedding import Unembedding

BACK_OFF = 1.0  # sentences that the constant counts for in the token table
LEAST = 1e-30  # smallest probability, so that none has an infinite logarithm
INVERSE_TEMPERATURES = (1e-6, 1e3)


@dataclass(frozen=True)
class Constants:
    """Mean distributions [V] of the full model, on the device."""

    everywhere: Tensor  # over all sentences
    first: Tensor  # over those cut at position 0; over all if there is none
    rest: Tensor  # over the others; over all if there is none

    @classmethod
    def of(cls, train: Activations, unembedding: Unembedding, device: torch.device) -> "Constants":
        """Those of the training sentences; the unembedding is on the device."""
        of_first, of_rest = torch.zeros(2, len(unembedding.weight)).to(device)
        for rows, full, _ in chunks(train, unembedding, device, "mean distributions"):
            at_first = (train.positions[rows] == 0).to(device)
            of_first = of_first + full.probabilities[at_first].sum(0)
            of_rest = of_rest + full.probabilities[~at_first].sum(0)
        n_first = int((train.positions == 0).sum())
        everywhere = (of_first + of_rest) / len(train)
        sizes = ((of_first, n_first), (of_rest, len(train) - n_first))
        means = [part / n if n else everywhere for part, n in sizes]
        return cls(*(mean.clamp_min(LEAST) for mean in (everywhere, *means)))

    def logits(self, positions: Tensor) -> dict[str, Tensor]:
        """What `constant` and `constant_by_position` predict at some positions [n]: logits [n, V]."""
        at_first = (positions == 0).to(self.first.device)[:, None]
        by_position = torch.where(at_first, self.first, self.rest)
        return {"constant": self.everywhere.log().repeat(len(positions), 1), "constant_by_position": by_position.log()}


def evaluate_token_table(
    train: Activations, test: Activations, constant: Tensor, unembedding: Unembedding, device: torch.device
) -> Tensor:
    """METRICS [metric, N] of `token_table` on the test sentences, which do not depend on the level.

    The constant [V] and the unembedding are on the device. Some tokens at a time: the whole table would be tokens x V.
    """
    last_train, last_test = (split.level(split.n_blocks) for split in (train, test))
    found = torch.empty(len(METRICS), len(test))
    with torch.inference_mode():
        for tokens in progress_bar(list(_packs(train, test, by_device(ROWS, device))), "evaluate token table", "pack"):
            entry = torch.full((int(max(tokens.max(), train.token_ids.max(), test.token_ids.max())) + 1,), -1)
            entry[tokens] = torch.arange(len(tokens))
            given, wanted = (entry[split.token_ids] for split in (train, test))
            sums = BACK_OFF * constant.repeat(len(tokens), 1)
            for rows in (given >= 0).nonzero()[:, 0].split(by_device(ROWS, device)):
                full = Prediction.of(unembedding.logits(last_train[rows].to(device)))
                sums.index_add_(0, given[rows].to(device), full.probabilities)
            counts = torch.bincount(given[given >= 0], minlength=len(tokens)).to(device) + BACK_OFF
            table = (sums / counts[:, None]).log()
            rows = (wanted >= 0).nonzero()[:, 0]
            full = Prediction.of(unembedding.logits(last_test[rows].to(device)))
            found[:, rows] = metrics_of(table[wanted[rows].to(device)], full)
    return found


def _packs(train: Activations, test: Activations, most: int) -> Iterator[Tensor]:
    """The distinct tokens of the test sentences, in packs of about `most` sentences of both splits."""
    tokens, n_test = test.token_ids.unique(return_counts=True)
    n_train = torch.bincount(train.token_ids, minlength=int(tokens[-1]) + 1)[tokens]
    pack = (n_test + n_train).cumsum(0) // most
    yield from tokens.split(pack.unique_consecutive(return_counts=True)[1].tolist())


def inverse_temperatures(train: Activations, unembedding: Unembedding, device: torch.device) -> list[float]:
    """For each exit level, what identity's logits are multiplied by: the smallest KL(full || exit).

    Fitted on sentences of the validation slice, as many as the device takes at once: one number needs no more.
    """
    first = validation_start(len(train))
    part = train.rows(first, first + by_device(ROWS, device))
    ((_, full, inputs),) = chunks(part, unembedding, device, "temperatures")
    return [inverse_temperature(unembedding.logits(x), full) for x in inputs]


def inverse_temperature(logits: Tensor, full: Prediction) -> float:
    """The s within INVERSE_TEMPERATURES that minimises the mean KL(full || softmax(s logits)), logits [n, V].

    The divergence is convex in s. Its slope is the mean logit under the exit's distribution less that under the full
    model's, which is looked for in log s: early states give logits of hundreds, at which softmax is flat in s.
    """
    logits = logits - logits.mean(1, keepdim=True)
    expected = torch.linalg.vecdot(full.probabilities, logits).mean()

    def slope(log_s: float) -> float:
        parts = logits.split(cached_rows(full))
        means = [torch.linalg.vecdot(torch.softmax(math.exp(log_s) * part, 1), part) for part in parts]
        return float(torch.cat(means).mean() - expected)

    least, most = (math.log(bound) for bound in INVERSE_TEMPERATURES)
    if slope(least) >= 0:
        return INVERSE_TEMPERATURES[0]
    if slope(most) <= 0:
        return INVERSE_TEMPERATURES[1]
    return math.exp(toms748(slope, least, most, xtol=1e-4))
