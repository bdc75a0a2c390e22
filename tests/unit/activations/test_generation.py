"""Continuations against the model's own logits, one token at a time and one sentence at a time."""

import numpy as np
import pytest
import torch
from refusals import error_of
from tiny_models import MAX_POSITIONS, save_tiny_model, sentence_table, tiny_model

from onejump import stages
from onejump.activations import generation
from onejump.activations.generation import continue_prompts, cut_prompts
from onejump.files.checkpoints import Checkpoint
from onejump.files.tables import read_table, write_table
from onejump.parameters import Compute, Model

T, PROMPTS = 5, [[3, 4, 5], [9], [8, 7, 6], [10, 11], [12], [5, 4, 3]]
ENDS = 2  # </s> of the tiny models


def by_hand(model, prompts, temperature, seed):
    """Each prompt alone, without a cache: the whole text again for each token."""
    uniform = np.random.default_rng([seed, 1]).random((len(prompts), T))
    texts = []
    for prompt, draws in zip(prompts, uniform, strict=True):
        text = list(prompt)
        for u in draws:
            with torch.no_grad():
                logits = model(torch.tensor([text])).logits[0, -1].double().numpy()
            logits[ENDS] = -np.inf
            if temperature == 0:
                text.append(int(logits.argmax()))
                continue
            weights = np.exp((logits - logits.max()) / temperature)
            text.append(int(np.flatnonzero(np.cumsum(weights) > u * weights.sum())[0]))
        texts.append(text[len(prompt) :])
    return texts


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("temperature", [0, 0.5, 1])
def test_a_continuation_is_that_of_one_token_at_a_time(family, temperature):
    model = tiny_model(family)
    model.generation_config.eos_token_id = ENDS
    expected = by_hand(model, PROMPTS, temperature, seed=4)
    model.generation_config.update(do_sample=True, top_k=2, temperature=0.1, repetition_penalty=9.0)
    assert continue_prompts(model, PROMPTS, T, temperature, 4, None).tolist() == expected


def test_a_token_is_drawn_as_often_as_the_model_says():
    """4,000 draws from one distribution: counts of likely tokens within five standard deviations."""
    model = tiny_model("llama")
    model.generation_config.eos_token_id = [ENDS, 3]
    written = continue_prompts(model, [[7, 8]] * 4000, 1, 1.0, 0, None)[:, 0]
    with torch.no_grad():
        logits = model(torch.tensor([[7, 8]])).logits[0, -1].double()
    logits[[ENDS, 3]] = -torch.inf
    p = logits.softmax(0)
    counts = torch.bincount(written, minlength=len(p))
    assert counts[[ENDS, 3]].sum() == 0
    assert ((counts - 4000 * p).abs() <= 5 * (4000 * p * (1 - p)).sqrt() + 1).all()


def test_batches_do_not_matter_even_where_memory_runs_out(monkeypatch):
    expected = continue_prompts(tiny_model("llama"), PROMPTS * 3, T, 1.0, 1, None)
    whole = generation._continue

    def in_little_memory(model, prompts, *given):
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return whole(model, prompts, *given)

    monkeypatch.setattr(generation, "_continue", in_little_memory)
    assert torch.equal(continue_prompts(tiny_model("llama"), PROMPTS * 3, T, 1.0, 1, None), expected)
    monkeypatch.setitem(generation.ROWS, "cpu", 1)
    assert torch.equal(continue_prompts(tiny_model("llama"), PROMPTS * 3, T, 1.0, 1, None), expected)


