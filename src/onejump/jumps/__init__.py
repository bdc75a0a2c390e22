"""The jump (OJFA, Eq. 1) and the ways to fit it (Eq. 2)."""
