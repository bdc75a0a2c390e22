"""Generation with early exits: against loops without a cache that run the whole text anew for each token."""

import functools
import subprocess
import sys
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from handmade_jump import handmade_jump
from levels_by_hand import random_ids
from refusals import error_of
from tiny_models import FAMILIES, HIDDEN_SIZE, N_BLOCKS, model_from
from transformers import DynamicCache
from transformers.generation import BaseStreamer

import onejump
from onejump.exits.shortlist import ShortlistedJump
from onejump.models.segments import CACHE, Segments
from onejump.sharing.folder import GENERATE

PROMPT, NEW, WINDOW = 5, 24, 8
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": WINDOW}
# With tied embeddings the tiny Gemma says one token for ever, and no mistake would show.
MODELS = {"llama": {}, "qwen2": {}, "gemma3": SLIDING | {"tie_word_embeddings": False}}
GREEDY = {"do_sample": False, "max_new_tokens": NEW}


@functools.cache
def loaded(family: str):
    """A model that ends no text, and a jump of it."""
    config = FAMILIES[family]
    model = model_from(type(config)(**config.to_dict() | MODELS[family]))
    model.generation_config.eos_token_id = None
    return model, handmade_jump(model)


def generated(model, jump, ids, **options):
    return model.generate(ids, custom_generate=jump.generate, **GREEDY | options)


@torch.no_grad()
def naive(model, jump, ids, levels, confidence=None, choose=torch.argmax, new=NEW):
    """Tokens of one text by the rule, and the level that each was read at."""
    left = []
    for _ in range(new):
        found = model(ids, output_hidden_states=True, use_cache=False)
        logits, exited = found.logits[0, -1], N_BLOCKS
        for level in levels:
            exit_logits = jump.logits(found.hidden_states[level][0, -1], level)
            if confidence is None or exit_logits.softmax(-1).max() >= confidence:
                logits, exited = exit_logits, level
                break
        ids = torch.cat([ids, choose(logits).view(1, 1)], 1)
        left.append(exited)
    return ids, left


# ---------------------------------------------------------------------------------------------------------- speculation


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("draft_tokens", [1, 5])
def test_drafts_do_not_change_the_text(family, draft_tokens):
    model, jump = loaded(family)
    drafted = accepted = 0
    for seed in range(3):
        ids = random_ids((1, PROMPT), seed)
        expected = model.generate(ids, **GREEDY)
        assert len(set(expected[0].tolist())) > PROMPT + 5
        for level in (1, 2):
            found = generated(
                model, jump, ids, exit_levels=level, draft_tokens=draft_tokens, return_dict_in_generate=True
            )
            assert torch.equal(found.sequences, expected)
            drafted, accepted = drafted + found.cost.drafted, accepted + found.cost.accepted
    assert 0.02 * drafted < accepted < 0.9 * drafted


@pytest.mark.parametrize("family", MODELS)
def test_an_unsure_draft_ends_early(family):
    model, jump = loaded(family)
    ids, costs = random_ids((1, PROMPT)), []
    for confidence in (None, 0.2, 1.0):
        found = generated(
            model, jump, ids, exit_levels=2, draft_tokens=5, confidence=confidence, return_dict_in_generate=True
        )
        assert torch.equal(found.sequences, model.generate(ids, **GREEDY))
        costs.append(found.cost)
    assert costs[0].drafted > costs[1].drafted > costs[2].drafted


def test_no_block_runs_twice_on_what_was_accepted():
    model, jump = loaded("llama")
    found = generated(model, jump, random_ids((1, PROMPT)), exit_levels=2, draft_tokens=3, return_dict_in_generate=True)
    rejected = found.cost.drafted - found.cost.accepted
    assert found.cost.block_tokens == N_BLOCKS * (NEW - 1 + rejected)


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 3}, {"min_new_tokens": 20}])
def test_rules_of_transformers_hold_for_drafts(options):
    model, jump = loaded("llama")
    ids, rules = random_ids((1, PROMPT)), {"eos_token_id": 42, "pad_token_id": 3} | options
    expected = model.generate(ids, **GREEDY | rules)
    assert torch.equal(generated(model, jump, ids, exit_levels=1, draft_tokens=3, **rules), expected)


