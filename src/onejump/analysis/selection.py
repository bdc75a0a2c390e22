"""D_m of each jump, and OJFA: the jump with the largest (OJFA, Eq. 5)."""

import numpy as np
import torch
from torch import Tensor

from onejump.analysis.bootstrap import resampled_means
from onejump.analysis.columns import TEMPERATURE
from onejump.analysis.scores import signed_square

# Which of the levels 0..K the mean of Eq. 5 is over: as it is printed, or the exit levels.
SCORE_LEVELS = {"1..K": slice(1, None), "0..K-1": slice(None, -1)}


def select_jump(cosines: Tensor, documents: np.ndarray, score_levels: str, seed: int) -> dict:
    """D_m of each jump, and the number of the jump with the largest.

    D_m is the mean over training sentences and levels of `sgn(C) C^2` (Eq. 5). The paper says once that it is
    minimised; its equation and its results maximise it.

    Args:
        cosines: [jump, level, sentence] float32, levels 0..K.
        documents: [sentence], the document of each.
        score_levels: a key of SCORE_LEVELS.
        seed: of the bootstrap over documents.

    Returns:
        The content of selection.json: ojfa; for each jump its score, softmax, and bootstrap_share, the share of
        resamples in which it is selected; score_levels and temperature.
    """
    by_sentence = signed_square(cosines)[:, SCORE_LEVELS[score_levels]].double().mean(1).T.numpy()  # [N, K]
    scores = by_sentence.mean(0)
    winners = np.concatenate([means.argmax(1) for means in resampled_means(by_sentence, documents, seed)])
    softmax = torch.softmax(torch.from_numpy(scores) / TEMPERATURE, 0)
    return {
        "ojfa": int(scores.argmax()),
        "score_levels": score_levels,
        "scores": scores.tolist(),
        "softmax": softmax.tolist(),
        "temperature": TEMPERATURE,
        "bootstrap_share": (np.bincount(winners, minlength=len(scores)) / len(winners)).tolist(),
    }
