"""Every exit by a jump at an exit level, compared with the same exits through the norm and the full output head.

- ours: `evaluate_jumps`, as the stage `evaluate-jumps` calls it: all metrics of N-NJTC, OJFA, the joint jump and every
  single jump, through fused unembeddings, with the logits computed in blocks that fit the cache;
- norm, full head: the jump's output [n, H], final norm, logits [n, V], softmax, metrics; a turn does one level and
  counts once for each level;
- limit: the products of rank r alone, and one exponential for each logit, in the same blocks.

Both must give the same metrics: surprisals, KL and confidence to 1e-3, precision except in two sentences of a hundred.
All K jumps are evaluated, but at six exit levels only, since every level takes the same time.

    python benchmarks/evaluation.py
"""

from argparse import Namespace

import measure
import pyarrow as pa
import pyarrow.compute as pc
import torch
from synthetic import Dump, Size, make_dump, random_jumps

from onejump.activations.reading import Activations
from onejump.exits.chunks import CACHED_ELEMENTS, ROWS
from onejump.exits.columns import METRICS
from onejump.exits.evaluation import JumpExits, evaluate_jumps
from onejump.files.tables import numbers
from onejump.models.unembedding import Unembedding

CPU = torch.device("cpu")
FULL_HEAD = "norm, full head"
LEVELS = 6
# Number of jumps -> the model that has so many.
SIZES = {30: Size.of("smollm2-135m", 2, 256, LEVELS), 32: Size.of("llama-2-7b", 2, 256, LEVELS)}


def metrics(logits: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """METRICS of an exit, [6, n], from its logits and the full model's log probabilities, both [n, V]."""
    exits = logits.log_softmax(-1)
    token, best = full.argmax(-1), exits.argmax(-1)
    at_5 = (full.topk(5).indices == best[:, None]).any(-1)
    surprisal, exit_surprisal = (-p.gather(1, t[:, None])[:, 0] for p, t in ((exits, token), (full, best)))
    kl = (full.exp() * (full - exits)).sum(-1)
    return torch.stack([best == token, at_5, surprisal, exit_surprisal, kl, exits.amax(-1).exp()])


def full_head(
    activations: Activations, unembedding: Unembedding, exits: JumpExits, level: int
) -> dict[str, torch.Tensor]:
    """METRICS [6, N] of every method at one level, by name; arbitrary jumps by their number too."""
    final, x = activations.level(activations.n_blocks), activations.level(level)
    methods = {"n_njtc": exits.jumps[level], "ojfa": exits.jumps[exits.ojfa], "joint": exits.joint}
    methods |= {f"arbitrary {m}": jump for m, jump in enumerate(exits.jumps)}
    parts = []
    for h, h_final in zip(x.split(ROWS["cpu"]), final.split(ROWS["cpu"]), strict=True):
        full = unembedding.logits(h_final).log_softmax(-1)
        parts.append([metrics(unembedding.logits(jump(h, level) @ jump.B), full) for jump in methods.values()])
    return {name: torch.cat(columns, 1) for name, columns in zip(methods, zip(*parts, strict=True), strict=True)}


def least_work(activations: Activations, unembedding: Unembedding, exits: JumpExits) -> None:
    """Compute as many logits of rank r, and their exponentials, as all exits at all levels have."""
    V = len(unembedding.weight)
    z, M = torch.randn(len(activations), len(exits.joint.q)), torch.randn(len(exits.joint.q), V)
    logits = torch.empty(max(1, CACHED_ELEMENTS["cpu"] // V), V)
    for _ in range(activations.n_blocks * (len(exits.jumps) + 3)):
        for part in z.split(len(logits)):
            torch.mm(part, M, out=logits[: len(part)]).exp_()


def require_same(tables: tuple[pa.Table, pa.Table], expected: dict[str, torch.Tensor], level: int) -> None:
    """Compare the stage's tables at one level with the metrics computed in full width.

    Raises:
        OnejumpError: they differ.
    """
    evaluation, grid = (table.filter(pc.field("level") == level) for table in tables)
    for method in ("n_njtc", "ojfa", "joint"):
        table = evaluation.filter(pc.field("method") == method)
        for name, values in zip(METRICS, expected[method], strict=True):
            if name.startswith("correct"):  # equal, except where rounding breaks a tie differently
                differing = table[name].to_numpy() != values.bool().numpy()
                measure.require_close(f"{method} {name}", 1 + differing.mean(), 1.0, 0.02)
            else:
                measure.require_close(f"{method} {name}", numbers(table, name), values, 1e-3)
    every = torch.stack([values for name, values in expected.items() if name.startswith("arbitrary")])
    measure.require_close("surprisal of the grid", numbers(grid, "surprisal"), every[:, 2].mean(1), 1e-3)
    measure.require_close("precision of the grid", 1 + numbers(grid, "precision"), 1 + every[:, 0].mean(1), 0.02)


def compare(dump: Dump, size: Size, n_jumps: int, rounds: int) -> list[measure.Row]:
    """Rows of the table for one size.

    Raises:
        OnejumpError: the metrics differ.
    """
    unembedding, activations = dump.open("test")
    *jumps, joint = random_jumps(size, n_jumps + 1)
    exits = JumpExits(jumps, n_jumps // 2, joint)
    turns = measure.take_turns(
        {
            measure.OURS: lambda turn: evaluate_jumps(activations, unembedding, exits, "pre_norm", size.test, CPU),
            FULL_HEAD: lambda turn: full_head(activations, unembedding, exits, turn % size.n_blocks),
            measure.LIMIT: lambda turn: least_work(activations, unembedding, exits),
        },
        rounds,
        parts={FULL_HEAD: size.n_blocks},
    )
    require_same(turns.results[measure.OURS], turns.results[FULL_HEAD], (rounds - 1) % size.n_blocks)
    told = f"{size.name}: K={n_jumps} H={size.hidden_size} V={size.vocabulary} r={size.rank} N={size.test}"
    return measure.rows_of(turns, told, "products of rank r and one exponential a logit")


def tables(given: Namespace) -> dict[str, list[measure.Row]]:
    """The table, for both models."""
    rows = []
    for n_jumps, size in SIZES.items():
        rows += compare(make_dump(given.folder / size.name, size), size, n_jumps, given.rounds)
    return {"evaluation": rows}


if __name__ == "__main__":
    measure.run(__doc__, tables, rounds=(3, "rounds"))
