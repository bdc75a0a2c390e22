"""The names of the metrics of an exit, apart from their computation, which needs PyTorch."""

# Of an evaluation; `onejump.evaluation` says what they are.
METRICS = ("correct", "correct_at_5", "surprisal", "exit_surprisal", "kl", "confidence")
