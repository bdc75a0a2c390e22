"""Lenses by the divergence: the tuned lens (Belrose et al. 2023) and, of low rank, LoRA-Lens (Trimigno et al. 2026).

Both add `h W + b` to the hidden state of a level, start at identity, and are trained on KL(full model || exit). The
tuned lens's W has full rank; LoRA-Lens has `W = A B`. Beside these two differences from JTC, objective and residual
form, all is as there: the same rows, the last tenth of which chooses the step.
"""

import logging

import torch

from onejump.activations.reading import Activations, tensor_name
from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint, CheckpointPart
from onejump.jumps.descent import Sample, batch_rows, descend
from onejump.jumps.divergence import FullModel
from onejump.jumps.lens_divergence import LensDivergence
from onejump.jumps.lenses import AffineLens
from onejump.jumps.moments import validation_start
from onejump.jumps.objective import Rows
from onejump.jumps.settings import (
    KL_STEPS,
    KL_VALIDATE_EVERY,
    LENS_LEARNING_RATE_BIAS,
    LENS_LEARNING_RATE_FACTORS,
    LENS_LEARNING_RATE_WHOLE,
    default_rank,
)
from onejump.models.unembedding import Unembedding

logger = logging.getLogger(__name__)


def fit_kl_lens(
    activations: Activations,
    unembedding: Unembedding,
    lens: str,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> tuple[list[AffineLens], dict]:
    """Fit `tuned_lens` or `lora_lens` at every level; the unembedding is on the device.

    The seed is of the batches and of the start of A. An interrupted fit resumes at its checkpoint.

    Returns:
        The lens of each level, and what their file says: the course of each level's fit, and the multiply-adds of all.

    Raises:
        OnejumpError: there are too few rows, or the divergence became NaN or infinite.
    """
    if len(activations) < 3:
        raise OnejumpError(f"{len(activations)} training rows are too few to fit; use at least 3 training sentences")
    cut = validation_start(len(activations))
    y = activations.level(activations.n_blocks).float().to(device)
    parts = (slice(cut), slice(cut, None))
    full = [FullModel.of(y[part], unembedding, "pre_norm") for part in parts]
    saved = (checkpoint.load() if checkpoint is not None else None) or {"found": {}, "step": None}
    levels, found, resumed = [], saved["found"], saved["step"]
    for level in range(activations.n_blocks):
        x, name, stream = activations.level(level).float().to(device)[None], tensor_name(level), seed * 1000 + level
        rows = [Rows(x[:, part].contiguous(), y[part]) for part in parts]
        rank = default_rank(unembedding.hidden_size) if lens == "lora_lens" else None
        divergence = LensDivergence(rows[0], unembedding, rank, stream)
        if name not in found:
            of_map = [LENS_LEARNING_RATE_WHOLE] if rank is None else [LENS_LEARNING_RATE_FACTORS] * 2
            rates = [LENS_LEARNING_RATE_BIAS, *of_map]
            part = None if checkpoint is None else CheckpointPart(checkpoint, found, resumed)
            samples = (Sample(*pair) for pair in zip(rows, full, strict=True))
            descent = descend(divergence, rates, *samples, stream, progress=f"{lens} {level}", checkpoint=part)
            found[name], resumed = {"parameters": descent.parameters} | descent.facts(), None
        levels.append(divergence.lens(found[name]["parameters"]))
    courses = {name: {key: value for key, value in of.items() if key != "parameters"} for name, of in found.items()}
    if rising := [name for name, course in courses.items() if not course["converged"]]:
        logger.warning("%s: the divergence was still falling after %d steps at %s", lens, KL_STEPS, ", ".join(rising))
    return levels, courses | {"multiply_adds": _multiply_adds(courses, levels[0], unembedding, cut, len(y))}


def _multiply_adds(courses: dict, lens: AffineLens, unembedding: Unembedding, n_fitting: int, n: int) -> int:
    """Of all fits together: logits of the full model and means of the output embedding, steps, and validations."""
    head, own = unembedding.weight.numel(), sum(factor.numel() for factor in lens.factors)
    stretches = sum(len(course["train_curve"]) for course in courses.values())
    trained = stretches * KL_VALIDATE_EVERY * batch_rows(1, n_fitting)
    validated = (stretches + len(courses)) * (n - n_fitting)
    return 2 * n * head + trained * (2 * head + 3 * own) + validated * (head + own)
