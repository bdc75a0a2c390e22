"""The choice of one of the K jumps by D_m."""

from pathlib import Path

import numpy as np
import torch

from onejump.analysis.bootstrap import resampled_means
from onejump.analysis.scores import signed_square
from onejump.files.atomic import OnejumpError, read_json, write_json
from onejump.files.tensors import TensorFile


def read_selection(path: str | Path, n_jumps: int) -> dict:
    """A selection.json, checked.

    Raises:
        OnejumpError: the file is damaged, or selects among another number of jumps.
    """
    selection = read_json(path)
    if len(selection["scores"]) != n_jumps:
        raise OnejumpError(
            f"{path}: selects among {len(selection['scores'])} jumps, expected {n_jumps}; rerun select-jump"
        )
    return selection


SCORE_LEVELS = ("1..K", "0..K-1")


TEMPERATURE = 5e-4  # of the softmax over D_m in the paper's Fig. 3


def select_jump(cosines: str | Path, score_levels: str, seed: int, path: str | Path) -> None:
    """Stage `select-jump`: D_m of each jump, and the jump with the largest (OJFA).

    D_m is the mean over training sentences and levels of `sgn(C) C^2` (Eq. 5). The paper says once that it is
    minimised; its equation and its results maximise it.

    Args:
        cosines: the tensor file of `score-jumps`.
        score_levels: `1..K` as Eq. 5 is printed, or `0..K-1`, the exit levels.
        seed: of the bootstrap over sentences.
        path: selection.json.

    Raises:
        OnejumpError: the file is damaged or its cosines are not finite.
    """
    values = signed_square(TensorFile(cosines).tensor("cosine"))
    if not values.isfinite().all():
        raise OnejumpError(f"{cosines}: NaN or infinite cosines; rerun score-jumps")
    values = values[:, 1:] if score_levels == "1..K" else values[:, :-1]
    by_sentence = values.double().mean(1).T.numpy()  # [N, K]
    scores = by_sentence.mean(0)
    winners = np.concatenate([means.argmax(1) for means in resampled_means(by_sentence, seed)])
    softmax = torch.softmax(torch.from_numpy(scores) / TEMPERATURE, 0)
    selection = {
        "ojfa": int(scores.argmax()),
        "score_levels": score_levels,
        "scores": scores.tolist(),
        "softmax": softmax.tolist(),
        "temperature": TEMPERATURE,
        "bootstrap_share": (np.bincount(winners, minlength=len(scores)) / len(winners)).tolist(),
    }
    write_json(path, selection)
