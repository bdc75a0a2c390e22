"""What jumps are measured against, and variants share: the floor, identity, and lenses."""

from collections.abc import Callable

import pyarrow as pa
import torch
from torch import Tensor

from onejump.activations.reading import Activations
from onejump.exits.chunks import Method, chunks, evaluation_table, metrics_of
from onejump.exits.columns import METRICS
from onejump.exits.floor import Constants, evaluate_token_table, inverse_temperatures
from onejump.jumps.lenses import LensFile
from onejump.jumps.moments import validation_slice, validation_start
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


def evaluate_references_held_out(train: Activations, unembedding: Unembedding, device: torch.device) -> pa.Table:
    """Evaluate what a dynamic exit needs no jump for, on the validation slice; the unembedding is on the device.

    That is identity, and the token table of the other training sentences.

    Returns:
        As `evaluation_table`; jump is null throughout.
    """
    fitted, held_out = train.rows(0, validation_start(len(train))), validation_slice(train)
    constant = Constants.of(fitted, unembedding, device).everywhere
    table = evaluate_token_table(fitted, held_out, constant, unembedding, device)
    results = _evaluate(held_out, unembedding, "identity", lambda level, x: unembedding.logits(x), device)
    return evaluation_table([{("token_table", None): table} | level for level in results], held_out.sentence_ids)


def evaluate_lens(test: Activations, unembedding: Unembedding, lens: LensFile, device: torch.device) -> pa.Table:
    """Evaluate a lens at every exit level, on the test sentences; the unembedding is on the device.

    Returns:
        As `evaluation_table`; the method is the lens's name, and jump is null throughout.
    """
    after = unembedding.project if lens.target == "post_norm" else unembedding.logits
    results = _evaluate(test, unembedding, lens.lens, lambda level, x: after(lens.at(level).to(device)(x)), device)
    return evaluation_table(results, test.sentence_ids)


def _evaluate(
    split: Activations,
    unembedding: Unembedding,
    method: str,
    logits_of: Callable[[int, Tensor], Tensor],
    device: torch.device,
) -> list[dict[Method, Tensor]]:
    """METRICS [6, n] of one method at each level; its logits [n, V] follow from a level and hidden states [n, H]."""
    results = [{(method, None): torch.empty(len(METRICS), len(split))} for _ in range(split.n_blocks)]
    for rows, full, inputs in chunks(split, unembedding, device, f"evaluate {method}"):
        for level, x in enumerate(inputs):
            results[level][method, None][:, rows] = metrics_of(logits_of(level, x), full)
    return results
