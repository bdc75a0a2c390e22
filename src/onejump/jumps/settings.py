"""Settings of the fits, none of which the paper gives; apart from the fits, since plan and report need no PyTorch."""

# Share of the training sentences, the last of them, that chooses epoch, step or ridge.
VALIDATION_SHARE = 0.1

# Adam on Eq. 2.
EPOCHS = 80
BATCH_SIZE = 128
LEARNING_RATE = 0.03

# Ridges that an exact fit tries, in units of the standardised inputs' variance; the validation slice chooses.
RIDGES = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
# Columns beyond the rank in its search for the largest eigenvalues.
OVERSAMPLING = 10

# Rounds in which jump and gates are fitted in turn.
ALTERNATIONS = 8

# Adam on KL.
KL_STEPS = 500
KL_BATCH_ROWS = 96  # of all levels as many, as far as that goes
KL_LEARNING_RATE = 0.003
KL_VALIDATE_EVERY = 50  # steps
KL_VALIDATION_LEVELS = 3  # that each sentence of the validation slice is taken at
# A fit has converged if the last quarter of its steps lowers the divergence by less than this share of itself.
KL_CONVERGED = 0.005
