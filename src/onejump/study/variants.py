"""What variants share: those that differ only in what comes after a fit use the same jumps."""

from collections.abc import Callable, Mapping

from onejump.study.fits import FITS

# Each choice that the paper leaves open, with its default.
VARIANT_DEFAULTS = {
    "fit": next(iter(FITS)),
    "target": "pre_norm",
    "positions": "all",
    "score_levels": "1..K",
    "rank": None,
    "joint_batches": "mixed",
    "gate": "none",
    "scales": "none",
    "inputs": "states",
    "jumps": "all",
    "fit_seed": 0,
    "train_on": "corpus",
}
# The final representation that a jump predicts: before the final norm or after it.
TARGETS = ("pre_norm", "post_norm")
# Numbers that let the hidden state through: none, one for each level, one for all levels, or 1 for all.
GATES = ("none", "level", "shared", "fixed")
# Numbers that scale the coordinates of the joint jump: none, or one for each coordinate at each level.
SCALES = ("none", "level")
# What a jump sees: the hidden states, nothing, or the hidden states of other sentences.
INPUTS = ("states", "none", "shuffled")
# Choices that a jump depends on.
FITTED_BY = ("fit", "target", "positions", "rank", "gate", "scales", "inputs", "fit_seed", "train_on")
FIT_SEEDS = 1_000_000  # between the seeds of fits that differ in fit_seed: no two of a study's seeds share one


def wrong_choice(choices: Mapping) -> str | None:
    """What is wrong with a variant's gate, scales or inputs beside its other choices, in words; None if nothing is."""
    fit, target, gate, jumps, scales, inputs, rank = (
        choices[key] for key in ("fit", "target", "gate", "jumps", "scales", "inputs", "rank")
    )
    return _wrong_gate(fit, target, gate) or _wrong_scales(fit, jumps, scales) or _wrong_inputs(fit, inputs, rank)


def _wrong_gate(fit: str, target: str, gate: str) -> str | None:
    if gate not in GATES:
        return f"gate is {gate}, expected {', '.join(GATES)}"
    if gate == "none" or (FITS[fit].gated and target == "post_norm"):
        return None
    return f"gate is {gate} with fit {fit} and target {target}, expected fit {_fits('gated')} and target post_norm"


def _wrong_scales(fit: str, jumps: str, scales: str) -> str | None:
    if scales not in SCALES:
        return f"scales are {scales}, expected {' or '.join(SCALES)}"
    if scales == "none" or (FITS[fit].scaled and jumps == "joint"):
        return None
    return f"scales are {scales} with fit {fit} and jumps {jumps}, expected fit {_fits('scaled')} and jumps joint"


def _wrong_inputs(fit: str, inputs: str, rank: int | None) -> str | None:
    if inputs not in INPUTS:
        return f"inputs are {inputs}, expected {', '.join(INPUTS)}"
    if inputs != "states" and not FITS[fit].gated:
        return f"inputs are {inputs} with fit {fit}, expected fit {_fits('gated')}"
    if inputs == "none" and rank not in (None, 1):
        return f"rank is {rank} with inputs none, expected 1, since all that is left of the jump is a bias"
    return None


def _fits(able: str) -> str:
    """The fits of which this fact of theirs is true, in words."""
    return " or ".join(name for name, facts in FITS.items() if getattr(facts, able))


def rows_of(choices: Mapping) -> str:
    """The name of the training rows of a variant: its positions and, unless it is the corpus, its text."""
    return choices["positions"] if choices["train_on"] == "corpus" else f"{choices['positions']}-{choices['train_on']}"


def is_nested(choices: Mapping) -> bool:
    """Whether one fit of a variant gives the jumps of every rank; not with gates, nor for nulls."""
    return FITS[choices["fit"]].nested and choices["gate"] == "none" and choices["inputs"] == "states"


def jumps_of(variant: str, variants: Mapping[str, Mapping]) -> str:
    """The variant whose level jumps and cosines this one uses: of those with the same fits, the canonical one."""
    return _canonical(variant, variants, lambda choices: [choices[key] for key in (*FITTED_BY, "jumps")])


def joint_of(variant: str, variants: Mapping[str, Mapping]) -> str:
    """The variant whose joint jump this one uses; not every fit depends on what a batch holds."""

    def fitted_by(choices: Mapping) -> list:
        batches = choices["joint_batches"] if FITS[choices["fit"]].joint_batches else None
        return [*(choices[key] for key in FITTED_BY), batches]

    return _canonical(variant, variants, fitted_by)


def refit_of(variant: str, variants: Mapping[str, Mapping]) -> str:
    """The variant that this one fits anew: of those that differ only in `fit_seed`, the first."""
    return _canonical(
        variant, variants, lambda choices: [choices[key] for key in VARIANT_DEFAULTS if key != "fit_seed"]
    )


def seed_of_fit(seed: int, fit_seed: int) -> int:
    """The seed of a fit's random choices: the one that its text was sampled with, unless there is a `fit_seed`."""
    return (seed + FIT_SEEDS * fit_seed) % 2**32


def seeds_of(variant: str, config: Mapping) -> list[int]:
    """The seeds that a variant runs with: its own, or all of the study's."""
    return config["variants"][variant].get("seeds") or config["seeds"]


def _canonical(variant: str, variants: Mapping[str, Mapping], key: Callable[[Mapping], list]) -> str:
    """Of the variants that agree in `key`, the one with the fewest other choices: a new variant does not take over."""
    alike = [name for name, choices in variants.items() if key(choices) == key(variants[variant])]
    others = VARIANT_DEFAULTS.keys() - set(FITTED_BY)
    return min(alike, key=lambda name: sum(variants[name][choice] != VARIANT_DEFAULTS[choice] for choice in others))
