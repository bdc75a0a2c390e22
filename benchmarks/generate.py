"""Text with early exits, greedy, by the one jump of the demo: what is gained over plain decoding, and what is lost.

Each way continues the same beginnings of the demo's test sentences, one at a time, with no stop token. All ways take
turns at each beginning, and the *ratio* is plain decoding's time over the way's.

- greedy: plain decoding;
- fixed exit: what the jump predicts at a level;
- confident exit: the same where its largest probability is at least 0.9, and the full model elsewhere;
- drafts of the jump, which the remaining blocks verify: level, length and confidence were fastest on other beginnings.
  They are made by its shortlist;
- the same drafts by the whole output head;
- early exit of Transformers: its `assistant_early_exit` at the same level, with the same length and confidence. It
  drafts by identity, since it is made for models that were trained to exit, and verifies with all blocks;
- prompt lookup: drafts copied from the text so far, of the length that was fastest on other beginnings.

*Calls* is how often a block is called for a new token, whatever the number of tokens in the call; *blocks* how many
blocks a token goes through, the beginning's included. *Same* is the share of texts that are plain decoding's, token by
token; *agreement* the share of tokens that are the full model's most probable after those before, and *perplexity* the
full model's on them; *acceptance* the share of drafted tokens that are kept.

    python benchmarks/generate.py [--jump FOLDER --model FOLDER]
"""

import itertools
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import measure
import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.candidate_generator import AssistedCandidateGenerator, PromptLookupCandidateGenerator
from transformers.utils import logging

import onejump
from onejump.files.atomic import OnejumpError
from onejump.files.tables import read_table
from onejump.models.anatomy import find_anatomy
from onejump.models.passes import first_tensor

BEGINNING, SURE = 16, 0.9  # tokens of a beginning, and the confidence of a confident exit
# What is tried; levels as shares of K.
LEVELS, LENGTHS, CONFIDENCES, LOOKUPS = (0.6, 0.7, 0.8, 0.9), (1, 2, 4), (None, 0.4, 0.7), (2, 4, 10)
TRANSFORMERS = (AssistedCandidateGenerator, PromptLookupCandidateGenerator)


@dataclass(frozen=True)
class Way:
    """How to write.

    Attributes:
        options: of `model.generate`.
        config: keys of the model's own generation_config, where Transformers looks for an assistant's.
    """

    options: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)

    @property
    def choices(self) -> str:
        """Its options in words."""
        shown = (self.options | self.config).items()
        return ", ".join(f"{key} {value}" for key, value in shown if value is not None and key != "custom_generate")


@dataclass
class Written:
    """What a way has written, and what that took.

    Attributes:
        texts: the tokens of each, [P + T].
        calls: of blocks.
        tokens: that went through blocks, summed over blocks.
        drafted: tokens.
        accepted: tokens among them.
    """

    texts: list[Tensor] = field(default_factory=list)
    calls: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Row:
    """One line of the table; the text above says what the columns are."""

    way: str
    choices: str
    texts: int
    tokens_per_second: float
    ratio: float
    lowest: float
    highest: float
    calls: float
    blocks: float
    same: float
    agreement: float
    perplexity: float
    acceptance: float | str