def test_sampled_drafts_have_the_models_distribution():
    model, jump = loaded("llama")
    ids, rules = random_ids((1, PROMPT)), {"do_sample": True, "top_k": 2, "max_new_tokens": 3, "temperature": 2.0}
    expected, n = Counter(), 200
    with torch.no_grad():  # the exact probability of each of the continuations
        texts = {tuple(ids[0].tolist()): 1.0}
        for _ in range(rules["max_new_tokens"]):
            longer = {}
            for text, p in texts.items():
                top = (model(torch.tensor([text])).logits[0, -1] / rules["temperature"]).topk(2)
                for token, q in zip(top.indices.tolist(), top.values.softmax(0).tolist(), strict=True):
                    longer[(*text, token)] = p * q
            texts = longer
    expected.update(texts)
    torch.manual_seed(0)
    drawn = Counter(
        tuple(generated(model, jump, ids, exit_levels=1, draft_tokens=2, **rules)[0].tolist()) for _ in range(n)
    )
    assert drawn.keys() <= expected.keys()
    for text, p in expected.items():
        assert abs(drawn[text] / n - p) < 4 * (p * (1 - p) / n) ** 0.5 + 1 / n
    assert max(expected.values()) < 0.8


@pytest.fixture
def shortlisted(study, folder, monkeypatch):
    """A model, a jump of it, and the levels at which the jump was asked by its shortlist."""
    model, levels, whole = study.load_model(), [], ShortlistedJump.logits

    def counted(jump, x, level):
        levels.append(level)
        return whole(jump, x, level)

    monkeypatch.setattr(ShortlistedJump, "logits", counted)
    return model, onejump.Jump.from_pretrained(folder).attach(model), levels


@pytest.mark.parametrize(("shortlist", "by_shortlist"), [(None, True), (True, True), (False, False)])
def test_drafts_are_by_the_shortlist_where_there_is_one(shortlisted, shortlist, by_shortlist):
    model, jump, levels = shortlisted
    ids, options = random_ids((1, PROMPT)), {"exit_levels": 2, "draft_tokens": 3, "shortlist": shortlist}
    found = generated(model, jump, ids, **options, return_dict_in_generate=True)
    assert torch.equal(found.sequences, model.generate(ids, **GREEDY))
    assert levels == [2] * found.cost.drafted * by_shortlist and found.cost.accepted


def test_exits_are_by_the_shortlist_where_it_is_asked_for(shortlisted):
    model, jump, levels = shortlisted
    ids = random_ids((1, PROMPT), seed=1)
    generated(model, jump, ids, exit_levels=1)
    assert levels == []
    by_shortlist = SimpleNamespace(logits=partial(jump.logits, shortlist=True))
    expected, _ = naive(model, by_shortlist, ids, [1])
    levels.clear()
    assert torch.equal(generated(model, jump, ids, exit_levels=1, shortlist=True), expected)
    assert levels == [1] * NEW


# ---------------------------------------------------------------------------------------------------------------- exits


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("level", range(N_BLOCKS))
def test_a_fixed_exit_is_what_the_naive_loop_gives(family, level):
    model, jump = loaded(family)
    ids = random_ids((1, PROMPT), seed=1)
    found = generated(model, jump, ids, exit_levels=level, return_dict_in_generate=True)
    assert torch.equal(found.sequences, naive(model, jump, ids, [level])[0])
    assert (found.cost.block_calls, found.cost.block_tokens) == (NEW * level, (NEW - 1) * level)
    assert found.cost.exits == {level: NEW}


def sure_at(model, jump, ids, levels) -> float:
    """A confidence that some tokens have at each level."""
    with torch.no_grad():
        states = model(naive(model, jump, ids, [N_BLOCKS - 1])[0], output_hidden_states=True).hidden_states
    return min(float(jump.logits(states[k][0, PROMPT:], k).softmax(-1).amax(-1).quantile(0.7)) for k in levels)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("levels", [[1], [0, 2], [1, 2]])
