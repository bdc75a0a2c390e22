"""h^k at each position is that of a whole forward pass; what cannot be dumped is refused."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from levels_by_hand import levels_one_by_one, scaled_difference
from refusals import error_of
from tiny_models import (
    ALL_FAMILIES,
    HIDDEN_SIZE,
    MAX_POSITIONS,
    N_BLOCKS,
    VOCABULARY,
    dump_shard,
    save_positions,
    save_tiny_model,
    sentence_table,
    tiny_model,
    tiny_tokenizer,
)

from onejump.activations.dump import gather_levels, length_sorted_batches
from onejump.activations.positions import choose_positions
from onejump.files.tables import read_table, write_table
from onejump.files.tensors import TensorFile, write_tensors
from onejump.models.anatomy import find_anatomy
from onejump.models.sources import ModelSource
from onejump.models.unembedding import extract_unembedding

CPU = torch.device("cpu")


def random_sentences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
@example([], 10)
@example([50], 1)
@example([1, 50, 1, 50], 50)
def test_batches_hold_each_row_once_and_no_more_tokens_than_the_budget(lengths, budget):
    batches = length_sorted_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[row] for row in batch)
        assert padded <= budget or len(batch) == 1
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(lengths)


def test_batches_are_as_full_as_the_budget_allows():
    assert [len(batch) for batch in length_sorted_batches([4] * 10, 12)] == [3, 3, 3, 1]


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_levels_of_cut_sentences_in_batches_are_those_of_whole_sentences_one_by_one(family):
    model = tiny_model(family)
    sentences = random_sentences([9, 1, 20, 5, 13, 2, 9])
    positions = [8, 0, 11, 4, 1, 1, 3]
    cut = [ids[: position + 1] for ids, position in zip(sentences, positions, strict=True)]
    found, _ = gather_levels(find_anatomy(model), cut, token_budget=30)
    assert found.shape == (N_BLOCKS + 1, len(sentences), HIDDEN_SIZE)
    assert scaled_difference(found, levels_one_by_one(model, sentences, positions)) < 2e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
@pytest.mark.parametrize("budget", [1, 7, 64, 10**6])
def test_levels_do_not_depend_on_the_token_budget(family, budget):
    model, sentences = tiny_model(family), random_sentences([9, 1, 20, 5, 13, 2, 9, 20])
    anatomy = find_anatomy(model)
    found, expected = (gather_levels(anatomy, sentences, tokens)[0] for tokens in (budget, 40))
    assert scaled_difference(found, expected) < 2e-5


def fail_above(model, tokens: int, monkeypatch) -> list[int]:
    """Make the model run out of memory at batches of more than `tokens`; returns what it was asked for."""
    asked, forward = [], model.model.forward

    def limited(input_ids, **options):
        asked.append(input_ids.numel())
        if input_ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model.model, "forward", limited)
    return asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_running_out_of_memory_levels_are_those_of_the_smaller_budget_bit_for_bit(monkeypatch, caplog, dtype):
    model, sentences = tiny_model("llama").to(dtype), random_sentences([9, 1, 20, 5, 13, 2, 9, 20, 7])
    anatomy = find_anatomy(model)
    asked = fail_above(model, 45, monkeypatch)
    found, budget = gather_levels(anatomy, sentences, 160)
    failed = [n for n in asked if n > 45]
    assert 1 <= len(failed) <= 3
    assert failed == sorted(failed, reverse=True)
    assert asked.index(failed[-1]) < 2 * len(failed)  # only the rest of the longest comes before: little is lost
    assert caplog.text.count("out of memory with") == len(failed)
    monkeypatch.undo()
    expected, same = gather_levels(anatomy, sentences, budget)
    assert budget == same < 160
    assert torch.equal(found, expected)


def test_one_sentence_that_does_not_fit_the_memory_is_named(monkeypatch):
    model = tiny_model("llama")
    anatomy = find_anatomy(model)
    fail_above(model, 12, monkeypatch)
    message = error_of(lambda: gather_levels(anatomy, random_sentences([3, 20]), 64))
    assert message.startswith("one sentence of 20 tokens does not fit on the device")


def test_a_model_spread_over_devices_gives_the_same_levels(tmp_path):
    source = save_tiny_model("llama", tmp_path)
    sentences = random_sentences([9, 1, 20])
    expected, _ = gather_levels(find_anatomy(source.load_model()), sentences, 40)
    spread = ModelSource(source.location, gpus=2).load_model()
    found, _ = gather_levels(find_anatomy(spread), sentences, 40)
    assert scaled_difference(found, expected) < 2e-5


def test_level_k_is_before_the_final_norm_and_level_0_before_the_first_block():
    model, sentences = tiny_model("llama"), random_sentences([6, 4])
    levels, _ = gather_levels(find_anatomy(model), sentences, 100)
    assert torch.equal(levels[0], model.model.embed_tokens.weight[[ids[-1] for ids in sentences]])
    with torch.inference_mode():
        expected = torch.cat([model(input_ids=torch.tensor([ids])).logits[:, -1] for ids in sentences])
        found = model.lm_head(model.model.norm(levels[N_BLOCKS]))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_levels_are_kept_in_the_models_dtype(dtype):
    levels, _ = gather_levels(find_anatomy(tiny_model("llama").to(dtype)), random_sentences([3, 5]), 100)
    assert levels.dtype == dtype


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi"])
def test_the_output_head_is_never_run(family):
    model = tiny_model(family)
    anatomy = find_anatomy(model)

    def refuse(*_):
        raise AssertionError("the output head was run")

    model.get_output_embeddings().register_forward_pre_hook(refuse)
    with pytest.raises(AssertionError, match="output head was run"):
        model(input_ids=torch.tensor([[1, 2]]))
    assert gather_levels(anatomy, random_sentences([3, 5]), 100)[0].isfinite().all()


def test_no_whole_sentence_is_kept(monkeypatch):
    """What the hooks keep between batches is [K+1, N, H], whatever the length of the sentences."""
    sizes = []
    empty = torch.empty

    def watch(*shape, **options):
        sizes.append(shape)
        return empty(*shape, **options)

    anatomy = find_anatomy(tiny_model("llama"))
    monkeypatch.setattr("onejump.activations.dump.torch.empty", watch)
    gather_levels(anatomy, random_sentences([40] * 6), 80)
    assert max(np.prod(shape) for shape in sizes if shape[0] == N_BLOCKS + 1) == (N_BLOCKS + 1) * 6 * HIDDEN_SIZE


def dump_again(dump, path, split="test", shard=0, **changes):
    arguments = {
        "source": dump.source,
        "positions": dump.positions,
        "unembedding": dump.unembedding,
        "dtype": "float32",
    } | changes
    dump_shard(**arguments, split=split, shard=shard, path=path, device=CPU, token_budget=256)


def test_a_shard_tells_what_it_was_made_from(dump):
    file, unembedding = TensorFile(dump.test[1]), TensorFile(dump.unembedding)
    assert file.names[:4] == ["level.00", "level.01", "level.02", "level.03"]
    assert file.tensor("sentence_id").dtype == torch.int32
    facts = {
        "model": unembedding.metadata["model"],
        "revision": unembedding.metadata["revision"],
        "dtype": "float32",
        "unembedding_sha256": unembedding.sha256,
        "split": "test",
        "shard": "1",
        "token_budget": "256",
    }
    assert file.metadata | facts == file.metadata


def test_a_token_that_the_model_does_not_know_is_refused(dump, tmp_path):
    table = read_table(dump.positions)
    ids = [[*sentence[:-1], 97] for sentence in table["input_ids"].to_pylist()]
    table = table.set_column(
        table.schema.get_field_index("input_ids"), "input_ids", pa.array(ids, pa.list_(pa.int32()))
    )
    write_table(tmp_path / "positions.parquet", table)
    message = error_of(lambda: dump_again(dump, tmp_path / "shard", positions=tmp_path / "positions.parquet"))
    assert message.startswith(f"{tmp_path}/positions.parquet: has token 97, but the model knows 0..96")
    assert not (tmp_path / "shard").exists()


def test_the_same_shard_dumped_again_has_the_same_content(dump, tmp_path):
    dump_again(dump, tmp_path / "again", shard=1)
    assert TensorFile(tmp_path / "again").sha256 == TensorFile(dump.test[1]).sha256


@pytest.mark.parametrize(("split", "shard"), [("test", 2), ("test", -1), ("validation", 0)])
def test_a_shard_that_does_not_exist_is_refused(dump, tmp_path, split, shard):
    message = error_of(lambda: dump_again(dump, tmp_path / "out", split, shard))
    assert message.startswith(f"{dump.positions}: has no shard {shard} of split {split!r}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["other model", "other dtype", "changed weight"])
def test_a_head_of_another_model_is_refused(dump, other_dump, tmp_path, change):
    changes = {
        "other model": lambda: {"source": other_dump.source},
        "other dtype": lambda: {"dtype": "bfloat16"},
        "changed weight": lambda: {"source": changed_source(dump, tmp_path / "model")},
    }[change]()
    message = error_of(lambda: dump_again(dump, tmp_path / "out", **changes))
    assert message.startswith(f"{dump.unembedding}: was taken from model ")
    assert message.endswith("extract it again")
    assert not (tmp_path / "out").exists()


def changed_source(dump, folder):
    model = dump.source.load_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-6
    model.save_pretrained(folder)
    return ModelSource(str(folder))


def test_a_file_that_is_no_head_is_refused_by_name(dump, tmp_path):
    path = tmp_path / "joint.safetensors"
    write_tensors(path, {"A": torch.ones(2)}, {"kind": "jump"})
    assert str(path) in error_of(lambda: dump_again(dump, tmp_path / "out", unembedding=path))


@pytest.mark.parametrize(("block", "level"), [(0, 1), (1, 2), (2, 3)])
def test_a_hidden_state_that_is_not_a_number_is_refused_with_its_sentence_and_first_level(tmp_path, block, level):
    """One weight of one block is NaN, so every sentence is lost from the level after that block on."""
    model = tiny_model("llama")
    save_tiny_model("llama", tmp_path / "model")
    with torch.no_grad():
        model.model.layers[block].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    message = not_finite(tmp_path, "float32")
    assert message.startswith(f"sentence 7: NaN or infinite hidden state at level {level} in float32")


def test_the_sentence_named_is_the_one_that_is_lost(tmp_path):
    """The embedding of one token is NaN: level 0 is lost in the sentences whose position holds that token."""
    rows = choose_positions(
        sentence_table(40, 4), tiny_tokenizer(), MAX_POSITIONS, {"train": 1, "test": 1}, 0
    ).to_pylist()
    token = rows[5]["token_id"]
    lost = [row["sentence_id"] for row in rows if row["token_id"] == token]
    assert lost[0] != rows[0]["sentence_id"]
    model = tiny_model("gpt2")
    save_tiny_model("gpt2", tmp_path / "model")
    with torch.no_grad():
        model.transformer.wte.weight[token, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    message = not_finite(tmp_path, "float32", "gpt2")
    assert message.startswith(f"sentence {lost[0]}: NaN or infinite hidden state at level 0")


def test_an_overflow_of_float16_is_refused_with_the_advice_to_use_another_dtype(tmp_path):
    model = tiny_model("llama")
    save_tiny_model("llama", tmp_path / "model")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(6e4)
    model.save_pretrained(tmp_path / "model")
    message = not_finite(tmp_path, "float16")
    assert "NaN or infinite hidden state at level 1 in float16; use float32 or bfloat16" in message


def not_finite(folder, dtype, family="llama"):
    """Dump a model with broken weights, with an unembedding that is right for it in all that dump_shard checks."""
    source = ModelSource(str(folder / "model"))
    model, revision = source.identity()
    unembedding, anatomy = extract_unembedding(tiny_model(family))
    facts = {"model": model, "revision": revision, "dtype": dtype, "n_blocks": 3, "parameters": 0}
    unembedding.save(folder / "h", facts | {"anatomy": anatomy.paths})
    write_table(folder / "s.parquet", sentence_table(40, 4))
    save_positions(source, folder / "s.parquet", folder / "p.parquet", {"train": 1, "test": 1}, 0)
    message = error_of(
        lambda: dump_shard(source, folder / "p.parquet", folder / "h", "train", 0, folder / "out", dtype, CPU, 256)
    )
    assert not (folder / "out").exists()
    return message
