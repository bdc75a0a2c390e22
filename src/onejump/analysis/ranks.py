"""Precision against rank: what smaller or larger jumps would have achieved, from nested exact solutions.

One decomposition for each level gives the optimum of every rank at once, so that a curve costs little more than a
point. At the variant's own rank the curve passes through the variant's results.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from onejump.activations.reading import Activations
from onejump.analysis.bootstrap import interval
from onejump.analysis.columns import RANK_COLUMNS, WITH_INTERVALS
from onejump.analysis.scores import signed_square
from onejump.analysis.selection import SCORE_LEVELS
from onejump.exits.columns import METRICS
from onejump.exits.evaluation import JumpExits, metrics_by_method
from onejump.files.atomic import OnejumpError
from onejump.files.progress import progress_bar
from onejump.files.tensors import TensorFile
from onejump.jumps.exact import RidgeSolver
from onejump.jumps.jump import FoldedJump, target_of
from onejump.jumps.moments import Moments, level_moments
from onejump.models.devices import float64_device
from onejump.models.unembedding import Unembedding
from onejump.study.fits import FITS
from onejump.study.variants import is_nested

LARGEST = 8  # the curve's largest rank is H / LARGEST
POINTS = 6


def curve_ranks(hidden_size: int, rank: int) -> list[int]:
    """Ranks of the curve: about POINTS, evenly spaced in their logarithm, from 1 to H / 8, and the variant's own."""
    largest = max(rank, hidden_size // LARGEST)
    spaced = np.geomspace(1, largest, POINTS).round().astype(int).tolist()
    return sorted({*spaced, rank})


def evaluate_ranks(
    train: Activations,
    test: Activations,
    unembedding: Unembedding,
    rank: int,
    ridges: Sequence[float],
    target: str,
    score_levels: str,
    documents: np.ndarray,
    device: torch.device,
) -> pd.DataFrame:
    """Evaluate JUMP_METHODS of a variant at other ranks.

    OJFA is selected anew at each rank. The ridges are those that the variant's fits chose at its own rank.

    Args:
        train: activations of the train split, for fits and selection.
        test: activations of the test split, whose first N are evaluated.
        unembedding: of the model, on `device`.
        rank: the variant's own.
        ridges: of its jumps 0..K-1 and of its joint jump.
        target: `pre_norm` or `post_norm`.
        score_levels: a key of SCORE_LEVELS, which D_m is averaged over.
        documents: [N], the document of each sentence that is evaluated.
        device: where to compute.

    Returns:
        method, rank, jump (OJFA's, else null), n, and precision and surprisal, means over exit levels and sentences,
        with 95 % bootstrap intervals.
    """
    ranks = curve_ranks(unembedding.hidden_size, rank)
    folded = [jump.to(device) for jump in _nested_jumps(train, unembedding, target, ridges, max(ranks), device)]
    chosen = _ojfa_by_rank(train, unembedding, folded[:-1], ranks, target, score_levels, device)
    part, rows = test.rows(0, len(documents)), []
    for r in ranks:
        *single, shared = (FoldedJump(jump.P[:, :r], jump.q[:r], jump.B[:r]) for jump in folded)
        exits = JumpExits(single, chosen[r], shared)
        for method, values in metrics_by_method(part, unembedding, exits, target, device).items():
            row = [method, r, chosen[r] if method == "ojfa" else None, len(part)]
            for metric in WITH_INTERVALS.values():
                by_sentence = values[:, METRICS.index(metric)].double().mean(0).numpy()
                row += [by_sentence.mean(), *map(float, interval(by_sentence, documents))]
            rows.append(row)
    return pd.DataFrame(rows, columns=RANK_COLUMNS).astype({"jump": "Int32"})


def read_ridges(paths: Sequence[str | Path]) -> tuple[int, list[float]]:
    """The rank of some jumps whose fits are nested in it, and the ridge of each.

    Raises:
        OnejumpError: a file is damaged, or its fit does not give every rank.
    """
    files = [TensorFile(path) for path in paths]
    for file in files:
        if not is_nested(file.metadata):
            nested = " or ".join(name for name, fit in FITS.items() if fit.nested)
            found = f"{file.metadata['fit']} with gate {file.metadata['gate']}"
            raise OnejumpError(f"{file.path}: was fitted by {found}, expected {nested} without gates")
    return files[0].value("rank"), [file.value("ridge") for file in files]


def _nested_jumps(
    train: Activations, unembedding: Unembedding, target: str, ridges: Sequence[float], rank: int, device: torch.device
) -> Iterator[FoldedJump]:
    """The exact jumps 0..K-1 and the joint one, whose first r columns are the optimum of rank r."""
    pooled = Moments.of_none(unembedding.hidden_size, float64_device(device))
    for level, ridge in enumerate(progress_bar(ridges[:-1], "fit ranks", "level")):
        moments, _ = level_moments(train, [level], unembedding, target, device)
        yield _nested_jump(moments, ridge, rank)
        pooled += moments
    yield _nested_jump(pooled, ridges[-1], rank)


def _nested_jump(moments: Moments, ridge: float, rank: int) -> FoldedJump:
    fitted = RidgeSolver(moments).solve(ridge, rank)
    P = fitted.W / fitted.std_x[:, None]
    return FoldedJump(P.float(), (fitted.c - fitted.mean_x @ P).float(), fitted.V.T.float())


def _ojfa_by_rank(
    train: Activations,
    unembedding: Unembedding,
    jumps: Sequence[FoldedJump],
    ranks: Sequence[int],
    target: str,
    score_levels: str,
    device: torch.device,
) -> dict[int, int]:
    """The jump with the largest D_m at each rank.

    B's rows are orthonormal, so with z the coordinates and p the target's, the cosine at rank r is the sum of the first
    r products z p, over |y| and the root of the sum of the first r squares of z: cumulative sums give all ranks.
    """
    last = (torch.tensor(ranks) - 1).to(device)
    scores = torch.zeros(len(jumps), len(ranks), dtype=torch.float64)
    for level in progress_bar(range(train.n_blocks + 1)[SCORE_LEVELS[score_levels]], "score ranks", "level"):
        for x, final in train.shards(level, train.n_blocks):
            x, y = x.to(device), target_of(final.to(device), unembedding, target)
            length = y.norm(dim=1, keepdim=True).clamp_min(1e-30)
            for m, jump in enumerate(jumps):
                z = jump(x, level)
                products = (z * (y @ jump.B.T)).cumsum(1)[:, last]
                norms = z.square().cumsum(1)[:, last].sqrt().clamp_min(1e-30)
                cosines = (products / norms / length).clamp(-1, 1)
                scores[m] += signed_square(cosines).cpu().double().sum(0)
    return dict(zip(ranks, scores.argmax(0).tolist(), strict=True))
