"""The fit `exact_logits`: the exact fit with errors weighted by the output head, so that it is closest in logits.

Eq. 2 (OJFA) weights errors in all directions of the final representation alike; the output head does not. With E the
matrix that the head multiplies a representation by, less each column's mean (a constant added to all logits changes
nothing), the error `|(y - y_jump) E'|^2` is Eq. 2's for the target `y R` where `R R' = E'E`, and so has the same closed
form. The division by the norm before the head differs from sentence to sentence and is left out; the post-norm target
has none.
"""

from dataclasses import replace

import torch
from torch import Tensor

from onejump.jumps.exact import AffineMap, fit_exact
from onejump.jumps.jump import Jump
from onejump.jumps.moments import Moments, level_moments
from onejump.jumps.objective import Problem
from onejump.models.devices import float64_device
from onejump.models.unembedding import Unembedding

BLOCK = 8192  # rows of the output embedding in float64 at once
FLOOR = 1e-9  # of the metric's mean eigenvalue: added to all, since LayerNorm's centring leaves one at zero


def fit(problem: Problem) -> tuple[Jump, dict]:
    """The jump, and what its file says of the fit; errors as in `AffineMap.jump`."""
    root = metric_root(problem.unembedding, problem.target, problem.device)
    problem_rows = (problem.activations, problem.levels, problem.unembedding, problem.target)
    weighted = level_moments(*problem_rows, problem.device, root)
    found, ridge = fit_logits(*weighted, problem.rank, root)
    return found.jump(), {"ridge": ridge}


def metric_root(unembedding: Unembedding, target: str, device: torch.device) -> Tensor:
    """Lower triangular R [H, H] float64 with `R R' = E'E`, up to FLOOR."""
    device = float64_device(device)
    mean = unembedding.weight.double().mean(0).to(device)
    metric = torch.zeros(unembedding.hidden_size, unembedding.hidden_size, dtype=torch.float64, device=device)
    for rows in unembedding.weight.split(BLOCK):
        E = rows.to(device).double() - mean
        if target == "pre_norm":
            E = E * unembedding.norm_weight.to(device).double()
            if unembedding.norm_kind == "layer":
                E = E - E.mean(1, keepdim=True)
        metric += E.T @ E
    metric.diagonal().add_(FLOOR * metric.diagonal().mean())
    return torch.linalg.cholesky(metric)


def fit_logits(fitting: Moments, validation: Moments, rank: int, root: Tensor) -> tuple[AffineMap, float]:
    """The optimum under the metric, and its ridge; the moments are those of the inputs and the targets times `root`."""
    exact = fit_exact(fitting, validation, rank)
    # The map predicts `y R`; B undoes R.
    B = torch.linalg.solve_triangular(root, exact.map.V.T, upper=False, left=False)
    return replace(exact.map, V=B.T), exact.ridge
