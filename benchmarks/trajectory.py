"""Logits at every level of one text, from a forward pass and a jump, compared with the same by the full head.

- ours: a pass that keeps h^0 .. h^K, and `jump.logits` at all levels, by the joint jump of the variant `paper`, whose
  heads are fused;
- norm, full head: the same pass, and the jump's output [T, H] through final norm and output head at all levels;
- plain forward: the model's own logits of the text, and no other level;
- gated: ours with the one jump, whose gates need the full width at each level;
- limit: the products of rank r and of the forward pass alone.

Ours and the full head must give the same logits, to 1e-4 of the largest. `make demo` has to run first.

    python benchmarks/trajectory.py
"""

from argparse import Namespace
from collections.abc import Callable

import measure
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import onejump
from onejump.files.tables import read_table
from onejump.models.anatomy import Anatomy
from onejump.models.unembedding import extract_unembedding

FULL_HEAD, PLAIN, GATED = "norm, full head", "plain forward", "gated"


def states_of(anatomy: Anatomy, ids: Tensor) -> list[Tensor]:
    """h^0 .. h^K [T, H] of a text [1, T]."""
    states = {}
    anatomy.run(ids, lambda level, h: states.__setitem__(level, h[0]))
    return [states[level] for level in sorted(states)]


def tables(given: Namespace) -> dict[str, list[measure.Row]]:
    """The table, for the first tokens of the study's text."""
    tokenizer, model = (kind.from_pretrained(given.model) for kind in (AutoTokenizer, AutoModelForCausalLM))
    texts = read_table(given.results / "corpus/seed-0/sentences.parquet", ["text"])["text"].to_pylist()
    ids = tokenizer(" ".join(texts[: given.tokens]), return_tensors="pt")["input_ids"][:, : given.tokens]
    unembedding, anatomy = extract_unembedding(model.eval())
    jump, gated = (
        onejump.Jump.from_pretrained(measure.published(given.results, name, given.model, given.folder)).attach(model)
        for name in ("paper", "one-jump")
    )
    (folded,) = jump._jumps

    def by(logits: Callable[[Tensor, int], Tensor]) -> Callable[[int], list[Tensor]]:
        return lambda _: [logits(h, level) for level, h in enumerate(states_of(anatomy, ids)[:-1])]

    def least(_: int) -> None:
        states_of(anatomy, ids)
        for _ in jump.levels:
            z @ M

    z, M = torch.randn(given.tokens, len(folded.q)), torch.randn(len(folded.q), len(unembedding.weight))
    with torch.inference_mode():
        ways = {
            measure.OURS: by(jump.logits),
            FULL_HEAD: by(lambda h, level: unembedding.logits(folded(h, level) @ folded.B)),
            PLAIN: lambda _: model(ids).logits,
            GATED: by(gated.logits),
            measure.LIMIT: least,
        }
        turns = measure.take_turns(ways, given.rounds)
    for pair in zip(turns.results[measure.OURS], turns.results[FULL_HEAD], strict=True):
        measure.require_close("logits", *pair, 1e-4)
    size = f"{given.tokens} tokens, {len(jump.levels)} levels"
    return {"trajectory": measure.rows_of(turns, size, "forward pass, products of rank r")}


if __name__ == "__main__":
    measure.run(
        __doc__,
        tables,
        results=(measure.embedded_study()[0], "folder of a study of the model"),
        model=(str(measure.embedded_study()[1]), "folder of the model"),
        tokens=(64, "tokens of the text"),
        rounds=(9, "rounds"),
    )
