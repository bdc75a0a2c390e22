"""The exit check of a gated jump without the whole output head: a preview of all logits, exact ones for a shortlist.

What a gate lets through, `a_k norm(h^k)`, takes the whole head, `H V` multiply-adds. As in SVD-softmax (Shim et al.
2017), a product of a small width w stands for it in a preview of all logits; the n tokens that lead there, the
shortlist, get the whole check's logits, and the others keep the preview's, so that the exit has a distribution. That is
`(r + w) (H + V) + n H` multiply-adds. The jump's own part is exact in the preview, since it is fused.

Width and length are chosen on the validation slice: the cheapest check with SHORTLIST_AGREEMENT of its predictions the
whole check's. A file keeps what the preview of that width follows from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from onejump.activations.reading import Activations
from onejump.exits.chunks import chunks, evaluation_table, metrics_of
from onejump.exits.columns import METRICS, SHORTLIST_AGREEMENT
from onejump.files.atomic import OnejumpError
from onejump.files.tensors import write_tensors
from onejump.jumps.jump import FoldedJump
from onejump.jumps.moments import validation_start
from onejump.jumps.storage import open_fitted
from onejump.models.devices import float64_device
from onejump.models.fused import FusedUnembedding, fuse
from onejump.models.unembedding import Unembedding

WIDTHS = (4, 8, 16, 32)
TOKENS = (64, 128, 256, 512, 768, 1024, 1280, 2048, 4096)
METHOD = ("joint_shortlist", None)
FACTS = ("width", "tokens", "agreement", "check")  # of the check, in the file of its preview
SINGULAR = 1e-12  # of the largest eigenvalue: in such directions no logits differ
ROWS = 16384  # of the output embedding in float64 at once


@dataclass(frozen=True)
class Preview:
    """What stands for the output embedding W in a product with gated, normalised states: `s W'` is about `s A M`.

    The first of the width is the mean over tokens; the rest are the principal components of what is left, so that
    fewer columns of A and E and rows of M are the preview of a smaller width. All are on the device. Wc is W less its
    mean.
    """

    A: Tensor  # [H, w] float32
    M: Tensor  # [w, V] float32
    E: Tensor  # [H, w - 1] float32; below ones, M is `E' Wc'`, and A, beside the mean, `Wc' Wc E`

    @classmethod
    def of(
        cls, fitted: Activations, unembedding: Unembedding, jump: FoldedJump, width: int, device: torch.device
    ) -> "Preview":
        """The preview with the smallest squared error over all levels of some activations, and all tokens.

        With C the second moment of the centred output embedding and S that of the gated states, its components are the
        leading eigenvectors of `sqrt(C) S sqrt(C)`. The unembedding is on the device; decompositions are in float64.
        """
        where, H = float64_device(device), fitted.hidden_size
        C, S = torch.zeros(2, H, H, dtype=torch.float64, device=where)
        for level in range(fitted.n_blocks):
            for (h,) in fitted.shards(level):
                states = jump.gate(level) * unembedding.normalise(h.to(device)).to(where).double()
                S.addmm_(states.T, states)
        for part in _centred(unembedding, where):
            C.addmm_(part.T, part)
        values, Q = torch.linalg.eigh(C)
        scale = values.clamp_min(SINGULAR * values[-1]).sqrt()
        root, inverse = (Q * scale) @ Q.T, (Q / scale) @ Q.T
        leading = torch.linalg.eigh(root @ S @ root).eigenvectors.flip(1)[:, : width - 1]
        return cls.from_components((inverse @ leading).float(), unembedding)

    @classmethod
    def from_components(cls, E: Tensor, unembedding: Unembedding) -> "Preview":
        """The preview of some components E [H, w - 1], on the device of the unembedding."""
        device, mean = unembedding.weight.device, unembedding.weight.mean(0, dtype=torch.float32)
        factor = E.to(float64_device(device)).double()
        A, rows = torch.zeros_like(factor), []
        for part in _centred(unembedding, factor.device):
            rows.append(part @ factor)
            A.addmm_(part.T, rows[-1])
        M = torch.cat(rows).T.float().to(device)
        A = torch.cat([mean[:, None], A.float().to(device)], 1)
        return cls(A, torch.cat([M.new_ones(1, M.shape[1]), M]), E.to(device))

    def narrowed(self, width: int) -> "Preview":
        """The preview of a smaller width."""
        return Preview(self.A[:, :width], self.M[:width], self.E[:, : width - 1])


def _centred(unembedding: Unembedding, device: torch.device) -> Iterator[Tensor]:
    """Rows of the output embedding less their mean, in float64, so many at a time."""
    mean = unembedding.weight.mean(0, dtype=torch.float32)
    for part in unembedding.weight.split(ROWS):
        yield (part - mean).to(device).double()


@dataclass(frozen=True)
class Check:
    """An exit check with a shortlist: how wide its preview is, and how many tokens get exact logits."""

    width: int
    tokens: int

    def multiply_adds(self, rank: int, hidden_size: int, vocabulary: int) -> int:
        """Of one such check."""
        return (rank + self.width) * (hidden_size + vocabulary) + self.tokens * hidden_size


class ShortlistedJump:
    """A gated jump's logits by a check with a shortlist, which reads no more rows of the output embedding than it must.

    For few hidden states at a time: each has a shortlist of its own.
    """

    def __init__(
        self, unembedding: Unembedding, jump: FoldedJump, fused: FusedUnembedding, preview: Preview, tokens: int
    ) -> None:
        """Everything is on the device; `fused` is the jump's unembedding, and so many tokens get exact logits."""
        self._unembedding, self._jump, self._fused, self._preview = unembedding, jump, fused, preview
        self._tokens = tokens

    def logits(self, x: Tensor, level: int) -> Tensor:
        """From hidden states [n, H] of a level to logits [n, V]."""
        states = self._jump.gate(level) * self._unembedding.normalise(x)
        own = self._fused.linear(self._fused.normalise(self._jump(x, level)))
        logits = torch.addmm(own, states @ self._preview.A, self._preview.M)
        leading = logits.topk(self._tokens, 1, sorted=False).indices
        exact = (self._unembedding.weight[leading].float() @ states[:, :, None])[:, :, 0] + own.gather(1, leading)
        return self._unembedding.finish(logits.scatter(1, leading, exact))