def test_a_confident_exit_is_what_the_naive_loop_gives(family, levels):
    model, jump = loaded(family)
    left = []
    for seed in range(3):
        ids = random_ids((1, PROMPT), seed)
        confidence = sure_at(model, jump, ids, levels)
        expected, exits = naive(model, jump, ids, levels, confidence)
        found = generated(model, jump, ids, exit_levels=levels, confidence=confidence, return_dict_in_generate=True)
        assert torch.equal(found.sequences, expected)
        assert {level: n for level, n in found.cost.exits.items() if n} == Counter(exits)
        assert found.cost.block_calls == sum(exits)
        # A token goes as deep as itself or any later one; the last one predicts, but is never run.
        assert found.cost.block_tokens == sum(max(exits[token:]) for token in range(1, NEW))
        left += exits
    assert len(set(left)) > 1


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("rule", [{"exit_levels": 2}, {"exit_levels": [1, 2], "confidence": 0.6}])
def test_texts_of_a_padded_batch_are_those_of_each_alone(family, cache, rule):
    model, jump = loaded(family)
    prompts = [random_ids((1, length), seed)[0] for seed, length in enumerate((3, 12, 6))]
    longest = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(one, (longest - len(one), 0), value=3) for one in prompts])
    mask = torch.stack([(torch.arange(longest) >= longest - len(one)).long() for one in prompts])
    found = generated(model, jump, ids, attention_mask=mask, cache_implementation=cache, pad_token_id=3, **rule)
    for row, prompt in zip(found, prompts, strict=True):
        levels = [2] if "confidence" not in rule else rule["exit_levels"]
        expected, _ = naive(model, jump, prompt[None], levels, rule.get("confidence"))
        assert row[longest:].tolist() == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("rule", [{"exit_levels": 2}, {"exit_levels": [1, 2], "confidence": 0.6}])
def test_an_ended_text_is_padded_and_asks_for_nothing_more(rule):
    model, jump = loaded("llama")
    ids = random_ids((2, PROMPT))
    levels = [2] if "confidence" not in rule else rule["exit_levels"]
    texts = [naive(model, jump, row[None], levels, rule.get("confidence"))[0][0].tolist() for row in ids]
    end = next(token for token in texts[0][PROMPT + 2 :] if token not in texts[1][PROMPT:])
    ended = texts[0].index(end, PROMPT) + 1
    found = generated(model, jump, ids, eos_token_id=end, pad_token_id=3, return_dict_in_generate=True, **rule)
    assert found.sequences[0].tolist() == texts[0][:ended] + [3] * (PROMPT + NEW - ended)
    assert found.sequences[1].tolist() == texts[1]
    assert sum(found.cost.exits.values()) == NEW + ended - PROMPT


@pytest.mark.parametrize("draft_tokens", [None, 4])
def test_a_text_ends_at_a_stop_token(draft_tokens):
    model, jump = loaded("gemma3")
    ids = random_ids((1, PROMPT))
    rule = {"exit_levels": 2, "draft_tokens": draft_tokens}
    whole = generated(model, jump, ids, **rule)[0].tolist()
    for end in dict.fromkeys(whole[PROMPT + 1 : PROMPT + 15]):
        found = generated(model, jump, ids, eos_token_id=end, pad_token_id=3, **rule)[0].tolist()
        assert found == whole[: whole.index(end, PROMPT) + 1]


def test_a_prompt_that_ends_as_texts_do_is_continued():
    model, jump = loaded("llama")
    ids = random_ids((1, PROMPT))
    end = int(ids[0, -1])
    found = generated(
        model, jump, ids, exit_levels=[1, 2], confidence=1.0, eos_token_id=end, pad_token_id=3, max_new_tokens=1
    )
    assert torch.equal(found, model.generate(ids, do_sample=False, max_new_tokens=1))


def test_sampling_draws_from_the_exits_distribution():
    model, jump = loaded("llama")
    ids = random_ids((1, PROMPT))

    def draw(logits):
        top = (logits / 1.7).topk(20)
        scores = torch.full_like(logits, -torch.inf).scatter(0, top.indices, top.values)
        return torch.multinomial(scores.softmax(-1), 1)

    torch.manual_seed(3)
    expected, _ = naive(model, jump, ids, [2], choose=draw)
    torch.manual_seed(3)
    found = generated(model, jump, ids, exit_levels=2, do_sample=True, temperature=1.7, top_k=20)
    assert torch.equal(found, expected)


