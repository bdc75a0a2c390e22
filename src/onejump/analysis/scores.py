"""The scores of each jump at each level (OJFA, Eq. 4): cosines of its output and the target."""

import numpy as np
import pyarrow as pa
import torch

from onejump.activations.reading import Activations
from onejump.files.progress import progress_bar
from onejump.jumps.jump import FoldedJump, target_of
from onejump.models.unembedding import Unembedding


def score_jumps(
    activations: Activations, unembedding: Unembedding, jumps: list[FoldedJump], target: str, device: torch.device
) -> torch.Tensor:
    """Cosine C of each jump's output and the target, at each level, for each training sentence.

    No H-wide prediction is formed: with `B = L Q`, where Q has orthonormal rows, y the target and z the jump's
    coordinates, `C = (z L).(Q y) / (|z L| |y|)`, and all jumps at one level are one product [r K, H] x [H, N]. What a
    gate a lets through, `a n` with n = norm(h), adds `a n.y` to the product of output and target, and
    `2 a (z L).(Q n) + a^2 |n|^2` to the output's square.

    Args:
        activations: of the train split.
        unembedding: of the model, on `device`.
        jumps: jumps 0..K-1, on `device`.
        target: `pre_norm` or `post_norm`.
        device: where to compute.

    Returns:
        [jump, level, sentence] float32 on the CPU, levels 0..K; 0 where the output or the target is zero.
    """
    n_jumps, n_levels = len(jumps), activations.n_blocks + 1
    # The rows of one jump are K apart, so that sums over r are sums of r blocks of all jumps.
    P, q, Q = (torch.stack(parts, 1).flatten(0, 1).to(device) for parts in zip(*map(_orthonormal, jumps), strict=True))
    gated = any(jump.gates for jump in jumps)
    targets = []  # of each shard `Q y / |y|`, the same at every level, and `y / |y|` where gates need it
    for (final,) in activations.shards(activations.n_blocks):
        y = target_of(final.to(device), unembedding, target)
        y = y / y.norm(dim=1, keepdim=True).clamp_min(1e-30)
        targets.append((Q @ y.T, y if gated else None))
    cosines = torch.empty(n_jumps, n_levels, len(activations))
    for level in progress_bar(range(n_levels), "score jumps", "level"):
        first = 0
        gates = torch.tensor([jump.gate(level) for jump in jumps])[:, None].to(device)
        for (x,), (projected, y) in zip(activations.shards(level), targets, strict=True):
            x = x.to(device)
            z = torch.addmm(q[:, None], P, x.T)
            dot, square = z.new_zeros(2, n_jumps, len(x))
            for ours, theirs in zip(z.split(n_jumps), projected.split(n_jumps), strict=True):
                dot.addcmul_(ours, theirs)
                square.addcmul_(ours, ours)
            if gated:
                n = unembedding.normalise(x)
                across = sum(ours * own for ours, own in zip(z.split(n_jumps), (Q @ n.T).split(n_jumps), strict=True))
                square += 2 * gates * across + gates.square() * n.square().sum(1)
                dot += gates * (n * y).sum(1)
            cosine = dot.div_(square.clamp_min_(0).sqrt_().clamp_min_(1e-30)).clamp_(-1, 1)
            cosines[:, level, first : first + len(x)] = cosine.cpu()
            first += len(x)
    return cosines


def _orthonormal(jump: FoldedJump) -> tuple[torch.Tensor, ...]:
    """L' P' [r, H], L' q [r] and Q [r, H] of a jump whose B is L Q."""
    Q, R = torch.linalg.qr(jump.B.cpu().double().T)  # B' = Q' L'
    P, q = jump.P.cpu().double(), jump.q.cpu().double()
    return tuple(part.float() for part in (R @ P.T, R @ q, Q.T))


def signed_square(cosines: torch.Tensor) -> torch.Tensor:
    """Eq. 4's `sgn(C) C^2`."""
    return cosines.abs() * cosines


def scores_table(cosines: torch.Tensor) -> pa.Table:
    """Means over sentences of cosines [jump, level, sentence]: jump, level, cosine and signed_squared_cosine."""
    n_jumps, n_levels, _ = cosines.shape
    jump, level = np.divmod(np.arange(n_jumps * n_levels, dtype=np.int32), n_levels)
    means = {"cosine": cosines, "signed_squared_cosine": signed_square(cosines)}
    columns = {name: values.double().mean(2).flatten().numpy() for name, values in means.items()}
    return pa.table({"jump": jump, "level": level, **columns})
