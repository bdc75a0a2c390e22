"""What jumps are measured against, and variants share: the floor, identity, and the full-rank jumps (JTC)."""

from collections.abc import Callable

import pyarrow as pa
import torch
from torch import Tensor

from onejump.activations.reading import Activations
from onejump.exits.chunks import chunks, evaluation_table, metrics_of
from onejump.exits.columns import METRICS
from onejump.exits.floor import evaluate_floor, inverse_temperatures
from onejump.models.unembedding import Unembedding


def evaluate_references(
    train: Activations,
    test: Activations,
    unembedding: Unembedding,
    jtc: Callable[[int], tuple[Tensor, Tensor]],
    target: str,
    device: torch.device,
) -> pa.Table:
    """Evaluate REFERENCE_METHODS at every exit level, on the test sentences.

    The unembedding is on the device; `jtc` gives the weight [H, H] and bias [H] of a level's full-rank jump.

    Returns:
        As `evaluation_table`; jump is null throughout.
    """
    after_jump = unembedding.project if target == "post_norm" else unembedding.logits
    floor = {(name, None): values for name, values in evaluate_floor(train, test, unembedding, device).items()}
    sharpness = inverse_temperatures(train, unembedding, device)
    methods = ("identity", "identity_temperature", "jtc")
    results = [
        floor | {(method, None): torch.empty(len(METRICS), len(test)) for method in methods}
        for _ in range(test.n_blocks)
    ]
    for rows, full, inputs in chunks(test, unembedding, device, "evaluate references"):
        for level, x in enumerate(inputs):
            weight, bias = (tensor.to(device) for tensor in jtc(level))
            identity = unembedding.logits(x)
            logits = (identity, sharpness[level] * identity, after_jump(torch.addmm(bias, x, weight)))
            for method, of_method in zip(methods, logits, strict=True):
                results[level][method, None][:, rows] = metrics_of(of_method, full)
    return evaluation_table(results, test.sentence_ids)
