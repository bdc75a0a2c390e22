"""The metrics of an exit, apart from their computation, which needs PyTorch.

All are of the token after the chosen position; logarithms are natural.
"""

from onejump.study.lenses import LENSES

METRICS = (
    "correct",  # the exit's most probable token is the full model's; its mean is the precision
    "correct_at_5",  # the exit's most probable token is among the full model's five (Din et al. 2023)
    "surprisal",  # -log p_exit(most probable token of the full model) (OJFA's text)
    "exit_surprisal",  # -log p_full(most probable token of the exit) (Din et al.'s code)
    "kl",  # KL(full || exit)
    "confidence",  # the exit's largest probability
)

# Of the predictions of a check with a shortlist: how many must be the whole check's.
SHORTLIST_AGREEMENT = 0.99

# Methods that are evaluated on all test sentences, by the stage that does it; in this order in all tables.
FLOOR_METHODS = ("constant", "constant_by_position", "token_table", "identity_temperature", "middle")
REFERENCE_METHODS = ("constant", "constant_by_position", "token_table", "identity_temperature", "identity")
JUMP_METHODS = ("middle", "ojfa", "joint", "n_njtc")
EVERY_SENTENCE_METHODS = (*FLOOR_METHODS, "identity", "n_njtc", "ojfa", "joint", "joint_shortlist", *LENSES)
# Of a variant with the joint jump alone; the last one where it has a gate for each level.
JOINT_METHODS = (*REFERENCE_METHODS, "joint", "joint_shortlist")
