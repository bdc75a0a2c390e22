"""What variants share: those that differ only in what comes after a fit use the same jumps; and their seeds."""

from collections.abc import Mapping

FITS = ("adam", "exact", "exact_logits", "kl")
# Choices that a level's jump depends on, and with it the cosines.
FITTED_BY = ("fit", "target", "positions", "rank")


def jumps_of(variant: str, variants: Mapping[str, Mapping]) -> str:
    """The variant whose level jumps and cosines this one uses: the first with the same fits."""
    return _first(variant, variants, lambda choices: [choices[key] for key in FITTED_BY])


def joint_of(variant: str, variants: Mapping[str, Mapping]) -> str:
    """The variant whose joint jump this one uses; only an Adam fit depends on what a batch holds."""

    def fitted_by(choices: Mapping) -> list:
        batches = choices["joint_batches"] if choices["fit"] == "adam" else None
        return [*(choices[key] for key in FITTED_BY), batches]

    return _first(variant, variants, fitted_by)


def seeds_of(variant: str, config: Mapping) -> list[int]:
    """The seeds that a variant is run for: its own, or all of the study's."""
    return config["variants"][variant].get("seeds") or config["seeds"]


def _first(variant: str, variants: Mapping[str, Mapping], key) -> str:
    return next(name for name, choices in variants.items() if key(choices) == key(variants[variant]))
