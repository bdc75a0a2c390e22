"""D_m and the selection by it (Eq. 4 and 5), and what follows from an evaluation."""
