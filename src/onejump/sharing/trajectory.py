"""What a model would predict at each level of a text, token by token, by jumps and by identity."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from onejump.exits.metrics import Prediction
from onejump.files.atomic import OnejumpError
from onejump.models.anatomy import Anatomy
from onejump.models.unembedding import Unembedding

CHUNK = 2**24  # logits that are held at a time, about: five tables of them in float32 take 340 MB


def token_ids(text_or_ids: str | Sequence[int] | Tensor, tokenizer, vocabulary: int) -> list[int]:
    """The tokens of a text, or the ids given, [T] or [1, T].

    Raises:
        OnejumpError: a text comes without a tokenizer, there is no token, or an id is beyond the vocabulary.
    """
    if isinstance(text_or_ids, str):
        if tokenizer is None:
            raise OnejumpError("a text needs a tokenizer; give that of the base model, or token ids")
        ids = tokenizer(text_or_ids)["input_ids"]
    else:
        ids = torch.as_tensor(text_or_ids, dtype=torch.long)
        if ids.ndim > 2 or (ids.ndim == 2 and len(ids) != 1):
            raise OnejumpError(f"token ids are {list(ids.shape)}, expected those of one text, [T] or [1, T]")
        ids = ids.flatten().tolist()
    if not ids:
        raise OnejumpError("the text has no token; give one with at least one")
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        wrong = next(i for i in ids if not 0 <= i < vocabulary)
        raise OnejumpError(f"token {wrong} is not one of the model's 0..{vocabulary - 1}; use its own tokenizer")
    return ids


@torch.no_grad()
def trajectory(
    anatomy: Anatomy,
    unembedding: Unembedding,
    exits: Callable[[Tensor, int], dict[str, Tensor]],
    ids: Sequence[int],
    tokenizer=None,
) -> pd.DataFrame:
    """The table that `PublishedJump.trajectory` returns.

    Args:
        anatomy: of the model.
        unembedding: of the model, in float32.
        exits: from hidden states [n, H] float32 and their level to each method's logits [n, V].
        ids: of the T tokens.
        tokenizer: names tokens; without one, they are their ids.
    """
    states, device = {}, unembedding.weight.device
    anatomy.run(torch.tensor([list(ids)], device=anatomy.device), states.__setitem__)
    K, rows = len(anatomy.blocks), max(1, CHUNK // len(unembedding.weight))
    parts = []
    for first in range(0, len(ids), rows):
        x = {level: h[0, first : first + rows].to(device, torch.float32) for level, h in states.items()}
        full = Prediction.of(unembedding.logits(x[K]))
        parts.append(_readings(full, full, first, K, "model"))
        for level in range(K):
            for method, logits in exits(x[level], level).items():
                parts.append(_readings(Prediction.of(logits), full, first, level, method))
    table = pd.concat(parts).sort_values(["position", "level"], kind="stable", ignore_index=True)
    names = {i: str(i) if tokenizer is None else tokenizer.decode([i]) for i in {*ids, *table["predicted_id"]}}
    table.insert(1, "token", [names[ids[position]] for position in table["position"]])
    table.insert(4, "predicted", [names[i] for i in table["predicted_id"]])
    return table


def _readings(exit: Prediction, full: Prediction, first: int, level: int, method: str) -> pd.DataFrame:
    """A row for each token: what is most probable at an exit, how much, and how far that is from the full model."""
    values = {
        "probability": exit.probabilities.gather(1, exit.token[:, None])[:, 0],
        "kl": (full.probabilities * (full.log_probabilities - exit.log_probabilities)).sum(-1),
        "entropy": exit.entropy,
    }
    table = pd.DataFrame({"position": range(first, first + len(exit.token)), "level": level, "method": method})
    return table.assign(predicted_id=exit.token.tolist(), **{name: value.tolist() for name, value in values.items()})
