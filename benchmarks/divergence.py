"""One jump fitted by the KL divergence: its steps, compared with automatic differentiation of the whole predictions.

- ours: `JumpDivergence.gradients` of a batch, as the fit `kl` calls it, with a gate a level and without;
- automatic differentiation: the batch's predictions [b, H], their logits by the output head, and PyTorch's gradients of
  its own divergence from the full model's logits, which it needs anew in each step;
- limit: the matrix products of a step that are as wide as the vocabulary, from memory.

Both must give the same divergence and the same gradients, to 1e-3. Times are of KL_STEPS steps, the most that a fit
takes, without their validation.

    python benchmarks/divergence.py
"""

from argparse import Namespace
from collections.abc import Sequence
from itertools import product

import measure
import torch
from synthetic import Size, levels_of
from torch.nn.functional import kl_div

from onejump.jumps.descent import batch_rows
from onejump.jumps.divergence import FullModel, full_logits
from onejump.jumps.exact import AffineMap
from onejump.jumps.jump_divergence import JumpDivergence
from onejump.jumps.objective import Rows
from onejump.jumps.settings import KL_BATCH_ROWS, KL_STEPS
from onejump.models.unembedding import Unembedding

AUTOGRAD = "automatic differentiation"
TARGET = "post_norm"
MODELS = ("smollm2-135m", "gemma-3-270m", "qwen2.5-coder-1.5b")


def random_map(size: Size, rows: Rows, generator: torch.Generator) -> AffineMap:
    """A map with the rows' means and spreads, and otherwise random weights."""
    H, r, x = size.hidden_size, size.rank, rows.x.flatten(0, 1).double()
    W, c, V = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((H, r), (r,), (H, r)))
    return AffineMap(W / H**0.5, c, V, x.mean(0), x.std(0))


def autograd(
    start: AffineMap, gates: Sequence[float], rows: Rows, unembedding: Unembedding, levels: torch.Tensor
) -> tuple[float, list[torch.Tensor]]:
    """The divergence of a batch of all rows, and each parameter times its gradient, whatever the parameter's unit."""
    parts = [start.W, start.c, start.V.T, *([torch.tensor(gates)] if gates else [])]
    W, c, B, *fitted = parameters = [part.float().requires_grad_() for part in parts]
    x = rows.x.flatten(0, 1)
    predicted = ((x - start.mean_x.float()) / start.std_x.float() @ W + c) @ B
    if fitted:
        predicted = predicted + fitted[0][levels, None] * unembedding.normalise(x)
    full = full_logits(rows.y.repeat(len(rows.x), 1), unembedding, TARGET).log_softmax(1)
    found = kl_div(unembedding.project(predicted).log_softmax(1), full, log_target=True, reduction="batchmean")
    found.backward()
    return float(found.detach()), [part.detach() * part.grad for part in parameters]


def compare(size: Size, gated: bool, rounds: int) -> list[measure.Row]:
    """Rows of the table for one model's size.

    Raises:
        OnejumpError: the divergences or the gradients differ.
    """
    generator = torch.Generator().manual_seed(0)
    K, H, V, r = size.n_blocks, size.hidden_size, size.vocabulary, size.rank
    n = batch_rows(K, KL_BATCH_ROWS)
    weight = torch.randn(V, H, generator=generator) * (2 / H**0.5)
    unembedding = Unembedding("rms", torch.ones(H), None, 1e-5, weight, None)
    *x, final = levels_of(n, size, generator)
    rows = Rows(torch.stack(x), unembedding.normalise(final), torch.stack(x) if gated else None)
    start, gates = random_map(size, rows, generator), [level / K for level in range(K)] if gated else []
    divergence = JumpDivergence(start, gates, gated, False, rows, unembedding, TARGET)
    full = FullModel.of(rows.y, unembedding, TARGET)
    levels, sentences = torch.arange(K).repeat_interleave(n), torch.arange(n).repeat(K)

    def ours(turn: int) -> tuple[float, list[torch.Tensor]]:
        found = divergence.gradients(rows, full, levels, sentences)
        return found, [part.detach() * part.grad for part in divergence.parameters]

    wide = torch.randn(V, K * n, generator=generator)
    narrow, states = torch.randn(2, K * n, H, generator=generator)

    def products(turn: int) -> None:
        M = weight @ narrow[:r].T  # for its gradient too
        (wide @ narrow[:, :r]).T @ weight
        for _ in range(2):
            M @ narrow[:, :r].T
        if gated:
            weight @ states.T

    ours(0)  # the first step gets its memory
    turns = measure.take_turns(
        {
            measure.OURS: ours,
            AUTOGRAD: lambda turn: autograd(start, gates, rows, unembedding, levels),
            measure.LIMIT: products,
        },
        rounds,
        parts=dict.fromkeys((measure.OURS, AUTOGRAD, measure.LIMIT), KL_STEPS),
    )
    (loss, found), (expected_loss, expected) = turns.results[measure.OURS], turns.results[AUTOGRAD]
    measure.require_close("divergence", loss, expected_loss, 1e-3)
    for name, *pair in zip("WcBa", found, expected, strict=False):
        measure.require_close(f"gradient of {name}", *pair, 1e-3)
    shape = f"{size.name}, {'a gate a level' if gated else 'no gate'}: {K * n} rows, H={H} r={r} V={V}"
    return measure.rows_of(turns, shape, "products as wide as the vocabulary")


def tables(given: Namespace) -> dict[str, list[measure.Row]]:
    """The table, for the shapes of three models."""
    cases = product(MODELS, (True, False))
    return {"divergence": [row for name, gated in cases for row in compare(Size.of(name, 1, 0), gated, given.rounds)]}


if __name__ == "__main__":
    measure.run(__doc__, tables, threads=2, rounds=(5, "rounds"))
