"""The jump (OJFA, Eq. 1), and a file for each way to fit it (Eq. 2)."""
