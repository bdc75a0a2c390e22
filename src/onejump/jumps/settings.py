"""Settings of the fits, none of which the paper gives; apart from the fits, since plan and report need no PyTorch."""

# Share of the training sentences, the last of them, that chooses epoch, step or ridge.
VALIDATION_SHARE = 0.1

# Adam on Eq. 2.
EPOCHS = 80
BATCH_SIZE = 128
LEARNING_RATE = 0.03
# A fit has converged if its gap to the optimum is at most this.
GAP_CONVERGED = 0.01

# Ridges that an exact fit tries, in units of the standardised inputs' variance; the validation slice chooses.
RIDGES = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
# Columns beyond the rank in its search for the largest eigenvalues.
OVERSAMPLING = 10

# Rounds in which jump and gates are fitted in turn.
ALTERNATIONS = 8

# Adam on KL. The rates rise to these and then fall as one over the square root of the step. What is validated and kept
# is a running average of the parameters, so that the curve comes to a plateau without a number of steps set before.
KL_LEARNING_RATE = 0.002
KL_LEARNING_RATE_B = 0.02  # over the rank: each row of B moves all logits, so that their moves add up
KL_LEARNING_RATE_GATES = 0.02
KL_LEARNING_RATE_SCALES = 0.02
KL_BETA2 = 0.98  # of Adam: some rows have gradients far above the rest, and a fit has few steps to forget them in
KL_WARM_UP = 20  # steps
KL_FALL_AFTER = 50  # steps
KL_AVERAGE = 3  # the average goes back over about one of so many steps
KL_BATCH_ROWS = 96  # of all levels as many, as far as that goes
KL_VALIDATE_EVERY = 25  # steps
KL_VALIDATION_LEVELS = 1  # that each sentence of the validation slice is taken at
# A fit has converged, and ends, if the last quarter of its steps lowers the divergence by less than this share of it.
KL_CONVERGED = 0.005
KL_STEPS = 1200  # at most; most fits end before half of them

# Adam on KL for lenses, as for jumps, but for these rates: the best ones at two levels of SmolLM2-135M, on the
# validation slice, of a few that were tried.
LENS_LEARNING_RATE_BIAS = 1.0
LENS_LEARNING_RATE_WHOLE = 0.003
LENS_LEARNING_RATE_FACTORS = 0.03

# Training sentences at which the Jacobian lens takes derivatives.
JACOBIAN_PROMPTS = 40
# Numbers of the gradients that one backward pass of many components gives at each level.
JACOBIAN_ELEMENTS = 1 << 21


def default_rank(hidden_size: int) -> int:
    """The paper's rank, floor(H / 100); at least 1, for the small models of tests."""
    return max(1, hidden_size // 100)
