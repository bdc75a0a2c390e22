"""Gates: how much of the normalised hidden state itself goes into a prediction, `y_k = a_k norm(h^k) + z B`.

By squared error there is no closed form for jump and gates together, but there is for each alone: the jump is the exact
fit (OJFA, Eq. 2) to what the gates do not let through, `norm(h^K) - a_k norm(h^k)`, and each gate is one division. They
alternate, and no step makes the error larger. Both follow from moments that are computed once, since those of the
target are linear and quadratic in the gates. That takes one H x H matrix in float64 for each gate: for one a level,
80 MB for SmolLM2-135M, and 530 MB for 28 levels of width 1536.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onejump.files.progress import progress_bar
from onejump.jumps.exact import AffineMap, fit_exact, optimum
from onejump.jumps.jump import Jump, target_of
from onejump.jumps.moments import Moments, validation_start
from onejump.jumps.objective import Problem
from onejump.jumps.settings import ALTERNATIONS


def first_gates(problem: Problem) -> list[float]:
    """Gates to start from, as many as the problem has; `fixed` ones stay.

    One for each level starts at nothing of the embeddings, all of the last state; one for all at their mean.
    """
    starts = [level / problem.activations.n_blocks for level in problem.levels]
    shared = [sum(starts) / len(starts)]
    return {"none": [], "fixed": [1.0], "shared": shared, "level": starts}[problem.gate]


@dataclass(frozen=True)
class GateMoments:
    """What moments of a target less what G gates let through follow from, in float64, with n = norm(h)."""

    plain: Moments  # of the jump's inputs x and the targets y without gates
    xn: Tensor  # [G, H, H], sum of (x - mean_x) n' over the rows of each gate
    yn: Tensor  # [G], sum of (y - mean_y).n
    nn: Tensor  # [G], sum of n.n
    n: Tensor  # [G, H], sum of n

    @classmethod
    def of(cls, problem: Problem, validation: bool = False, gates: Sequence[float] | None = None) -> "GateMoments":
        """Of the fitting rows, or of the validation slice.

        With gates, these are applied to the rows, which leaves one for all to set, 1: a matrix for each is not needed.
        """
        plain = problem.validation if validation else problem.fitting
        H, device = problem.activations.hidden_size, plain.xx.device
        count = len(problem.levels) if gates is None and problem.gate == "level" else 1
        shapes = ((count, H, H), (count,), (count,), (count, H))
        xn, yn, nn, n = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes)
        boundary = validation_start(len(problem.activations))
        for i, level in enumerate(problem.levels):
            gate, first = i if count > 1 else 0, 0
            factor = 1.0 if gates is None else gates[i if len(gates) > 1 else 0]
            both = problem.inputs.shards(level, problem.activations.n_blocks), problem.activations.shards(level)
            for (x, final), (h,) in zip(*both, strict=True):
                cut = min(max(boundary - first, 0), len(x))
                rows = slice(cut, None) if validation else slice(cut)
                first += len(x)
                on = problem.unembedding.weight.device
                y = target_of(final[rows].to(on), problem.unembedding, problem.target).to(device).double()
                states = problem.unembedding.normalise(h[rows].to(on)).to(device).double() * factor
                xn[gate].addmm_((x[rows].to(device).double() - plain.mean_x).T, states)
                yn[gate] += ((y - plain.mean_y) * states).sum()
                nn[gate] += states.square().sum()
                n[gate] += states.sum(0)
        return cls(plain, xn, yn, nn, n)

    def target(self, gates: Sequence[float]) -> Moments:
        """Moments of the jump's inputs and of what the gates do not let through."""
        a, plain = self.n.new_tensor(gates), self.plain
        mean = a @ self.n / plain.n
        xy = plain.xy - torch.einsum("g,gij->ij", a, self.xn)
        yy = plain.yy - 2 * a.dot(self.yn) + a.square().dot(self.nn) - plain.n * mean.dot(mean)
        return replace(plain, mean_y=plain.mean_y - mean, xy=xy, yy=yy)

    def best_gates(self, found: AffineMap) -> list[float]:
        """The gates of smallest squared error for a jump: `a = sum n.(y - z B) / sum n.n`."""
        W, plain = found.W / found.std_x[:, None], self.plain
        left = plain.mean_y - found.V @ ((plain.mean_x - found.mean_x) @ W + found.c)
        across = self.yn + self.n @ left - torch.stack([((xn @ found.V) * W).sum() for xn in self.xn])
        return (across / self.nn).tolist()


def fit_gated(problem: Problem) -> tuple[Jump, dict]:
    """Jump and gates by squared error, after ALTERNATIONS rounds, and what their file says of the fit.

    The ridge is chosen in the last round; the optimum that the gap refers to is that of these gates.

    Raises:
        OnejumpError: as `AffineMap.jump`.
    """
    gates, moments = first_gates(problem), GateMoments.of(problem)
    if problem.gate != "fixed":
        for _ in progress_bar(range(1, ALTERNATIONS), problem.title, "round"):
            gates = moments.best_gates(optimum(moments.target(gates), problem.rank))
    validation = GateMoments.of(problem, validation=True, gates=gates).target([1.0])
    exact = fit_exact(moments.target(gates), validation, problem.rank)
    facts = {name: value for name, value in vars(exact).items() if name != "map"}
    facts["mean_mse"] = float(problem.fitting.yy / problem.fitting.n)
    return with_gates(exact.map.jump(), gates), facts


def with_gates(jump: Jump, gates: Sequence[float]) -> Jump:
    """The jump, given gates."""
    jump.gates = torch.nn.Parameter(torch.tensor(gates))
    return jump