def test_scores_are_returned_but_no_cache():
    model, jump = loaded("llama")
    ids = random_ids((1, PROMPT))
    found = generated(model, jump, ids, exit_levels=2, return_dict_in_generate=True, output_logits=True)
    states = model(found.sequences, output_hidden_states=True).hidden_states[2]
    expected = jump.logits(states[:, PROMPT - 1 : -1], 2)
    assert torch.allclose(torch.stack(found.logits, 1), expected, rtol=1e-4, atol=1e-4)
    assert getattr(found, CACHE) is None


def test_the_model_is_left_as_it_was():
    model, jump = loaded("llama")
    before, ids = dict(vars(model)), random_ids((1, PROMPT))
    generated(model, jump, ids, exit_levels=2, draft_tokens=2)
    generated(model, jump, ids, exit_levels=2)
    assert vars(model) == before
    assert not any(block._forward_pre_hooks or "forward" in vars(block) for block in model.model.layers)


def test_blocks_may_be_offloaded(study, folder, tmp_path):
    """Accelerate then gives blocks a `forward` of their own, on which a pass that skips them must not trample."""
    names = ["embed_tokens", *(f"layers.{k}" for k in range(3)), "norm", "rotary_emb"]
    device_map = dict.fromkeys([*(f"model.{name}" for name in names), "lm_head"], "cpu") | {"model.layers.0": "disk"}
    model, ids = study.load_model(device_map=device_map, offload_folder=tmp_path), random_ids((1, PROMPT))
    jump = onejump.Jump.from_pretrained(folder).attach(model)
    own = [vars(block).get("forward") for block in model.model.layers]
    assert any(own)
    found = generated(model, jump, ids, exit_levels=1, draft_tokens=3)
    assert torch.equal(found, study.load_model().generate(ids, **GREEDY))
    assert [vars(block).get("forward") for block in model.model.layers] == own


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exit_levels is [], expected one of 0..2, or several, ascending"),
        ({"exit_levels": 3}, "exit_levels is [3], expected one of 0..2, or several, ascending"),
        ({"exit_levels": [2, 1]}, "exit_levels is [2, 1], expected one of 0..2, or several, ascending"),
        ({"exit_levels": [1, 2]}, "exit_levels is [1, 2]; give a confidence to choose among them, or one level"),
        ({"exit_levels": [1, 2], "draft_tokens": 2}, "exit_levels is [1, 2]; drafts are made at one level"),
        ({"exit_levels": 1, "confidence": 0}, "confidence is 0, expected a probability above 0, up to 1"),
        ({"exit_levels": 1, "draft_tokens": 0}, "draft_tokens is 0, expected at least 1"),
        (
            {"exit_levels": 1, "num_beams": 2},
            "early exits do not work with beam search; use greedy decoding or sampling",
        ),
        (
            {"exit_levels": 1, "prompt_lookup_num_tokens": 2},
            "early exits do not work with assisted generation; use greedy decoding or sampling",
        ),
        (
            {"exit_levels": 1, "output_attentions": True},
            "early exits do not work with output_attentions; leave that out",
        ),
        (
            {"exit_levels": 1, "inputs_embeds": torch.zeros(1, PROMPT, HIDDEN_SIZE)},
            "early exits do not work with inputs_embeds; leave that out",
        ),
        (
            {"exit_levels": 1, "use_cache": False},
            "early exits need a cache of keys and values; do not set use_cache to False",
        ),
        (
            {"exit_levels": 1, CACHE: DynamicCache()},
            f"early exits do not work with {CACHE}, whose levels then hold different tokens",
        ),
        (
            {"exit_levels": 1, "draft_tokens": 2, "cache_implementation": "static"},
            "drafts do not work with a static cache, which cannot forget; leave cache_implementation out",
        ),
    ],
)
def test_what_does_not_work_is_refused_by_name(options, said):
    model, jump = loaded("llama")
    assert error_of(lambda: generated(model, jump, random_ids((1, PROMPT)), **options)) == said


def test_drafts_for_several_texts_are_refused():
    model, jump = loaded("llama")
    said = error_of(lambda: generated(model, jump, random_ids((2, PROMPT)), exit_levels=1, draft_tokens=2))
    assert said == "drafts work for one text at a time, found 2; generate one by one, or leave draft_tokens"