class PreviewedJump:
    """A gated jump's logits before `Unembedding.finish`, by the whole check and by previews of it.

    Finishing does not change their order, so a shortlist can be told from these.
    """

    def __init__(self, unembedding: Unembedding, jump: FoldedJump, target: str, preview: Preview) -> None:
        """Everything is on the device; `target` is the jump's."""
        self._unembedding, self._jump = unembedding, jump
        (self._fused,) = fuse(unembedding, [jump.B], target)
        widths = [width for width in WIDTHS if width <= preview.A.shape[1]]
        # What each width adds to the one before.
        self._steps = [(b, preview.A[:, a:b], preview.M[a:b]) for a, b in pairwise([0, *widths])]

    def logits(self, x: Tensor, level: int, widths: Sequence[int]) -> Iterator[Tensor]:
        """From hidden states [n, H] of a level to logits [n, V]: the whole check's, then previews of some WIDTHS."""
        states = self._jump.gate(level) * self._unembedding.normalise(x)
        own = self._fused.linear(self._fused.normalise(self._jump(x, level)))
        yield own + self._unembedding.linear(states)
        for width, A, M in self._steps:
            if width > widths[-1]:
                return
            own = own.addmm(states @ A, M)
            if width in widths:
                yield own


def evaluate_shortlist(
    train: Activations,
    test: Activations,
    unembedding: Unembedding,
    jump: FoldedJump,
    target: str,
    device: torch.device,
) -> tuple[pd.DataFrame, pa.Table, pa.Table, Preview]:
    """Choose a check with a shortlist for a joint jump on the validation slice, and evaluate it.

    The unembedding and the jump are on the device.

    Returns:
        For each width and number of tokens: width, tokens, check (multiply-adds), agreement and worst_agreement (the
        share of exits with the whole check's prediction, over all levels and at the level where it is lowest, on the
        validation slice), chosen, and test_agreement, null for those not chosen. And the method `joint_shortlist`,
        with the pair that is chosen, on the validation slice and on the test sentences, each as `evaluation_table`. And
        the preview of the chosen width.

    Raises:
        OnejumpError: the jump has no gates.
    """
    if not jump.gates:
        raise OnejumpError("the jump has no gates, so its fused check needs no shortlist; give a gated joint jump")
    first, (vocabulary, hidden_size) = validation_start(len(train)), unembedding.weight.shape
    widths = [width for width in WIDTHS if width <= hidden_size]
    preview = Preview.of(train.rows(0, first), unembedding, jump, widths[-1], device)
    previewed = PreviewedJump(unembedding, jump, target, preview)
    checks = [Check(*pair) for pair in product(widths, [n for n in TOKENS if n < vocabulary] or [vocabulary])]
    held_out = train.rows(first, len(train))
    by_level = _agreement(held_out, unembedding, previewed, checks, device)
    table = pd.DataFrame([vars(check) for check in checks])
    table["check"] = [check.multiply_adds(len(jump.B), hidden_size, vocabulary) for check in checks]
    table["agreement"], table["worst_agreement"] = by_level.mean(1), by_level.min(1).values
    enough = table[table["agreement"] >= SHORTLIST_AGREEMENT]
    chosen = int(table["agreement"].idxmax() if enough.empty else enough["check"].idxmin())
    before, _ = _evaluate(held_out, unembedding, previewed, checks[chosen], device)
    evaluation, agreement = _evaluate(test, unembedding, previewed, checks[chosen], device)
    table["chosen"] = table.index == chosen
    table["test_agreement"] = table["chosen"].map({True: agreement})
    return table, before, evaluation, preview.narrowed(checks[chosen].width)


