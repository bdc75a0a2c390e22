"""The fit `adam`: Adam on Eq. 2 (OJFA), as the paper most likely did.

The paper gives no optimiser, rate, batch size or number of epochs. These are ours, chosen so that fits come near the
exact optimum; each fit reports its distance to it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.files.progress import progress_bar
from onejump.jumps.jump import Jump
from onejump.jumps.objective import Problem, Rows
from onejump.jumps.settings import BATCH_SIZE, EPOCHS, LEARNING_RATE


def fit(problem: Problem) -> tuple[Jump, dict]:
    """The jump, and what its file says of the fit.

    Raises:
        OnejumpError: the error became NaN or infinite.
    """
    choices = {"per_level": problem.per_level, "progress": problem.title, "checkpoint": problem.checkpoint}
    facts = dict(vars(fit_adam(*problem.rows(), problem.rank, problem.seed, **choices)))
    return facts.pop("jump"), facts | {"curve_steps": list(range(1, len(facts["validation_curve"]) + 1))}


@dataclass(frozen=True)
class AdamFit:
    """A fitted jump, in evaluation mode, at the epoch with the lowest validation error; and the fit's course."""

    jump: Jump
    train_mse: float  # the jump's error on the rows to fit
    validation_mse: float  # and on the validation slice
    best_epoch: int  # 1-based
    train_curve: list[float]  # mean batch error of each epoch (BatchNorm in training mode)
    validation_curve: list[float]  # validation error after each epoch (BatchNorm in evaluation mode)


@torch.no_grad()
def set_gradients(jump: Jump, x: Tensor, y: Tensor) -> Tensor:
    """Set the gradients of Eq. 2's error of a batch, BatchNorm in training mode; update the running statistics.

    With `x` centred, `s = bn.weight / sqrt(var + eps)` and `z = x (s A) + bn.bias A`, the error `|y - z B|^2` and all
    gradients follow from `y B'`, `B B'` and sums over the batch: no other array is as large as the inputs. Automatic
    differentiation makes six of them, which makes fits slower (measured by benchmarks/fits.py).

    `x` and `y` are [n, H] float32 with n > 1; `x` is centred in place. Returns the error, a scalar.
    """
    n, bn, A, B = len(x), jump.bn, jump.A, jump.B
    mean = x.mean(0)
    x -= mean
    variance = x.square().mean(0)
    bn.running_mean.lerp_(mean, bn.momentum)
    bn.running_var.lerp_(variance * (n / (n - 1)), bn.momentum)

    inverse_std = torch.rsqrt(variance + bn.eps)
    s = bn.weight * inverse_std
    z = torch.addmm(bn.bias @ A, x, s[:, None] * A)
    yB, zG = y @ B.T, z @ (B @ B.T)
    error = (y.flatten().dot(y.flatten()) + (z * (zG - 2 * yB)).sum()) / n
    dz = (zG - yB) * (2 / n)
    dP, dq = (dz.T @ x).T.contiguous(), dz.sum(0)  # laid out as A is, which PyTorch's fused Adam assumes
    A.grad = s[:, None] * dP + torch.outer(bn.bias, dq)
    B.grad = (z.T @ z @ B - z.T @ y) * (2 / n)
    bn.weight.grad = (A * dP).sum(1) * inverse_std
    bn.bias.grad = A @ dq
    return error


def one_cycle_adam(parameters: Sequence[Tensor], learning_rate: float, steps: int) -> tuple[Adam, OneCycleLR]:
    """Adam (Kingma and Ba 2015) and its one-cycle schedule (Smith and Topin 2019), which peaks at the learning rate."""
    optimiser = Adam(parameters, fused=parameters[0].device.type in ("cpu", "cuda"))
    return optimiser, OneCycleLR(optimiser, learning_rate, total_steps=steps)


def fit_adam(
    fitting: Rows,
    validation: Rows,
    rank: int,
    seed: int,
    per_level: bool = False,
    epochs: int = EPOCHS,
    progress: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> AdamFit:
    """Fit by Adam with a one-cycle schedule and keep the weights with the lowest validation error (early stopping).

    The target is divided by one number, its root mean square, and B is multiplied by it afterwards: the objective is
    still Eq. 2, and one learning rate suits every model.

    The validation rows choose the epoch; the seed is that of initial weights and batch order. With `per_level`, a batch
    holds rows of one level, otherwise of all. An interrupted fit resumes at its checkpoint, with the same result.

    Raises:
        OnejumpError: the error became NaN or infinite.
    """
    hidden_size, device = fitting.y.shape[1], fitting.y.device
    scale = float(fitting.y.square().mean().sqrt().clamp_min(1e-30))
    scaled = Rows(fitting.x, fitting.y / scale)
    generator = torch.Generator().manual_seed(seed)
    jump = Jump(hidden_size, rank)
    with torch.no_grad():
        jump.A.normal_(0, 1 / math.sqrt(hidden_size), generator=generator)
        jump.B.normal_(0, 1 / math.sqrt(rank), generator=generator)
    jump, best = jump.to(device), Jump(hidden_size, rank).to(device).eval()
    n_rows = len(fitting.y)
    steps = epochs * (n_rows // min(BATCH_SIZE, n_rows)) * (len(fitting.x) if per_level else 1)
    optimiser, schedule = one_cycle_adam(list(jump.parameters()), LEARNING_RATE, steps)

    parts = {"jump": jump, "best": best, "optimiser": optimiser, "schedule": schedule}
    curves = {"train_curve": [], "validation_curve": []}
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        curves = {name: saved[name] for name in curves}
    train_curve, validation_curve = curves.values()
    done = len(validation_curve)
    for _ in progress_bar(range(done, epochs), progress, "epoch", epochs, done):
        total, n_batches = torch.zeros((), device=device), 0
        for x, y in scaled.batches(BATCH_SIZE, per_level, generator):
            total, n_batches = total + set_gradients(jump, x, y), n_batches + 1
            optimiser.step()
            schedule.step()
        train_curve.append(float(total) / n_batches * scale**2)
        candidate = _unscaled(jump, scale)
        validation_curve.append(validation.mse(candidate.fold()))
        if not math.isfinite(validation_curve[-1]):
            raise OnejumpError(
                f"Adam fit: the error is {validation_curve[-1]} after epoch {len(validation_curve)}; "
                "look for extreme activations, or use fit: exact"
            )
        if validation_curve[-1] == min(validation_curve):
            best.load_state_dict(candidate.state_dict())
        if checkpoint is not None and checkpoint.due:
            states = {name: part.state_dict() for name, part in parts.items()}
            checkpoint.save(states | curves | {"generator": generator.get_state()})
    lowest = min(validation_curve)
    best_epoch = validation_curve.index(lowest) + 1
    return AdamFit(best, fitting.mse(best.fold()), lowest, best_epoch, train_curve, validation_curve)


def _unscaled(jump: Jump, scale: float) -> Jump:
    """A copy of the jump in evaluation mode, for the target before it was divided by `scale`."""
    copy = Jump(*jump.A.shape).to(jump.A.device)
    copy.load_state_dict(jump.state_dict())
    with torch.no_grad():
        copy.B.mul_(scale)
    return copy.eval()