def test_an_interrupted_run_resumes_with_the_same_text(tmp_path, monkeypatch):
    expected = continue_prompts(tiny_model("llama"), PROMPTS, T, 1.0, 1, None)
    monkeypatch.setenv("ONEJUMP_CHECKPOINT_SECONDS", "0")
    monkeypatch.setitem(generation.ROWS, "cpu", 1)
    whole, calls = generation._continue, []

    def counted(model, prompts, *given):
        calls.append(prompts)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(model, prompts, *given)

    def run():
        checkpoint = Checkpoint(tmp_path / "texts.parquet", {}, torch.device("cpu"))
        return continue_prompts(tiny_model("llama"), PROMPTS, T, 1.0, 1, checkpoint)

    monkeypatch.setattr(generation, "_continue", counted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert torch.equal(run(), expected)
    assert len(calls) == len(PROMPTS) + 1  # the three that were done are not done again


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Sentences, texts and positions of a tiny model, by the stages, and its folder."""
    folder = tmp_path_factory.mktemp("written")
    source, sentences = save_tiny_model("llama", folder / "model"), folder / "s.parquet"
    write_table(sentences, sentence_table(30, 10))
    for name, seed in (("texts", 0), ("again", 0), ("other", 1)):
        out = folder / f"{name}.parquet"
        stages.generate_text(Model(source.location), Compute("cpu"), sentences, out, T, seed=seed)
    positions = {"texts": (folder / "texts.parquet", True), "s": (sentences, False)}
    for name, (file, generated) in positions.items():
        out = folder / f"{name}-positions.parquet"
        stages.choose_positions(Model(source.location), file, out, 2, 1, generated=generated, seed=3)
    return folder


def test_each_sentence_is_followed_by_its_continuation(written):
    given = read_table(written / "s.parquet").to_pandas()
    texts = read_table(written / "texts.parquet").to_pandas()
    own, more = texts[texts["origin"] == "corpus"], texts[texts["origin"] == "generated"]
    assert texts["origin"].tolist() == ["corpus", "generated"] * 40
    for part in (own, more):
        assert part[["split", "document"]].to_numpy().tolist() == given[["split", "document"]].to_numpy().tolist()
    assert (own["sentence_id"].tolist(), own["text"].tolist()) == (
        given["sentence_id"].tolist(),
        given["text"].tolist(),
    )
    assert texts["sentence_id"].is_unique
    assert (own["n_prompt"] == 0).all()
    for sentence, both, n in zip(own["input_ids"], more["input_ids"], more["n_prompt"], strict=True):
        assert (both[:n].tolist(), len(both)) == (sentence[:n].tolist(), n + T)
        assert n == min(len(sentence), MAX_POSITIONS - T)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(written):
    texts, again, other = ((written / f"{name}.parquet").read_bytes() for name in ("texts", "again", "other"))
    assert texts == again != other


def test_the_position_is_among_the_models_own_tokens_and_that_of_a_sentence_stays(written):
    texts = read_table(written / "texts.parquet").to_pandas().set_index("sentence_id")
    table = read_table(written / "texts-positions.parquet").to_pandas()
    more = table[table["origin"] == "generated"]
    first = texts.loc[more["sentence_id"], "n_prompt"].to_numpy()
    assert ((more["position"] >= first) & (more["position"] < first + T)).all()
    assert set(more["position"] - first) == set(range(T))
    for ids, row in zip(texts.loc[table["sentence_id"], "input_ids"], table.itertuples(), strict=True):
        assert row.input_ids.tolist() == ids[: row.position + 1].tolist()
    own = table[table["origin"] == "corpus"].drop(columns=["origin", "shard"]).reset_index(drop=True)
    alone = read_table(written / "s-positions.parquet").to_pandas().drop(columns="shard")
    assert own.astype({"input_ids": str}).equals(alone.astype({"input_ids": str}))


def test_a_continuation_that_leaves_no_room_for_a_prompt_is_refused():
    expected = "corpus.generated.tokens is 8 for a model, expected less than its longest input, 8 tokens"
    assert error_of(lambda: cut_prompts([[1]], 8, 8)) == expected
    assert cut_prompts([[1, 2, 3]], 6, 8) == [[1, 2]]
    assert cut_prompts([[1, 2, 3]], 6, None) == [[1, 2, 3]]
    assert "1 sentences have no tokens to continue" in error_of(lambda: cut_prompts([[1], []], 6, 8))


def test_a_model_that_cannot_generate_is_refused_in_one_line():
    model = tiny_model("llama")
    model.can_generate = lambda: False
    expected = "model LlamaForCausalLM cannot generate text; remove corpus.generated, or the model"
    assert error_of(lambda: continue_prompts(model, PROMPTS, T, 1.0, 0, None)) == expected


def test_a_model_whose_code_fails_is_refused_in_one_line():
    model = tiny_model("llama")
    model.prepare_inputs_for_generation = None
    said = error_of(lambda: continue_prompts(model, PROMPTS, T, 1.0, 0, None))
    assert said.startswith("model LlamaForCausalLM cannot generate (")
