"""The exact fits of all levels compared with least squares, Adam and their moments alone; Adam compared with autograd.

Exact fits:

- ours: from the shards to the jump's file, as the stage `fit-jump` does it: without a ridge, which gives the optimum
  that every fit is measured against, and as `fit: exact`, which tries ten ridges and keeps the best on the validation
  slice;
- least squares, SVD: LAPACK's least squares of the target on input and constant, and an SVD of the fitted values; for
  ten ridges, all ridge regressions from one SVD of the inputs, and an SVD of the fitted values of each;
- Adam to a gap of 5 %: `fit_adam` for the fewest epochs (of 5, 10, 20, ...) that bring it that close to the optimum;
- moments alone: `level_moments`, all that the exact fit needs from the rows;
- limit: the float64 products x'x and x'y of all levels, from memory.

The Adam fit of one level:

- ours: `fit_adam` with its gradients in closed form;
- automatic differentiation: the same with PyTorch's gradients;
- limit: the products of all batches with A and with the gradient of z, from memory.

The exact fits and least squares must reach the same loss, to 1e-6: without a ridge the smallest on the fitting rows,
with ten the best on the validation slice. The two Adam fits must have the same loss to 1e-2, since rounding errors grow
over the epochs. In a turn, the slower baselines do one level, which counts K times.

    python benchmarks/fits.py
"""

from argparse import Namespace
from collections.abc import Callable

import measure
import torch
from synthetic import Dump, Size, make_dump
from torch.nn.functional import mse_loss

from onejump.activations.reading import Activations
from onejump.files.atomic import OnejumpError
from onejump.jumps import adam, settings
from onejump.jumps.adam import fit_adam
from onejump.jumps.exact import fit_exact
from onejump.jumps.fitting import fit_jump
from onejump.jumps.jump import BATCH_NORM_EPS, Jump
from onejump.jumps.moments import level_moments, validation_start
from onejump.jumps.objective import Rows, gap
from onejump.jumps.settings import RIDGES
from onejump.jumps.storage import save_jump
from onejump.models.unembedding import Unembedding

CPU = torch.device("cpu")
LEAST_SQUARES, ADAM, MOMENTS = "least squares, SVD", "Adam to a gap of 5 %", "moments alone"
AUTOGRAD = "automatic differentiation"
GAP = 0.05
EPOCHS = (5, 10, 20, 40, 80, 160, 320)
SIZE = Size.of("smollm2-135m", 3000, 1)


def least_squares(activations: Activations, level: int, rank: int) -> float:
    """Loss on the fitting rows of the best map of the given rank from input and constant to the target."""
    cut = validation_start(len(activations))
    x, y = (activations.level(k)[:cut].double() for k in (level, activations.n_blocks))
    design = torch.cat([x, torch.ones(cut, 1, dtype=torch.float64)], 1)
    fitted = design @ torch.linalg.lstsq(design, y, driver="gelsd").solution  # the driver of NumPy and scikit-learn
    values = torch.linalg.svd(fitted, full_matrices=False).S
    return float(y.square().sum() - values[:rank].square().sum()) / cut


def ridge_regressions(activations: Activations, level: int, rank: int) -> float:
    """Loss on the validation slice of the best map of the given rank among ten ridge regressions."""
    cut = validation_start(len(activations))
    x, y = (activations.level(k).double() for k in (level, activations.n_blocks))
    mean_x, mean_y = x[:cut].mean(0), y[:cut].mean(0)
    x = (x - mean_x) / (x[:cut].var(0, correction=0) + BATCH_NORM_EPS).sqrt()
    U, s, Vt = torch.linalg.svd(x[:cut], full_matrices=False)
    Uy, seen = U.T @ (y[:cut] - mean_y), x[cut:] @ Vt.T
    losses = []
    for ridge in RIDGES:
        shrunk = (s / (s.square() + ridge * cut))[:, None] * Uy
        # Fitted values of the rows, of the ridge's virtual rows (both in coordinates of U) and of the constant.
        fitted = torch.cat([shrunk * (s.square() + ridge * cut).sqrt()[:, None], mean_y[None] * cut**0.5])
        span = torch.linalg.svd(fitted, full_matrices=False).Vh[:rank]
        losses.append(float(((seen @ shrunk + mean_y) @ span.T @ span - y[cut:]).square().sum(1).mean()))
    return min(losses)


def rows_to_fit(activations: Activations, level: int) -> tuple[Rows, Rows]:
    """One level's fitting rows and validation slice, as `fit_adam` takes them."""
    x, y, cut = activations.level(level), activations.level(activations.n_blocks), validation_start(len(activations))
    return Rows(x[None, :cut], y[:cut]), Rows(x[None, cut:], y[cut:])


