"""Jumps that others use: publishing one from a finished study, and loading and applying it anywhere."""
