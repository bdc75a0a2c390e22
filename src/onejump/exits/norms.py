"""How much of the variance of hidden states a few rows hold: in many models those at position 0 are massive.

Squared error, Eq. 2, is ruled by such rows where they are far from the mean.
"""

import math

import pyarrow as pa
import torch

from onejump.activations.reading import Activations
from onejump.files.progress import progress_bar
from onejump.jumps.jump import target_of
from onejump.models.unembedding import Unembedding

ONE_IN = (100, 1000)  # the largest 1 % and 0.1 % of the rows
SCHEMA = pa.schema(
    {
        "level": pa.int32(),
        "largest": pa.float64(),
        "rows": pa.int64(),
        "share": pa.float64(),
        "at_position_0": pa.int64(),
        "share_of_position_0": pa.float64(),
    }
)


def largest_rows(activations: Activations, unembedding: Unembedding, device: torch.device) -> pa.Table:
    """The share of the variance that the rows farthest from the mean hold, at each level and after the final norm.

    The variance is the sum over rows of the squared distance from their mean. The unembedding is on the device.

    Returns:
        level int32, 0..K, and null for h^K after the final norm; largest, 0.01 and 0.001; rows, how many that is,
        rounded up; share, what they hold of the variance; at_position_0, how many of them are cut at position 0;
        share_of_position_0, what all rows cut there hold, whatever their size.
    """
    first, found = activations.positions == 0, []
    for level in progress_bar([*range(activations.n_blocks + 1), None], "largest rows", "level"):
        x = activations.level(activations.n_blocks if level is None else level).to(device)
        x = target_of(x, unembedding, "pre_norm" if level is not None else "post_norm")
        squares, order = (x - x.mean(0)).square().sum(1).cpu().double().sort(descending=True, stable=True)
        held, at_first = squares.cumsum(0) / squares.sum(), first[order]
        of_first = float(squares[at_first].sum() / squares.sum())
        for one_in in ONE_IN:
            rows = math.ceil(len(x) / one_in)
            values = (level, 1 / one_in, rows, float(held[rows - 1]), int(at_first[:rows].sum()), of_first)
            found.append(dict(zip(SCHEMA.names, values, strict=True)))
    return pa.Table.from_pylist(found, SCHEMA)