def epochs_to_gap(activations: Activations, unembedding: Unembedding, rank: int) -> int:
    """The fewest of EPOCHS that bring Adam's fit of level 0 within GAP.

    Raises:
        OnejumpError: none does.
    """
    exact = fit_exact(*level_moments(activations, [0], unembedding, "pre_norm", CPU), rank, choose_ridge=False)
    for epochs in EPOCHS:
        mse = fit_adam(*rows_to_fit(activations, 0), rank, seed=0, epochs=epochs).train_mse
        if gap(mse, exact.optimum_mse, exact.mean_mse) <= GAP:
            return epochs
    raise OnejumpError(f"Adam does not reach a gap of {GAP} in {EPOCHS[-1]} epochs; use more sentences")


def compare(dump: Dump, size: Size, rounds: int) -> list[measure.Row]:
    """Rows of the table for one size.

    Raises:
        OnejumpError: the exact fits and least squares have different losses.
    """
    unembedding, activations = dump.open("train")
    K, path = size.n_blocks, dump.unembedding.parent / "jump.safetensors"
    epochs = epochs_to_gap(activations, unembedding, size.rank)
    x = torch.randn(validation_start(size.train), size.hidden_size, dtype=torch.float64)

    def optimum(level: int) -> float:
        exact = fit_exact(
            *level_moments(activations, [level], unembedding, "pre_norm", CPU), size.rank, choose_ridge=False
        )
        save_jump(path, exact.map.jump(), {})
        return exact.optimum_mse

    def best_ridge(level: int) -> float:
        jump, metadata = fit_jump(activations, unembedding, level, "exact", "pre_norm", None, "mixed", 0, CPU)
        save_jump(path, jump, metadata)
        return metadata["validation_mse"]

    rows = []
    for what, ours, baseline in (("no ridge", optimum, least_squares), ("ten ridges", best_ridge, ridge_regressions)):
        turns = measure.take_turns(
            {
                measure.OURS: lambda turn, ours=ours: [ours(level) for level in range(K)],
                LEAST_SQUARES: lambda turn, baseline=baseline: baseline(activations, turn % K, size.rank),
                ADAM: lambda turn: fit_adam(*rows_to_fit(activations, turn % K), size.rank, seed=turn, epochs=epochs),
                MOMENTS: lambda turn: [level_moments(activations, [k], unembedding, "pre_norm", CPU) for k in range(K)],
                measure.LIMIT: lambda turn: [x.T @ x for _ in range(2 * K)],
            },
            rounds,
            parts={LEAST_SQUARES: K, ADAM: K},
        )
        losses = (turns.results[measure.OURS][(rounds - 1) % K], turns.results[LEAST_SQUARES])
        largest = float(activations.level(K).double().var(0, correction=0).sum())
        measure.require_close("loss", *(loss / largest for loss in losses), 1e-6)
        rows += measure.rows_of(turns, f"{what}, {size}", "float64 products of the moments")
    return rows


def autograd_gradients(jump: Jump, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Do by automatic differentiation what `set_gradients` does."""
    jump.zero_grad()
    error = mse_loss(jump(x), y, reduction="sum") / len(x)
    error.backward()
    return error.detach()


def compare_gradients(dump: Dump, size: Size, rounds: int) -> list[measure.Row]:
    """Rows of the table for Adam's fit of level 0.

    Raises:
        OnejumpError: the two fits have different losses.
    """
    rows, ours = rows_to_fit(dump.open("train")[1], 0), adam.set_gradients
    generator, A = torch.Generator(), torch.randn(size.hidden_size, size.rank)

    def fit(gradients: Callable) -> float:
        adam.set_gradients = gradients
        try:
            return fit_adam(*rows, size.rank, seed=0).train_mse
        finally:
            adam.set_gradients = ours

    def products() -> None:
        for _ in range(settings.EPOCHS):
            for x, _ in rows[0].batches(settings.BATCH_SIZE, False, generator):
                (x @ A).T @ x

    turns = measure.take_turns(
        {
            measure.OURS: lambda turn: fit(ours),
            AUTOGRAD: lambda turn: fit(autograd_gradients),
            measure.LIMIT: lambda turn: products(),
        },
        rounds,
    )
    measure.require_close("loss", turns.results[measure.OURS], turns.results[AUTOGRAD], 1e-2)
    return measure.rows_of(turns, f"Adam, one level, {size}", "products of the batches")


def tables(given: Namespace) -> dict[str, list[measure.Row]]:
    """The table: exact fits, then Adam's."""
    dump = make_dump(given.folder, SIZE)
    return {"fits": compare(dump, SIZE, given.rounds) + compare_gradients(dump, SIZE, given.rounds)}


if __name__ == "__main__":
    measure.run(__doc__, tables, rounds=(5, "rounds"))