def save_preview(path: Path, preview: Preview, unembedding: Unembedding, chosen: Mapping) -> None:
    """Write what a preview follows from, besides the output embedding, and the facts of its check.

    Args:
        path: where to.
        preview: the chosen one.
        unembedding: the model's.
        chosen: its row of `evaluate_shortlist`'s table.
    """
    facts = {name: chosen[name] for name in FACTS} | {"unembedding_sha256": unembedding.metadata["sha256"]}
    write_tensors(path, {"E": preview.E}, {"kind": "preview"} | facts)


def read_preview(path: Path, unembedding: Unembedding) -> tuple[Tensor, dict]:
    """Components E [H, w - 1] of a preview, and the facts of its check: width, tokens, agreement, check.

    Raises:
        OnejumpError: the file is missing, damaged, no preview, or of another unembedding.
    """
    file = open_fitted(path, unembedding, "preview")
    return file.tensors()["E"], {name: file.value(name) for name in FACTS}


def with_shortlist(preview: Tensor, whole: Tensor, tokens: int) -> Tensor:
    """The preview's logits [n, V], which are overwritten, with the whole check's for so many tokens that lead."""
    leading = preview.topk(tokens, 1, sorted=False).indices
    return preview.scatter_(1, leading, whole.gather(1, leading))


def shortest(preview: Tensor, whole: Tensor) -> Tensor:
    """The least tokens with which a check makes the whole one's prediction, from both's logits [n, V]: [n].

    With so many, the whole check's token is on the shortlist, and no token off it has a larger logit in the preview.
    """
    logit, token = whole.max(1, keepdim=True)
    own = preview.gather(1, token)
    # A token whose preview is above its logit counts itself. Sums of booleans would be of int64, twice as wide.
    ahead = torch.gt(preview, torch.minimum(own, logit), out=torch.empty_like(preview)).sum(1)
    return ahead.long() + (own <= logit)[:, 0]


def _agreement(
    split: Activations, unembedding: Unembedding, jump: PreviewedJump, checks: Sequence[Check], device: torch.device
) -> Tensor:
    """The share of rows on which each check makes the whole one's prediction: [check, level] float64."""
    hits = torch.zeros(len(checks), split.n_blocks, dtype=torch.float64)
    widths = sorted({check.width for check in checks})
    for _, _, inputs in chunks(split, unembedding, device, "choose the shortlist"):
        for level, x in enumerate(inputs):
            whole = next(logits := jump.logits(x, level, widths))
            least = {width: shortest(preview, whole) for width, preview in zip(widths, logits, strict=True)}
            hits[:, level] += torch.stack([(least[check.width] <= check.tokens).sum() for check in checks]).cpu()
    return hits / len(split)


def _evaluate(
    split: Activations, unembedding: Unembedding, jump: PreviewedJump, check: Check, device: torch.device
) -> tuple[pa.Table, float]:
    """The evaluation of one check, and the share of rows on which it makes the whole one's prediction."""
    results, hits = [{METHOD: torch.empty(len(METRICS), len(split))} for _ in range(split.n_blocks)], 0
    for rows, full, inputs in chunks(split, unembedding, device, "evaluate the shortlist"):
        for level, x in enumerate(inputs):
            whole, preview = jump.logits(x, level, [check.width])
            hits += int((shortest(preview, whole) <= check.tokens).sum())
            logits = unembedding.finish(with_shortlist(preview, whole, check.tokens))
            results[level][METHOD][:, rows] = metrics_of(logits, full)
    return evaluation_table(results, split.sentence_ids), hits / (len(split) * split.n_blocks)
