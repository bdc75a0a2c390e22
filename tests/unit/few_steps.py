"""Imported before the fits, it makes them short: what they compute is to be compared, not their optimum."""

from onejump.jumps import settings

settings.EPOCHS = 4
settings.KL_STEPS = 2 * settings.KL_VALIDATE_EVERY
