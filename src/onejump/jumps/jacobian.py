"""The Jacobian lens: the mean derivative of h^K by h^k, from backward passes through the model.

As its authors estimate it (Gurnee et al. 2026): for each prompt and each component c of h^K, a backward pass from the
sum of that component over all positions gives, at position p of level k, the sum over later positions q of
d h^K_q,c / d h^k_p; the mean over p and over prompts is row c of J_k. One such pass gives that row at all levels. The
first position is left out: attention sinks there have states of their own. (The authors leave out 16, of long passages;
the study's sentences have about that many tokens.) A lens is `h J_k'`, without a bias.

Backward passes of many components run as one, by vmap, from one forward pass.
"""

from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.files.progress import progress_bar
from onejump.jumps.lenses import AffineLens
from onejump.jumps.settings import JACOBIAN_ELEMENTS, default_rank
from onejump.models.anatomy import Anatomy
from onejump.models.passes import removed
from onejump.models.sources import first_sentence

FIRST = 1  # the first position that counts


def draw_prompts(positions: pa.Table, count: int, train_on: str, seed: int) -> list[list[int]]:
    """Token ids of training sentences of some text, as many as are wanted and there are: positions.parquet's, cut.

    Raises:
        OnejumpError: none of them has a position that counts.
    """
    columns = ["split", "input_ids", *(["origin"] if train_on != "both" else [])]
    rows = positions.select(columns).to_pylist()
    kept = [row["input_ids"] for row in rows if row["split"] == "train" and row.get("origin", train_on) == train_on]
    kept = [ids for ids in kept if len(ids) > FIRST]
    if not kept:
        raise OnejumpError(f"has no training sentence of more than {FIRST} tokens; sample more sentences")
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:count]
    return [kept[index] for index in order.tolist()]


def mean_jacobians(
    anatomy: Anatomy,
    prompts: Sequence[Sequence[int]],
    progress: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> Tensor:
    """J_k of levels 0..K-1: [K, H, H] float32 on the CPU, where `J[k, c]` is the derivative of component c of h^K.

    An interrupted computation resumes at its checkpoint, after a prompt, with the same result.

    Args:
        anatomy: of a model in evaluation mode.
        prompts: lists of token ids, each of more than FIRST tokens.
        progress: label of the progress bar, or None for no bar.
        checkpoint: where it resumes, or None.

    Raises:
        OnejumpError: the model's blocks cannot be differentiated, or a derivative is not finite.
    """
    K, H = len(anatomy.blocks), anatomy.hidden_size
    saved = (checkpoint.load() if checkpoint is not None else None) or {"n_done": 0}
    total = saved["total"] if "total" in saved else torch.zeros(K, H, H, dtype=torch.float64)
    anatomy.model.requires_grad_(False)
    bar = progress_bar(None, progress, "prompt", len(prompts), saved["n_done"])
    for n_done, ids in enumerate(prompts[saved["n_done"] :], saved["n_done"] + 1):
        total += _jacobians(anatomy, torch.tensor([ids], device=anatomy.device))
        bar.update()
        if checkpoint is not None and checkpoint.due:
            checkpoint.save({"n_done": n_done, "total": total})
    bar.close()
    mean = (total / len(prompts)).float()
    if not mean.isfinite().all():
        raise OnejumpError(f"{type(anatomy.model).__name__}: a derivative is not finite; run it in float32 or bfloat16")
    return mean


def _jacobians(anatomy: Anatomy, input_ids: Tensor) -> Tensor:
    """Of one prompt [1, T]: [K, H, H] float64 on the CPU, means over positions."""

    def differentiable(module, args, embeddings: Tensor) -> Tensor:
        return embeddings.detach().requires_grad_()

    embeddings = anatomy.model.get_input_embeddings()
    name, (T, H) = type(anatomy.model).__name__, (input_ids.shape[1], anatomy.hidden_size)
    step = max(1, JACOBIAN_ELEMENTS // (T * H))
    found = torch.empty(len(anatomy.blocks), H, H, dtype=torch.float64)
    # Without its fused kernels, attention is made of products whose derivatives PyTorch can take together.
    with removed([embeddings.register_forward_hook(differentiable)]), sdpa_kernel(SDPBackend.MATH):
        try:
            with torch.enable_grad(), anatomy.passes() as begin:
                *levels, final = begin(input_ids)
                components = torch.eye(H, dtype=final.dtype, device=final.device)
                for rows in torch.arange(H).split(step):
                    cotangents = torch.zeros(len(rows), *final.shape, dtype=final.dtype, device=final.device)
                    cotangents[:, :, FIRST:] = components[rows, None, None]
                    gradients = torch.autograd.grad(
                        final, levels, cotangents, retain_graph=bool(rows[-1] < H - 1), is_grads_batched=True
                    )
                    for level, gradient in enumerate(gradients):
                        found[level, rows] = gradient[:, 0, FIRST:].double().mean(1).cpu()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what PyTorch raises for a model's own operations without derivatives
            raise OnejumpError(
                f"{name}: its blocks cannot be differentiated ({first_sentence(error)}); leave the Jacobian lenses out "
                "of evaluation.lenses"
            ) from error
    return found


def multiply_adds(anatomy: Anatomy, prompts: Sequence[Sequence[int]]) -> int:
    """Of a forward pass and H backward passes for each prompt, without those of attention that grow with its length."""
    return sum(map(len, prompts)) * (1 + anatomy.hidden_size) * anatomy.token_weights


def jacobian_lenses(jacobians: Tensor) -> dict[str, list[AffineLens]]:
    """The Jacobian lens of J [K, H, H], cut to rank floor(H / 100) by its singular values, and its mean over levels."""
    cut, rank = [], default_rank(jacobians.shape[1])
    for J in jacobians:
        U, S, Vh = torch.linalg.svd(J.double())
        cut.append(AffineLens(((Vh[:rank].T * S[:rank]).float(), U[:, :rank].T.float())))
    return {
        "jacobian_lens": [AffineLens((J.T,)) for J in jacobians],
        "jacobian_lens_low_rank": cut,
        "jacobian_lens_mean": [AffineLens((jacobians.mean(0).T,))],
    }
