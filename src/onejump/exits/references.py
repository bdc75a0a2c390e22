"""What jumps are measured against, and variants share: the floor, identity, and the full-rank jumps (JTC)."""

from collections.abc import Callable

import pyarrow as pa
import torch
from torch import Tensor

from onejump.activations.reading import Activations
from onejump.exits.chunks import chunks, evaluation_table, metrics_of
from onejump.exits.columns import METRICS
from onejump.exits.floor import Constants, evaluate_token_table, inverse_temperatures
from onejump.models.unembedding import Unembedding


def evaluate_references(
    train: Activations, test: Activations, unembedding: Unembedding, device: torch.device
) -> pa.Table:
    """Evaluate REFERENCE_METHODS at every exit level, on the test sentences; the unembedding is on the device.

    Returns:
        As `evaluation_table`; jump is null throughout.
    """
    constants = Constants.of(train, unembedding, device)
    # The same at every level.
    floor = {"token_table": evaluate_token_table(train, test, constants.everywhere, unembedding, device)}
    floor |= {name: torch.empty(len(METRICS), len(test)) for name in ("constant", "constant_by_position")}
    sharpness = inverse_temperatures(train, unembedding, device)
    results = [
        {(name, None): values for name, values in floor.items()}
        | {(method, None): torch.empty(len(METRICS), len(test)) for method in ("identity", "identity_temperature")}
        for _ in range(test.n_blocks)
    ]
    for rows, full, inputs in chunks(test, unembedding, device, "evaluate references"):
        for name, logits in constants.logits(test.positions[rows]).items():
            floor[name][:, rows] = metrics_of(logits, full)
        for level, x in enumerate(inputs):
            logits = unembedding.logits(x)
            results[level]["identity_temperature", None][:, rows] = metrics_of(sharpness[level] * logits, full)
            results[level]["identity", None][:, rows] = metrics_of(logits, full)
    return evaluation_table(results, test.sentence_ids)


def evaluate_jtc(
    test: Activations,
    unembedding: Unembedding,
    jtc: Callable[[int], tuple[Tensor, Tensor]],
    target: str,
    device: torch.device,
) -> pa.Table:
    """Evaluate the full-rank jumps at every exit level, on the test sentences.

    The unembedding is on the device; `jtc` gives the weight [H, H] and bias [H] of a level's full-rank jump.

    Returns:
        As `evaluation_table`; jump is null throughout.
    """
    after_jump = unembedding.project if target == "post_norm" else unembedding.logits
    results = [{("jtc", None): torch.empty(len(METRICS), len(test))} for _ in range(test.n_blocks)]
    for rows, full, inputs in chunks(test, unembedding, device, "evaluate JTC"):
        for level, x in enumerate(inputs):
            weight, bias = (tensor.to(device) for tensor in jtc(level))
            results[level]["jtc", None][:, rows] = metrics_of(after_jump(torch.addmm(bias, x, weight)), full)
    return evaluation_table(results, test.sentence_ids)
