"""D_m for all K jumps at all K+1 levels, beside forming each prediction in full width, and beside one matrix product.

- ours: `score_jumps`, as the stage `score-jumps` calls it, from the shards to all cosines;
- full-width predictions: for each jump and level, the jump's output [N, H] and its cosine with the target;
- limit: one matrix product of as many FLOPs as D_m needs at least: the K+1 levels into all jumps, and the target into
  all jumps' outputs.

Both must give the same cosines, to 1e-4. Predictions are formed for every second jump a turn, which count twice.

    python benchmarks/scores.py
"""

import tempfile
from pathlib import Path

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
PARTS = 2  # of the jumps, of which a turn of the slow way takes one


def full_width(activations: Activations, jumps: list[FoldedJump]) -> torch.Tensor:
    """Cosines [K, K+1, N], one jump and one level at a time."""
    y = activations.level(activations.n_blocks)
    cosines = torch.empty(len(jumps), activations.n_blocks + 1, len(y))
    for level in range(activations.n_blocks + 1):
        x = activations.level(level)
        for m, jump in enumerate(jumps):
            cosines[m, level] = cosine_similarity(jump(x) @ jump.B, y)
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


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(make_dump(Path(folder), size), size, given.rounds)
    measure.write("scores", rows)


if __name__ == "__main__":
    measure.run(main)