def test_another_model_is_refused(folder):
    (model, _), (_, other) = loaded("llama"), loaded("qwen2")
    said = error_of(lambda: generated(model, other, random_ids((1, PROMPT)), exit_levels=1))
    assert said == "the jump is attached to another model; call jump.attach(model) with this one first"
    alone = onejump.Jump.from_pretrained(folder)
    said = error_of(lambda: generated(model, alone, random_ids((1, PROMPT)), exit_levels=1))
    assert said.startswith("the jump has no model; ")


def test_a_model_whose_cache_is_of_another_kind_is_refused():
    from tiny_architectures import tiny_architecture

    for name, why in (
        ("mamba", "early exits do not work with a cache of LinearAttentionLayer; expected one"),
        ("openai-gpt", "cannot generate with early exits: when its blocks catch up on tokens, its logits are not"),
        ("xlstm", "cannot generate with early exits: when its blocks catch up on tokens, it fails ("),
    ):
        model = tiny_architecture(name)
        jump = handmade_jump(model)
        ids = random_ids((1, PROMPT))
        said = error_of(lambda jump=jump, model=model, ids=ids: jump.generate(model, ids, exit_levels=1))
        assert why in said


def test_wrong_masks_would_be_noticed(monkeypatch):
    """The proof is one: it fails if the rows that have waited are run in the wrong order."""
    model, _ = loaded("llama")
    jump, right = handmade_jump(model), Segments.run
    monkeypatch.setattr(Segments, "run", lambda self, *given: right(self, *given).flip(1))
    said = error_of(lambda: generated(model, jump, random_ids((1, PROMPT)), exit_levels=1))
    assert "its logits are not those of a plain pass (relative difference" in said


# ----------------------------------------------------------------------------------------- the repository's generate.py


class Kept(BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


@pytest.fixture
def door(study, folder):
    """A function that generates by the published folder, as Transformers runs it."""
    model = study.load_model()
    model.generation_config.eos_token_id = None

    def generate(ids, **options):
        given = {"trust_remote_code": True, "jump": str(folder)} | GREEDY | options
        return model.generate(ids, custom_generate=str(folder), **given)

    return model, generate


@pytest.mark.parametrize("rule", [{"exit_levels": 1}, {"exit_levels": 1, "draft_tokens": 3}])
def test_a_published_folder_generates_as_the_jump_does(door, folder, rule):
    model, generate = door
    ids, streamer = random_ids((1, PROMPT)), Kept()
    jump = onejump.Jump.from_pretrained(folder).attach(model)
    expected = generated(model, jump, ids, **rule)
    assert torch.equal(generate(ids, revision="main", **rule), expected)
    assert torch.equal(generate(ids, streamer=streamer, **rule), expected)
    assert streamer.tokens == [*expected[0].tolist(), "end"]
    streamer = Kept()
    model.generate(ids, custom_generate=partial(jump.generate, streamer=streamer), **GREEDY | rule)
    assert streamer.tokens == [*expected[0, PROMPT:].tolist(), "end"]


def test_what_a_folder_cannot_do_is_refused(door, study):
    _, generate = door
    ids = random_ids((1, PROMPT))
    said = error_of(lambda: generate(ids, exit_levels=1, jump=None))
    assert said == "the jump was published as a folder; name it once more, as jump=FOLDER_OR_ID"
    said = error_of(lambda: generate(ids, exit_levels=1, assistant_model=study.load_model()))
    assert said == "early exits do not work with assistant_model; leave that out"
    with pytest.raises(ValueError, match="trust_remote_code"):
        generate(ids, exit_levels=1, trust_remote_code=False)


def test_a_repositorys_generate_knows_its_jump(study, tmp_path):
    file = study.publish(tmp_path / "jump") / GENERATE
    assert "\nREPOSITORY = None\n" in file.read_text()
    from onejump.sharing.card import render_generate

    assert "\nREPOSITORY = 'someone/tiny-jump'\n" in render_generate("someone/tiny-jump")


def test_without_onejump_its_generate_says_what_to_install(folder, tmp_path):
    code = f"import runpy; runpy.run_path({str(folder / GENERATE)!r})['generate'](None)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: this repository's generate needs onejump: pip install . in a clone of its source"
    )
