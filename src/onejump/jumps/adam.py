"""Fitting a jump by Adam on the objective of OJFA, Eq. 2: what the paper most likely did.

The paper publishes no optimiser, rate, batch or epochs. These are ours, chosen so that fits come near the exact
optimum, whose distance each fit reports.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim.adam import adam

from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.files.progress import progress_bar
from onejump.jumps.jump import Jump
from onejump.jumps.settings import BATCH_SIZE, EPOCHS, LEARNING_RATE


@dataclass(frozen=True)
class Rows:
    """Inputs and targets of one or more levels, on the training device.

    Attributes:
        x: [L, n, H] float32, the inputs of L levels.
        y: [n, H] float32, the same target for every level.
    """

    x: Tensor
    y: Tensor

    def batches(self, batch_size: int, per_level: bool, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, without the last incomplete batch.

        `mixed` batches draw rows of all levels alike and hold `batch_size` rows a level, so that joint and single
        fits take equal steps and equal epochs; `per_level` batches hold `batch_size` rows of one level.
        """
        n_levels, n, hidden_size = self.x.shape
        batch_size = min(batch_size, n)
        if per_level:
            orders = torch.stack([torch.randperm(n, generator=generator) + level * n for level in range(n_levels)])
            parts = orders[:, : n // batch_size * batch_size].reshape(-1, batch_size)
            parts = parts[torch.randperm(len(parts), generator=generator)]
        else:
            order, rows = torch.randperm(n_levels * n, generator=generator), batch_size * n_levels
            parts = order[: len(order) // rows * rows].reshape(-1, rows)
        for part in parts.to(self.y.device):
            yield self.x.view(-1, hidden_size).index_select(0, part), self.y.index_select(0, part % n)

    @torch.no_grad()
    def mse(self, jump: Jump) -> float:
        """Squared error of a jump in evaluation mode, summed over H, averaged over rows and levels."""
        folded = jump.fold()
        errors = [float(mse_loss(folded(x) @ folded.B, self.y, reduction="sum")) for x in self.x]
        return sum(errors) / (len(errors) * len(self.y))


@dataclass(frozen=True)
class AdamFit:
    """A fitted jump and its course.

    Attributes:
        jump: in evaluation mode, at the epoch with the lowest validation error.
        train_mse, validation_mse: of that jump.
        best_epoch: 1-based.
        train_curve: mean batch error of each epoch (BatchNorm in training mode).
        validation_curve: validation error after each epoch (BatchNorm in evaluation mode).
    """

    jump: Jump
    train_mse: float
    validation_mse: float
    best_epoch: int
    train_curve: list[float]
    validation_curve: list[float]


@torch.no_grad()
def batch_gradients(jump: Jump, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 2's error of a batch, BatchNorm in training mode, and its gradients; moves the running statistics.

    With `x` centred, `s = bn.weight / sqrt(var + eps)` and `z = x (s A) + bn.bias A`, the error `|y - z B|^2` and all
    gradients need `y B'`, `B B'` and sums over the batch alone: nothing H-wide is formed beside the inputs, where
    automatic differentiation forms six times their size.

    Args:
        jump: whose parameters are differentiated.
        x: [n, H] float32, n > 1; centred in place.
        y: [n, H] float32.

    Returns:
        The error, and the gradient of each parameter by its name.
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
    dP, dq = (dz.T @ x).T.contiguous(), dz.sum(0)  # laid out as A is, which PyTorch's fused Adam takes for granted
    return error, {
        "A": s[:, None] * dP + torch.outer(bn.bias, dq),
        "B": (z.T @ z @ B - z.T @ y) * (2 / n),
        "bn.weight": (A * dP).sum(1) * inverse_std,
        "bn.bias": A @ dq,
    }


def one_cycle(step: int, steps: int, learning_rate: float) -> tuple[float, float]:
    """Rate and first moment's decay of a step, 0-based: one cycle (Smith and Topin 2019) as OneCycleLR's defaults."""
    peak = 0.3 * steps - 1
    lowest, highest = learning_rate / 25, learning_rate / 25e4
    if step <= peak:
        first, last, share = (lowest, 0.95), (learning_rate, 0.85), step / peak
    else:
        first, last, share = (learning_rate, 0.85), (highest, 0.95), (step - peak) / (steps - 1 - peak)
    cosine = (1 + math.cos(math.pi * share)) / 2
    return tuple(end + (start - end) * cosine for start, end in zip(first, last, strict=True))


class Adam:
    """Adam (Kingma and Ba 2015) with a one-cycle rate, by PyTorch's functional form.

    Not by its class: making one imports PyTorch's compiler, which takes longer than a fit of a small model.
    """

    def __init__(self, parameters: dict[str, Tensor], learning_rate: float, steps: int) -> None:
        self.parameters = parameters
        self.first = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.second = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        device = next(iter(self.parameters.values())).device
        self.counts = [torch.zeros((), device=device) for _ in self.parameters]  # moved on by `adam`
        self.n_steps, self._learning_rate, self._steps = 0, learning_rate, steps

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        """Move the parameters."""
        rate, beta1 = one_cycle(self.n_steps, self._steps, self._learning_rate)
        states = [[state[name] for name in self.parameters] for state in (gradients, self.first, self.second)]
        adam(
            list(self.parameters.values()), *states, [], self.counts, fused=self.counts[0].device.type != "mps",
            amsgrad=False, beta1=beta1, beta2=0.999, lr=rate, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip
        self.n_steps += 1

    def state_dict(self) -> dict:
        """What a checkpoint holds."""
        return {"n_steps": self.n_steps, "first": self.first, "second": self.second}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a checkpoint."""
        self.n_steps = state["n_steps"]
        for count in self.counts:
            count.fill_(self.n_steps)
        for name in self.parameters:
            self.first[name].copy_(state["first"][name])
            self.second[name].copy_(state["second"][name])


def fit_adam(
    fit: Rows,
    validation: Rows,
    rank: int,
    seed: int,
    per_level: bool = False,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    progress: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> AdamFit:
    """Fit by Adam with a one-cycle rate and keep the weights with the lowest validation error (early stopping).

    The target is divided by one number, its root mean square, which B takes back afterwards: the objective stays Eq. 2,
    and one learning rate serves every model.

    Args:
        fit, validation: rows to fit, and rows that choose the epoch.
        rank: r.
        seed: of initial weights and batch order.
        per_level: whether a batch holds rows of one level (`joint_batches: per_level`) or of all.
        progress: title of the progress bar, or None.
        checkpoint: where the fit goes on from if it was broken off, with the same result; or None.

    Raises:
        OnejumpError: the error became NaN or infinite.
    """
    hidden_size, device = fit.y.shape[1], fit.y.device
    scale = float(fit.y.square().mean().sqrt().clamp_min(1e-30))
    fit_scaled = Rows(fit.x, fit.y / scale)
    generator = torch.Generator().manual_seed(seed)
    jump = Jump(hidden_size, rank)
    with torch.no_grad():
        jump.A.normal_(0, 1 / math.sqrt(hidden_size), generator=generator)
        jump.B.normal_(0, 1 / math.sqrt(rank), generator=generator)
    jump = jump.to(device)
    n_rows = len(fit.y)
    steps = epochs * (n_rows // min(batch_size, n_rows)) * (len(fit.x) if per_level else 1)
    optimiser = Adam(dict(jump.named_parameters()), learning_rate, steps)

    best, train_curve, validation_curve = Jump(hidden_size, rank).to(device).eval(), [], []
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        jump.load_state_dict(saved["jump"])
        best.load_state_dict(saved["best"])
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        train_curve, validation_curve = saved["train_curve"], saved["validation_curve"]
    rest = range(len(validation_curve), epochs)
    for _ in progress_bar(rest, progress, "epoch"):
        total, n_batches = torch.zeros((), device=device), 0
        for x, y in fit_scaled.batches(batch_size, per_level, generator):
            error, gradients = batch_gradients(jump, x, y)
            optimiser.step(gradients)
            total, n_batches = total + error, n_batches + 1
        train_curve.append(float(total) / n_batches * scale**2)
        candidate = _unscaled(jump, scale)
        validation_curve.append(validation.mse(candidate))
        if not math.isfinite(validation_curve[-1]):
            raise OnejumpError(
                f"Adam fit: the error is {validation_curve[-1]} after epoch {len(validation_curve)}; "
                "look for extreme activations, or use fit: exact"
            )
        if validation_curve[-1] == min(validation_curve):
            best = candidate
        if checkpoint is not None and checkpoint.due:
            checkpoint.save(
                {
                    "jump": jump.state_dict(),
                    "best": best.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "generator": generator.get_state(),
                    "train_curve": train_curve,
                    "validation_curve": validation_curve,
                }
            )
    return AdamFit(
        jump=best,
        train_mse=fit.mse(best),
        validation_mse=min(validation_curve),
        best_epoch=validation_curve.index(min(validation_curve)) + 1,
        train_curve=train_curve,
        validation_curve=validation_curve,
    )


def _unscaled(jump: Jump, scale: float) -> Jump:
    """A copy of the jump whose B takes back the target's scale."""
    copy = Jump(*jump.A.shape).to(jump.A.device)
    copy.load_state_dict(jump.state_dict())
    with torch.no_grad():
        copy.B.mul_(scale)
    return copy.eval()
