"""Generation with early exits, as a decoding method of Transformers.

The loops are Transformers' own, and so are logits processors, stopping criteria, sampling and speculative sampling.
They run a shallow copy of the model whose `forward` exits early, or verifies what first blocks and jump have drafted.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer
from transformers.generation import (
    BaseStreamer,
    CandidateGenerator,
    GenerationMode,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from onejump.files.atomic import OnejumpError
from onejump.models.anatomy import Anatomy, probe_ids, relative_difference, tolerance_of
from onejump.models.segments import CACHE, Segments
from onejump.models.sources import first_sentence

Exit = Callable[[Tensor, int], Tensor]  # from hidden states [B, H] and their level to logits [B, V] float32
DYNAMIC, STATIC = (DynamicLayer, DynamicSlidingWindowLayer), (StaticLayer, StaticSlidingWindowLayer)
INPUTS = {"attention_mask", "position_ids", CACHE, "use_cache", "logits_to_keep"}
REFUSED = ("output_hidden_states", "output_attentions", "prefill_chunk_size")  # keys of a GenerationConfig


def generate_early(
    anatomy: Anatomy,
    exit_logits: Exit,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    levels: Sequence[int],
    confidence: float | None,
    draft_tokens: int | None,
    streamer: BaseStreamer | None = None,
    **inputs,
):
    """What `PublishedJump.generate` returns, with the errors that it raises.

    Args:
        anatomy: of the model.
        exit_logits: the jump.
        input_ids: prompts [B, P].
        logits_processor: as Transformers prepares it.
        stopping_criteria: likewise.
        generation_config: likewise.
        levels: to exit at, ascending.
        confidence: to exit or draft with; or None.
        draft_tokens: most tokens of a draft; or None for exits.
        streamer: given each token; or None.
        **inputs: of the model, with an empty cache.
    """
    model, K, cache = anatomy.model, len(anatomy.blocks), inputs.get(CACHE)
    _require_supported(generation_config, inputs)
    _require_cache(cache, K)
    if draft_tokens is not None:
        _require_drafts(len(input_ids), cache)
    generation_config.disable_compile = True
    early, bounds = copy.copy(model), [0, *levels]
    if confidence is not None or draft_tokens is not None:
        bounds.append(K)
    passed = {name: value for name, value in inputs.items() if name not in (CACHE, "use_cache")}
    loop = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria, "streamer": streamer}
    with anatomy.passes() as begin:
        texts = Segments(anatomy, begin, cache, bounds, **passed)
        if draft_tokens is None:
            ends = [one.eos_token_id for one in stopping_criteria if hasattr(one, "eos_token_id")]
            early.forward = _Exits(texts, exit_logits, levels, confidence, ends)
            decode = type(model)._sample
        else:
            drafts = _Drafts(
                texts, exit_logits, levels[0], confidence, draft_tokens, generation_config, logits_processor
            )
            early.forward, early._get_candidate_generator = drafts.verify, lambda **_: drafts
            decode = type(model)._assisted_decoding
        found = decode(early, input_ids, generation_config=generation_config, **loop, **inputs)
    if generation_config.return_dict_in_generate:
        found[CACHE], found["cost"] = None, texts.cost
    return found


def generate_by(
    location: str | None, model, streamer: BaseStreamer | None = None, revision: str | None = None, **arguments
):
    """What `custom_generate/generate.py` of a published jump does: `model.generate` with the jump at a location.

    Raises:
        OnejumpError: as `PublishedJump.from_pretrained`, `attach` and `generate`.
    """
    from onejump.sharing.published import PublishedJump

    if location is None:
        raise OnejumpError("the jump was published as a folder; name it once more, as jump=FOLDER_OR_ID")
    if arguments.get("assistant_model") is not None:
        raise OnejumpError("early exits do not work with assistant_model; leave that out")
    known, jump = vars(model).get("_onejump", (None, None))
    if known != (location, revision):
        jump = PublishedJump.from_pretrained(location, revision).attach(model)
        model._onejump = (location, revision), jump  # the proof that it is the base model takes a second
    decode = partial(jump.generate, streamer=streamer)  # Transformers itself hands no streamer to a callable
    given = {name: value for name, value in arguments.items() if value is not None}
    return type(model).generate(model, streamer=streamer, custom_generate=decode, **given)


class _Exits:
    """The `forward` of a model that leaves each text at the first level where the jump is confident enough."""

    def __init__(
        self,
        texts: Segments,
        exit_logits: Exit,
        levels: Sequence[int],
        confidence: float | None,
        ends: Sequence[Tensor],
    ) -> None:
        """Exit at one of `levels`, in order; without a `confidence`, at the first. One of `ends` ends a text."""
        self._texts, self._exit_logits, self._levels, self._confidence = texts, exit_logits, levels, confidence
        self._ends, self._ended = ends, False

    def __call__(self, input_ids: Tensor, **_) -> CausalLMOutputWithPast:
        """Logits [B, 1, V] after tokens [B, n], which come after all given before."""
        texts, chosen = self._texts, None
        if texts.tokens:  # a prompt may end as a text does
            for end in self._ends:
                self._ended = self._ended | torch.isin(input_ids[:, -1], end.to(input_ids.device))
        texts.add(input_ids)
        staying = ~(torch.zeros_like(input_ids[:, -1], dtype=torch.bool) | self._ended)
        for number, level in enumerate(self._levels):
            logits = self._exit_logits(texts.run(number)[:, -1], level)
            staying = staying.to(logits.device)
            chosen = logits if chosen is None else torch.where(staying[:, None], logits, chosen)
            leaving = staying
            if self._confidence is not None:
                leaving = staying & (_confidence(logits) >= self._confidence)
            self._count(level, leaving)
            staying = staying & ~leaving
            if not staying.any():
                break
        else:
            full = texts.run(len(self._levels))[:, -1].to(chosen.device, torch.float32)
            chosen = torch.where(staying[:, None], full, chosen)
            self._count(texts.levels, staying)
        return CausalLMOutputWithPast(logits=chosen[:, None])

    def _count(self, level: int, leaving: Tensor) -> None:
        exits = self._texts.cost.exits
        exits[level] = exits.get(level, 0) + int(leaving.sum())


class _Drafts(CandidateGenerator):
    """Drafts that the jump makes behind a model's first blocks, and their verification by the others."""

    def __init__(
        self,
        texts: Segments,
        exit_logits: Exit,
        level: int,
        confidence: float | None,
        most: int,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList,
    ) -> None:
        """Draft at most so many tokens at a level, while the jump has the `confidence`, if one is asked for."""
        self._texts, self._exit_logits, self._level, self._confidence = texts, exit_logits, level, confidence
        self._most, self._config, self._process, self._drafted = most, generation_config, logits_processor, 0

    def get_candidates(self, input_ids: Tensor, **_) -> tuple[Tensor, Tensor | None]:
        """The text [1, T] with a draft of n tokens, [1, T + n], and the draft's scores [1, n, V] for sampling."""
        texts, length, scores = self._texts, input_ids.shape[1], []
        texts.keep(length - 1)
        texts.add(input_ids[:, texts.tokens :])
        ends = self._config._eos_token_tensor
        for _ in range(min(self._most, self._config.max_length - length - 1)):
            logits = self._exit_logits(texts.run(0)[:, -1], self._level).to(input_ids.device)
            if self._confidence is not None and _confidence(logits) < self._confidence:
                break
            scores.append(self._process(input_ids, logits))
            token = scores[-1].argmax(-1, keepdim=True)
            if self._config.do_sample:
                token = torch.multinomial(scores[-1].softmax(-1), 1)
            input_ids = torch.cat([input_ids, token], 1)
            texts.add(token)
            if ends is not None and torch.isin(token, ends.to(token.device)).any():
                break
        self._drafted = len(scores)
        return input_ids, torch.stack(scores, 1) if scores and self._config.do_sample else None

    def verify(self, **inputs) -> CausalLMOutputWithPast:
        """The full model's logits [1, n + 1, V] for the draft and the token after it."""
        texts = self._texts
        if texts.seen[0] < texts.tokens:  # the last token of the draft
            texts.run(0)
        logits = texts.run(1, self._drafted + 1)
        return CausalLMOutputWithPast(logits=logits, **{CACHE: inputs[CACHE]})

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Count what was accepted."""
        self._texts.cost.drafted += self._drafted
        self._texts.cost.accepted += int(num_matches)


def _confidence(logits: Tensor) -> Tensor:
    """The largest probability: [B, V] -> [B]."""
    return logits.softmax(-1).amax(-1)


def require_resumable(anatomy: Anatomy) -> None:
    """Prove that a model's blocks can lag behind one another: their logits are those of a plain pass.

    Raises:
        OnejumpError: they are not, or the model's cache is not one layer a block.
    """
    model, K = anatomy.model, len(anatomy.blocks)
    ids, cache = probe_ids(model)[:1], DynamicCache(config=model.config)
    _require_cache(cache, K)
    about = f"{type(model).__name__} cannot generate with early exits: when its blocks catch up on tokens, "
    with torch.no_grad(), anatomy.passes() as begin:
        expected = model(ids, use_cache=False).logits
        texts = Segments(anatomy, begin, cache, [0, K // 2, K])
        try:
            for part in ids.split([ids.shape[1] - 2, 1, 1], 1):
                texts.add(part)
                texts.run(0)
            found = texts.run(1, ids.shape[1])
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:  # models keep their caches as they like
            raise OnejumpError(f"{about}it fails ({first_sentence(error)})") from error
    difference = relative_difference(found, expected)
    if not difference <= tolerance_of(model):  # NaN too
        raise OnejumpError(f"{about}its logits are not those of a plain pass (relative difference {difference:.1e})")


def require_choices(levels: Sequence[int], confidence: float | None, draft_tokens: int | None, known: range) -> None:
    """Refuse choices that say nothing.

    Raises:
        OnejumpError: levels that there are not, several without a confidence, or numbers out of range.
    """
    if not levels or any(level not in known for level in levels) or sorted(set(levels)) != list(levels):
        raise OnejumpError(
            f"exit_levels is {list(levels)}, expected one of {known[0]}..{known[-1]}, or several, ascending"
        )
    if len(levels) > 1 and confidence is draft_tokens is None:
        raise OnejumpError(f"exit_levels is {list(levels)}; give a confidence to choose among them, or one level")
    if len(levels) > 1 and draft_tokens is not None:
        raise OnejumpError(f"exit_levels is {list(levels)}; drafts are made at one level")
    if confidence is not None and not 0 < confidence <= 1:
        raise OnejumpError(f"confidence is {confidence}, expected a probability above 0, up to 1")
    if draft_tokens is not None and draft_tokens < 1:
        raise OnejumpError(f"draft_tokens is {draft_tokens}, expected at least 1")


def _require_supported(generation_config: GenerationConfig, inputs: Mapping) -> None:
    mode = generation_config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise OnejumpError(
            f"early exits do not work with {mode.value.replace('_', ' ')}; use greedy decoding or sampling"
        )
    asked = {name for name in REFUSED if getattr(generation_config, name, None)}
    asked |= {name for name, value in inputs.items() if value is not None and name not in INPUTS}
    if asked:
        raise OnejumpError(f"early exits do not work with {', '.join(sorted(asked))}; leave that out")


def _require_cache(cache, blocks: int) -> None:
    if cache is None:
        raise OnejumpError("early exits need a cache of keys and values; do not set use_cache to False")
    if getattr(cache, "_is_user_defined", False):
        raise OnejumpError(f"early exits do not work with {CACHE}, whose levels then hold different tokens")
    kinds = {type(layer).__name__ for layer in cache.layers if type(layer) not in DYNAMIC + STATIC}
    if kinds or len(cache.layers) != blocks or cache.offloading:
        found = f"of {' and '.join(sorted(kinds))}" if kinds else f"of {len(cache.layers)} layers"
        found = "that is offloaded" if cache.offloading else found
        raise OnejumpError(
            f"early exits do not work with a cache {found}; expected one, dynamic or static, of keys and values in "
            f"{blocks} layers, one a block"
        )


def _require_drafts(texts: int, cache) -> None:
    if texts > 1:
        raise OnejumpError(
            f"drafts work for one text at a time, found {texts}; generate one by one, or leave draft_tokens"
        )
    if any(type(layer) in STATIC for layer in cache.layers):
        raise OnejumpError(
            "drafts do not work with a static cache, which cannot forget; leave cache_implementation out"
        )
