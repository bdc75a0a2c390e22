"""Gates: how much of the normalised hidden state itself goes into a prediction, `y_k = a_k norm(h^k) + z B`.

By squared error there is no closed form for jump and gates together, but there is for each alone: the jump is the exact
fit (OJFA, Eq. 2) to what the gates do not let through, `norm(h^K) - a_k norm(h^k)`, and each gate is one division. They
alternate, and no step makes the error larger.
"""

from collections.abc import Sequence

import torch

from onejump.files.progress import progress_bar
from onejump.jumps.exact import ExactFit, fit_exact
from onejump.jumps.jump import FoldedJump, Jump, target_of
from onejump.jumps.moments import Moments, level_moments, validation_start
from onejump.jumps.objective import Problem
from onejump.jumps.settings import ALTERNATIONS


def first_gates(problem: Problem) -> list[float]:
    """Gates to start from, one for each of the problem's levels: nothing of the embeddings, all of the last state."""
    return [level / problem.activations.n_blocks for level in problem.levels]


def gated_moments(problem: Problem, gates: Sequence[float]) -> tuple[Moments, Moments]:
    """Moments of the problem's rows, and of its validation slice, with what the gates do not let through as target."""
    given = (problem.activations, problem.levels, problem.unembedding, problem.target, problem.device)
    return level_moments(*given, gates=gates)


def fit_gated(problem: Problem) -> tuple[Jump, dict]:
    """Jump and gates by squared error, after ALTERNATIONS rounds, and what their file says of the fit.

    The ridge is chosen in the last round; the optimum that the gap refers to is that of these gates.

    Raises:
        OnejumpError: as `AffineMap.jump`.
    """
    gates = first_gates(problem)
    for number in progress_bar(range(1, ALTERNATIONS + 1), problem.title, "round"):
        exact = fit_exact(*gated_moments(problem, gates), problem.rank, choose_ridge=number == ALTERNATIONS)
        if number < ALTERNATIONS:
            gates = best_gates(problem, exact)
    jump = with_gates(exact.map.jump(), gates)
    facts = {name: value for name, value in vars(exact).items() if name != "map"}
    return jump, facts | {"mean_mse": float(problem.fitting.yy / problem.fitting.n)}


def best_gates(problem: Problem, exact: ExactFit) -> list[float]:
    """The gates of smallest squared error for a jump: `a_k = sum n.(y - z B) / sum n.n` over n = norm(h^k)."""
    jump = exact.map.jump().fold().to(problem.device)
    return [_best_gate(problem, level, jump) for level in problem.levels]


def _best_gate(problem: Problem, level: int, jump: FoldedJump) -> float:
    unembedding, left = problem.unembedding, validation_start(len(problem.activations))
    across = square = 0.0
    for x, final in problem.activations.shards(level, problem.activations.n_blocks):
        rows = slice(max(left, 0))  # not those of the validation slice
        left -= len(x)
        x, final = x[rows].to(problem.device), final[rows].to(unembedding.weight.device)
        n, y = unembedding.normalise(x.to(final.device)), target_of(final, unembedding, problem.target)
        error = y.to(problem.device) - jump(x) @ jump.B
        n = n.to(problem.device)
        across += float((n * error).sum())
        square += float(n.square().sum())
    return across / square


def with_gates(jump: Jump, gates: Sequence[float]) -> Jump:
    """The jump, given gates."""
    jump.gates = torch.nn.Parameter(torch.tensor(gates))
    return jump
