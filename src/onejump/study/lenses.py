"""The registry of lenses: the reference methods that have one affine map a level before the final norm and the head.

Jumps are measured against them, and no claim of the paper is about them. The first entry is evaluated by default.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Lens:
    """What is known of a lens without fitting it."""

    description: str  # one line, to be read after the name
    by_kl: bool = False  # whether it is fitted by the divergence of predictions
    jacobian: bool = False  # whether it is made of derivatives of the model itself
    imported: bool = False  # whether others have fitted it, and a study only evaluates it
    either_target: bool = False  # whether it is fitted to the target of the variants; if not, always to `pre_norm`


LENSES = {
    "jtc": Lens("the full-rank jump of least squared error (JTC)", either_target=True),
    "tuned_lens": Lens("a full-rank residual map of least divergence (tuned lens)", by_kl=True),
    "lora_lens": Lens("the same of the jumps' rank, floor(H / 100) (LoRA-Lens)", by_kl=True),
    "jacobian_lens": Lens("the mean derivative of h^K by h^k (Jacobian lens)", jacobian=True),
    "jacobian_lens_low_rank": Lens("the Jacobian lens cut to rank floor(H / 100)", jacobian=True),
    "jacobian_lens_mean": Lens("the mean of the Jacobian lens over levels, one map for all", jacobian=True),
    "imported_tuned_lens": Lens("a tuned lens of others, from a folder of tuned-lens", imported=True),
    "imported_jacobian_lens": Lens("a Jacobian lens of others, from a file of its package", imported=True),
}
KL_LENSES = tuple(name for name, lens in LENSES.items() if lens.by_kl)
JACOBIAN_LENSES = tuple(name for name, lens in LENSES.items() if lens.jacobian)
IMPORTED_LENSES = tuple(name for name, lens in LENSES.items() if lens.imported)


def target_of_lens(lens: str, target: str) -> str:
    """What a lens of variants with this target predicts."""
    return target if LENSES[lens].either_target else "pre_norm"


def stage_of_lens(lens: str) -> str:
    """The stage that makes a lens; one job of `fit_jacobian_lens` makes all that are made of derivatives."""
    if LENSES[lens].imported:
        return "import_lens"
    return "fit_jacobian_lens" if LENSES[lens].jacobian else "fit_kl_lens" if LENSES[lens].by_kl else "fit_jtc"
