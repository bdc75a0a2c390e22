"""The registry of fits: what schema, command line, plan, report and docs need to know of each.

The module `onejump.jumps.NAME` computes the fit called NAME, so that a new fit is that file and one entry here. The
first entry is the default.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Course:
    """What an iterative fit is followed by while it trains."""

    unit: str  # what its points are numbered in, `epoch` or `step`
    column: str  # of summary/curves.csv, with its values on the validation slice


@dataclass(frozen=True)
class Fit:
    """What is known of a fit without computing it."""

    description: str  # one line, to be read after the name
    chosen: str | None = None  # what the validation slice chooses, if anything
    squared_error: bool = False  # whether it minimises the paper's objective, Eq. 2
    gated: bool = False  # whether it can have gates, and inputs other than the hidden states
    scaled: bool = False  # whether its joint jump can have scales
    nested: bool = False  # whether one solution holds those of all lower ranks: the variant has a curve over ranks
    joint_batches: bool = False  # whether the joint jump depends on the variant's `joint_batches`
    course: Course | None = None  # of an iterative fit; None for a closed form


FITS = {
    "adam": Fit(
        "Adam on the paper's objective, as the paper most likely did",
        chosen="the best epoch of Adam fits",
        squared_error=True,
        joint_batches=True,
        course=Course("epoch", "validation_mse"),
    ),
    "exact": Fit(
        "the optimum of the paper's objective in closed form",
        chosen="the ridge of exact fits",
        squared_error=True,
        gated=True,
        nested=True,
    ),
    "exact_logits": Fit(
        "the optimum with errors weighted by the output head", chosen="the ridge of fits weighted by the output head"
    ),
    "kl": Fit(
        "Adam on the KL divergence of the predictions, starting at the optimum",
        chosen="the best step of KL fits",
        gated=True,
        scaled=True,
        course=Course("step", "validation_kl"),
    ),
}


def describe_fits() -> str:
    """All fits with their descriptions, in one sentence without its full stop."""
    return "; ".join(f"{name}, {fit.description}" for name, fit in FITS.items())
