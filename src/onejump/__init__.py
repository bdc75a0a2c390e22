"""One Jump Fits All: low-rank early-exit jumps, their exact optimum, and the study of both."""
