"""The registry of fits."""

FITS = ("adam", "exact", "exact_logits", "kl")
