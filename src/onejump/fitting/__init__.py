"""Fitting a jump: moments of the training rows, the exact optimum from them, and Adam."""
