"""Is D_m the right score? Each jump's scores beside what they should predict: its precision over all exit levels.

Scores are taken over the training sentences, as D_m is. Precision is measured on the validation slice of the training
sentences, which no jump was fitted to (it only chose each fit's ridge or epoch): the test sentences play no part in the
selection.
"""

from collections.abc import Sequence

import pyarrow as pa
import torch

from onejump.activations.reading import Activations
from onejump.analysis.scores import signed_square
from onejump.analysis.selection import SCORE_LEVELS
from onejump.exits.evaluation import grid_precision
from onejump.files.progress import progress_bar
from onejump.jumps.jump import FoldedJump, target_of
from onejump.jumps.moments import validation_slice
from onejump.models.unembedding import Unembedding


def evaluate_oracle(
    activations: Activations,
    unembedding: Unembedding,
    jumps: Sequence[FoldedJump],
    joint: FoldedJump,
    cosines: torch.Tensor,
    score_levels: str,
    target: str,
    device: torch.device,
) -> pa.Table:
    """The scores of each jump beside its precision on the validation slice; the joint jump's precision too.

    Args:
        activations: of the train split.
        unembedding: of the model, on `device`.
        jumps: jumps 0..K-1, on `device`.
        joint: the joint jump, on `device`.
        cosines: of the jumps, [jump, level, sentence].
        score_levels: a key of SCORE_LEVELS, which the scores from cosines are averaged over.
        target: `pre_norm` or `post_norm`.
        device: where to compute.

    Returns:
        jump int32, null for the joint jump; the SCORES d_m, cosine, squared_cosine (null for the joint jump) and mse;
        explained, by what share mse is below the error of mean(Y); precision, mean over exit levels.
    """
    values = cosines.double()[:, SCORE_LEVELS[score_levels]]
    held_out = validation_slice(activations)
    scores = {
        "d_m": signed_square(values).mean((1, 2)),
        "cosine": values.mean((1, 2)),
        "squared_cosine": values.square().mean((1, 2)),
    }
    columns = {name: pa.array([*score.tolist(), None]) for name, score in scores.items()}
    shared = [*jumps, joint]
    mse, of_mean = _mean_squared_errors(activations, unembedding, shared, target, device)
    columns |= {"mse": mse.numpy(), "explained": (1 - mse / of_mean).numpy()}
    columns["precision"] = grid_precision(held_out, unembedding, shared, target, device).mean(1).numpy()
    return pa.table({"jump": pa.array([*range(len(jumps)), None], pa.int32()), **columns})


def _mean_squared_errors(
    activations: Activations, unembedding: Unembedding, jumps: Sequence[FoldedJump], target: str, device: torch.device
) -> tuple[torch.Tensor, float]:
    """Squared error of each jump, [n] float64, and of mean(Y), summed over H and averaged over rows and exit levels.

    With z the jump's coordinates, `|z B - y|^2 = z (B B') z' - 2 z.(B y) + |y|^2`, where y is less what a gate lets
    through.
    """
    P, q = torch.cat([jump.P for jump in jumps], 1), torch.cat([jump.q for jump in jumps])
    B = torch.stack([jump.B for jump in jumps])
    gram = B @ B.transpose(1, 2)
    totals = torch.zeros(len(jumps), dtype=torch.float64)
    squares, sums = 0.0, torch.zeros(unembedding.hidden_size, dtype=torch.float64)
    for level in progress_bar(range(activations.n_blocks), "squared errors", "level"):
        for x, final in activations.shards(level, activations.n_blocks):
            y = target_of(final.to(device), unembedding, target)
            x = x.to(device)
            rows = (x @ P + q, y @ B.flatten(0, 1).T)
            z, projected = (part.view(len(x), *B.shape[:2]).transpose(0, 1) for part in rows)
            square = y.square().sum(1)
            if any(jump.gates for jump in jumps):
                n, gates = (
                    unembedding.normalise(x),
                    torch.tensor([jump.gate(level) for jump in jumps])[:, None].to(device),
                )
                own = (n @ B.flatten(0, 1).T).view(len(x), *B.shape[:2]).transpose(0, 1)
                projected = projected - gates[:, :, None] * own
                square = square - 2 * gates * (n * y).sum(1) + gates.square() * n.square().sum(1)
            errors = (z * (z @ gram - 2 * projected)).sum(2) + square
            totals += errors.cpu().double().sum(1)
            if level == 0:  # the target is the same at every level
                wide = y.cpu().double()
                squares += float(wide.square().sum())
                sums += wide.sum(0)
    n = len(activations)
    return totals / (activations.n_blocks * n), squares / n - float((sums / n).square().sum())
