"""Tokens, positions, and hidden states at every level."""
