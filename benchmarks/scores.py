"""D_m of all K jumps at all K+1 levels, compared with full-width predictions and with a single matrix product.

- ours: `score_jumps`, as the stage `score-jumps` calls it, from the shards to all cosines;
- full-width predictions: for each jump and level, the jump's output [N, H] and its cosine with the target; a turn does
  every second jump and counts twice;
- limit: one matrix product with as many FLOPs as D_m needs at least: the K+1 levels times all P, and the target times
  all B.

Both must give the same cosines, to 1e-4.

    python benchmarks/scores.py
"""

from argparse import Namespace

import measure
import torch
from synthetic import Dump, Size, make_dump, random_jumps
from torch.nn.functional import cosine_similarity

from onejump.activations.reading import Activations
from onejump.analysis.scores import score_jumps
from onejump.jumps.jump import FoldedJump

CPU = torch.device("cpu")
FULL_WIDTH = "full-width predictions"
SIZES = (Size.of("smollm2-135m", 3000, 1), Size.of("llama-2-7b", 1024, 1))
PARTS = 2  # the jumps are divided into, of which a turn of the slow way takes one


def full_width(activations: Activations, jumps: list[FoldedJump]) -> torch.Tensor:
    """Cosines [K, K+1, N], one jump and one level at a time."""
    y = activations.level(activations.n_blocks)
    cosines = torch.empty(len(jumps), activations.n_blocks + 1, len(y))
    for level in range(activations.n_blocks + 1):
        x = activations.level(level)
        for m, jump in enumerate(jumps):
            cosines[m, level] = cosine_similarity(jump(x, level) @ jump.B, y)
    return cosines


def compare(dump: Dump, size: Size, rounds: int) -> list[measure.Row]:
    """Rows of the table for one size.

    Raises:
        OnejumpError: the cosines differ.
    """
    unembedding, activations = dump.open("train")
    jumps = random_jumps(size, size.n_blocks)
    x = torch.randn((size.n_blocks + 2) * size.train, size.hidden_size)
    P = torch.cat([jump.P for jump in jumps], 1)
    turns = measure.take_turns(
        {
            measure.OURS: lambda turn: score_jumps(activations, unembedding, jumps, "pre_norm", CPU),
            FULL_WIDTH: lambda turn: full_width(activations, jumps[turn % PARTS :: PARTS]),
            measure.LIMIT: lambda turn: x @ P,
        },
        rounds,
        parts={FULL_WIDTH: PARTS},
    )
    found = turns.results[measure.OURS][(rounds - 1) % PARTS :: PARTS]
    measure.require_close("cosines", found, turns.results[FULL_WIDTH], 1e-4)
    return measure.rows_of(turns, size, "one float32 product of the same FLOPs")


def tables(given: Namespace) -> dict[str, list[measure.Row]]:
    """The table, for both sizes."""
    rows = []
    for size in SIZES:
        rows += compare(make_dump(given.folder / size.name, size), size, given.rounds)
    return {"scores": rows}


if __name__ == "__main__":
    measure.run(__doc__, tables, rounds=(5, "rounds"))