@contextmanager
def counted(blocks: Sequence[nn.Module], written: Written) -> Iterator[None]:
    """Count what blocks run, except those that a pass skips, and what becomes of Transformers' drafts."""

    def ran(block: nn.Module, args: tuple, output: object) -> None:
        if "forward" not in vars(block):
            written.calls += 1
            written.tokens += first_tensor(output).shape[1]

    def kept(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:  # in place of changing the length
        written.drafted += scores.shape[1] - 1
        written.accepted += int(num_matches)

    hooks = [block.register_forward_hook(ran) for block in blocks]
    patches = [patch.object(kind, "update_candidate_strategy", kept) for kind in TRANSFORMERS]
    try:
        with patches[0], patches[1]:
            yield
    finally:
        for hook in hooks:
            hook.remove()


def writer(model: nn.Module, blocks: Sequence[nn.Module], prompts: Sequence[Tensor], tokens: int, way: Way) -> Callable:
    """What takes turns: it continues the prompt [P] of its turn by so many tokens, and returns all it has written."""
    written = Written()

    def write(turn: int) -> Written:
        model.generation_config = GenerationConfig(pad_token_id=0, **way.config)
        given = {"attention_mask": torch.ones_like(prompts[turn])[None], "return_dict_in_generate": True}
        with counted(blocks, written):
            found = model.generate(prompts[turn][None], do_sample=False, max_new_tokens=tokens, **given, **way.options)
        written.texts.append(found.sequences[0])
        if cost := getattr(found, "cost", None):
            written.drafted, written.accepted = written.drafted + cost.drafted, written.accepted + cost.accepted
        return written

    return write


def ways_at(jump: onejump.Jump, draft: Way, lookup: Way) -> dict[str, Way]:
    """All ways, at the level and with the length and confidence of the best drafts."""
    early, level = {"custom_generate": jump.generate}, draft.options["exit_levels"]
    assistant = {"num_assistant_tokens": draft.options["draft_tokens"], "num_assistant_tokens_schedule": "constant"}
    assistant["assistant_confidence_threshold"] = draft.options["confidence"] or 0.0
    return {
        "greedy": Way(),
        "fixed exit": Way(early | {"exit_levels": level}),
        "confident exit": Way(early | {"exit_levels": level, "confidence": SURE}),
        "drafts of the jump": draft,
        "by the whole head": Way(draft.options | {"shortlist": False}),
        "early exit of Transformers": Way({"assistant_early_exit": level}, assistant),
        "prompt lookup": lookup,
    }


def fastest(
    ways: Sequence[Way], model: nn.Module, blocks: Sequence[nn.Module], prompts: Sequence[Tensor], tokens: int
) -> Way:
    """The way that takes the least time in all."""
    actions = {str(number): writer(model, blocks, prompts, tokens, way) for number, way in enumerate(ways)}
    seconds = measure.take_turns(actions, len(prompts)).seconds
    return ways[int(min(seconds, key=lambda name: seconds[name].sum()))]


@torch.no_grad()
def judged(model: nn.Module, texts: Sequence[Tensor], first: int) -> tuple[float, float]:
    """Agreement with the full model's most probable tokens from position `first` on, and the perplexity there."""
    agreed, surprisal = [], []
    for text in texts:
        log_p = model(text[None], use_cache=False).logits[0, first - 1 : -1].float().log_softmax(-1)
        agreed.append((log_p.argmax(-1) == text[first:]).float())
        surprisal.append(-log_p.gather(1, text[first:, None]))
    return float(torch.cat(agreed).mean()), float(torch.cat(surprisal).mean().exp())


def compare(
    model: nn.Module, jump: onejump.Jump, tuning: Sequence[Tensor], prompts: Sequence[Tensor], tokens: int
) -> list[Row]:
    """A row for each way.

    Args:
        model: the jump's, which is attached.
        jump: the jump.
        tuning: token ids [BEGINNING] of beginnings to choose by.
        prompts: of those to measure with.
        tokens: to write.
    """
    blocks, early = find_anatomy(model).blocks, {"custom_generate": jump.generate}
    levels = sorted({int(share * len(blocks)) for share in LEVELS})
    names = ("exit_levels", "draft_tokens", "confidence")
    drafts = [
        Way(early | dict(zip(names, one, strict=True))) for one in itertools.product(levels, LENGTHS, CONFIDENCES)
    ]
    lookups = [Way({"prompt_lookup_num_tokens": length}) for length in LOOKUPS]
    draft, lookup = (fastest(some, model, blocks, tuning, tokens) for some in (drafts, lookups))
    ways = ways_at(jump, draft, lookup)
    turns = measure.take_turns(
        {name: writer(model, blocks, prompts, tokens, way) for name, way in ways.items()}, len(prompts)
    )
    return [row(name, way, turns, model, tokens) for name, way in ways.items()]


def row(name: str, way: Way, turns: measure.Turns, model: nn.Module, tokens: int) -> Row:
    """A way's line, from the turns of all."""
    written, plain, n = turns.results[name], turns.results["greedy"], len(turns.seconds[name]) * tokens
    ratios = turns.seconds["greedy"] / turns.seconds[name]
    same = np.mean([torch.equal(*pair) for pair in zip(written.texts, plain.texts, strict=True)])
    passed = n + sum(len(text) - tokens - 1 for text in written.texts)  # the last token is not run
    acceptance = written.accepted / written.drafted if written.drafted else ""
    times = (n / turns.seconds[name].sum(), np.median(ratios), ratios.min(), ratios.max(), written.calls / n)
    judgement = judged(model, written.texts, len(written.texts[0]) - tokens)
    numbers = map(float, (*times, written.tokens / passed, same))
    return Row(name, way.choices, len(written.texts), *numbers, *judgement, acceptance)


def beginnings(results: Path, tokenizer, n: int) -> list[Tensor]:
    """The first tokens of n test sentences, [BEGINNING] each.

    Raises:
        OnejumpError: there are not so many.
    """
    path = results / "corpus" / "seed-0" / "sentences.parquet"
    table = read_table(path, ["split", "text"]).to_pylist()
    ids = (tokenizer(row["text"])["input_ids"] for row in table if row["split"] == "test")
    found = list(itertools.islice((torch.tensor(one[:BEGINNING]) for one in ids if len(one) >= BEGINNING), n))
    if len(found) < n:
        raise OnejumpError(
            f"{path}: has {len(found)} test sentences of {BEGINNING} tokens, expected {n}; ask for fewer"
        )
    return found


def tables(given: Namespace) -> dict[str, list[Row]]:
    """The table of all ways."""
    logging.set_verbosity_error()
    tokenizer, model = (kind.from_pretrained(given.model) for kind in (AutoTokenizer, AutoModelForCausalLM))
    folder = given.jump or measure.published(given.results, "one-jump", given.model, given.folder)
    jump = onejump.Jump.from_pretrained(folder).attach(model.eval())
    prompts = beginnings(given.results, tokenizer, given.tuning + given.prompts)
    return {"generate": compare(model, jump, prompts[: given.tuning], prompts[given.tuning :], given.tokens)}


if __name__ == "__main__":
    measure.run(
        __doc__,
        tables,
        threads=2,
        prompts=(50, "beginnings to measure with"),
        tuning=(3, "other beginnings, to choose level, length and confidence by"),
        tokens=(100, "tokens to write"),
        results=(measure.embedded_study()[0], "folder of a study of the model"),
        model=(measure.embedded_study()[1], "folder of the model"),
        jump=("", "folder of a published jump; by default the study's variant one-jump"),
    )
