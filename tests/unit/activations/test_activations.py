"""Positions are uniform, shards complete, h^k at the position is that of a whole forward pass, and readers check."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusals import error_of
from safetensors.torch import load_file, save_file
from tiny_models import (
    ALL_FAMILIES,
    HIDDEN_SIZE,
    MAX_POSITIONS,
    N_BLOCKS,
    SPECIAL,
    VOCABULARY,
    dump_shard,
    make_dump,
    random_text,
    save_positions,
    save_tiny_model,
    save_unembedding,
    sentence_table,
    tiny_model,
    tiny_tokenizer,
)

from onejump.activations.dump import gather_levels, length_sorted_batches
from onejump.activations.positions import choose_positions
from onejump.activations.reading import Activations
from onejump.files.tables import read_table, write_table
from onejump.files.tensors import TensorFile, write_tensors
from onejump.models.sources import ModelSource
from onejump.models.unembedding import Unembedding, extract_unembedding

CPU = torch.device("cpu")


@dataclass
class GivenTokens:
    """A tokenizer that gives each text `n` the tokens 0 .. n-1."""

    def __call__(self, texts):
        return {"input_ids": [list(range(int(text))) for text in texts]}


def table_of_lengths(lengths, split="train"):
    return pa.table(
        {
            "sentence_id": pa.array(range(len(lengths)), pa.int32()),
            "split": [split] * len(lengths),
            "text": [str(length) for length in lengths],
        }
    )


# ---------------------------------------------------------------------------------------------------------- positions


def test_positions_are_uniform_over_the_tokens_of_a_sentence():
    """20,000 sentences of 5 tokens: each position about 4,000 times (standard deviation 57), first and last too."""
    table = choose_positions(table_of_lengths([5] * 20000), GivenTokens(), None, {"train": 1}, seed=0)
    counts = np.bincount(table["position"].to_numpy(), minlength=5)
    assert len(counts) == 5
    assert (np.abs(counts - 4000) < 5 * 57).all()


def test_positions_of_sentences_of_different_length_are_uniform_over_each():
    """The mean of position / (n - 1) is 1/2 for every length, if and only if no token is preferred on average."""
    lengths = np.tile([2, 3, 7, 30], 4000)
    table = choose_positions(table_of_lengths(lengths), GivenTokens(), None, {"train": 1}, seed=1)
    share = table["position"].to_numpy() / (lengths - 1)
    for length in (2, 3, 7, 30):
        assert abs(share[lengths == length].mean() - 0.5) < 5 * 0.5 / 4000**0.5


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=30), st.one_of(st.none(), st.integers(1, 64)), st.integers(0, 9)
)
def test_each_row_tells_the_token_at_the_position_and_those_before_it(lengths, longest, seed):
    table = choose_positions(table_of_lengths(lengths), GivenTokens(), longest, {"train": 1}, seed)
    assert table["sentence_id"].to_pylist() == list(range(len(lengths)))
    for length, row in zip(lengths, table.to_pylist(), strict=True):
        kept = min(length, longest or length)
        assert row["n_tokens"] == kept
        assert 0 <= row["position"] < kept
        assert row["input_ids"] == list(range(kept))[: row["position"] + 1]
        assert row["token_id"] == row["input_ids"][-1]


def test_the_choice_depends_on_the_seed_and_on_nothing_else():
    table = table_of_lengths([30] * 50)
    one, same, other = (choose_positions(table, GivenTokens(), None, {"train": 1}, seed) for seed in (3, 3, 4))
    assert one.equals(same)
    assert one["position"] != other["position"]
    assert choose_positions(table, GivenTokens(), None, {"train": 5}, 3)["position"] == one["position"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sentences_are_dealt_to_shards_completely_in_order_and_near_equally(data):
    sizes = {split: data.draw(st.integers(1, 40), split) for split in ("train", "test")}
    shards = {split: data.draw(st.integers(1, size), f"{split} shards") for split, size in sizes.items()}
    split = data.draw(st.permutations(["train"] * sizes["train"] + ["test"] * sizes["test"]))
    sentences = table_of_lengths([3] * len(split)).set_column(1, "split", [split])
    rows = choose_positions(sentences, GivenTokens(), None, shards, 0).to_pylist()
    assert [row["split"] for row in rows] == split
    for name, count in shards.items():
        dealt = [row["shard"] for row in rows if row["split"] == name]
        assert dealt == sorted(dealt)
        held = np.bincount(dealt, minlength=count)
        assert len(held) == count
        assert held.sum() == sizes[name]
        assert held.max() - held.min() <= 1


def test_more_shards_than_sentences_are_refused():
    message = error_of(lambda: choose_positions(table_of_lengths([3, 3]), GivenTokens(), None, {"train": 3}, 0))
    assert message == "split train has 2 sentences for 3 shards; ask for fewer shards"


def test_a_sentence_without_tokens_is_refused_by_number_and_text():
    table = sentence_table(3, 0).set_column(3, "text", [["bab", "éé", "bek"]])
    message = error_of(lambda: choose_positions(table, tiny_tokenizer(), None, {"train": 1}, 0))
    assert message.startswith("sentence 10 ('éé') has no tokens")


@pytest.mark.parametrize("bos", [False, True])
def test_positions_are_written_with_the_models_own_tokens_cut_to_its_longest_input(tmp_path, bos):
    source = save_tiny_model("llama", tmp_path / "model", bos=bos)
    sentences = sentence_table(6, 4)
    texts = sentences["text"].to_pylist()
    texts[2] = " ".join(random_text(np.random.default_rng(i), 30) for i in range(20))
    sentences = sentences.set_column(3, "text", [texts])
    write_table(tmp_path / "s.parquet", sentences)
    save_positions(source, tmp_path / "s.parquet", tmp_path / "p.parquet", {"train": 2, "test": 1}, 0)
    table = read_table(tmp_path / "p.parquet")
    tokens = [tiny_tokenizer(bos)(text)["input_ids"] for text in texts]
    assert len(tokens[2]) > MAX_POSITIONS
    assert table["n_tokens"].to_pylist() == [min(len(ids), MAX_POSITIONS) for ids in tokens]
    assert table["n_tokens"].to_pylist()[2] == MAX_POSITIONS
    for ids, row in zip(tokens, table.to_pylist(), strict=True):
        assert row["input_ids"] == ids[: row["position"] + 1]
        assert (row["input_ids"][0] == SPECIAL.index("<s>")) == bos
    assert str(table.schema).split("\n") == [
        "sentence_id: int32",
        "split: string",
        "shard: int32",
        "n_tokens: int32",
        "position: int32",
        "token_id: int32",
        "starts_with_bos: bool",
        "input_ids: list<element: int32>",
        "  child 0, element: int32",
    ]


# ------------------------------------------------------------------------------------------------------------ batches


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


# ------------------------------------------------------------------------------------------------------------- levels


def random_sentences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def levels_one_by_one(model, sentences, positions):
    """h^0 .. h^K at each position, from whole forward passes over single, uncut, unpadded sentences.

    h^k for k < K is Transformers' own hidden state; h^K is the output of the last block, by a hook there.
    """
    last_block = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == N_BLOCKS)[-1]
    rows = []
    for ids, position in zip(sentences, positions, strict=True):
        final = []
        handle = last_block.register_forward_hook(lambda module, args, out, final=final: final.append(out))
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        handle.remove()
        (out,) = final
        levels = [*states[:N_BLOCKS], out[0] if isinstance(out, tuple) else out]
        rows.append(torch.stack([h[0, position] for h in levels]))
    return torch.stack(rows, 1)


def scaled_difference(found, expected):
    """The largest difference at each level, relative to the largest value there."""
    return max(float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_levels_of_cut_sentences_in_batches_are_those_of_whole_sentences_one_by_one(family):
    model = tiny_model(family)
    sentences = random_sentences([9, 1, 20, 5, 13, 2, 9])
    positions = [8, 0, 11, 4, 1, 1, 3]
    cut = [ids[: position + 1] for ids, position in zip(sentences, positions, strict=True)]
    found = gather_levels(model, cut, token_budget=30)
    assert found.shape == (N_BLOCKS + 1, len(sentences), HIDDEN_SIZE)
    assert scaled_difference(found, levels_one_by_one(model, sentences, positions)) < 2e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
@pytest.mark.parametrize("budget", [1, 7, 64, 10**6])
def test_levels_do_not_depend_on_the_token_budget(family, budget):
    model, sentences = tiny_model(family), random_sentences([9, 1, 20, 5, 13, 2, 9, 20])
    assert scaled_difference(gather_levels(model, sentences, budget), gather_levels(model, sentences, 40)) < 2e-5


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


def test_after_running_out_of_memory_batches_are_smaller_and_the_levels_the_same(monkeypatch, caplog):
    model, sentences = tiny_model("llama"), random_sentences([9, 1, 20, 5, 13, 2, 9, 20, 7])
    expected = gather_levels(model, sentences, 10)
    asked = fail_above(model, 45, monkeypatch)
    found = gather_levels(model, sentences, 160)
    assert scaled_difference(found, expected) < 2e-5
    failed = [n for n in asked if n > 45]
    assert 1 <= len(failed) <= 3 and failed == sorted(failed, reverse=True)
    assert caplog.text.count("out of memory at") == len(failed)


def test_one_sentence_that_does_not_fit_the_memory_is_named(monkeypatch):
    model = tiny_model("llama")
    fail_above(model, 12, monkeypatch)
    message = error_of(lambda: gather_levels(model, random_sentences([3, 20]), 64))
    assert message.startswith("one sentence of 20 tokens does not fit the device")


def test_a_model_spread_over_devices_gives_the_same_levels(tmp_path):
    source = save_tiny_model("llama", tmp_path)
    sentences = random_sentences([9, 1, 20])
    expected = gather_levels(source.load_model(), sentences, 40)
    spread = ModelSource(source.location, gpus=2).load_model()
    assert scaled_difference(gather_levels(spread, sentences, 40), expected) < 2e-5


def test_a_tokenizer_without_a_padding_token_will_do(tmp_path):
    tokenizer = tiny_tokenizer(bos=True)
    sentences = sentence_table(12, 4)
    expected = choose_positions(sentences, tokenizer, None, {"train": 1, "test": 1}, 0)
    tokenizer.pad_token = None
    assert choose_positions(sentences, tokenizer, None, {"train": 1, "test": 1}, 0).equals(expected)


@pytest.mark.parametrize("bos", [False, True])
def test_it_is_recorded_whether_sentences_start_with_bos(bos):
    table = choose_positions(sentence_table(12, 4), tiny_tokenizer(bos), None, {"train": 1, "test": 1}, 0)
    assert table["starts_with_bos"].to_pylist() == [bos] * 16


def test_level_k_is_before_the_final_norm_and_level_0_before_the_first_block():
    model, sentences = tiny_model("llama"), random_sentences([6, 4])
    levels = gather_levels(model, sentences, 100)
    assert torch.equal(levels[0], model.model.embed_tokens.weight[[ids[-1] for ids in sentences]])
    with torch.inference_mode():
        expected = torch.cat([model(input_ids=torch.tensor([ids])).logits[:, -1] for ids in sentences])
        found = model.lm_head(model.model.norm(levels[N_BLOCKS]))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_levels_are_kept_in_the_models_dtype(dtype):
    levels = gather_levels(tiny_model("llama").to(dtype), random_sentences([3, 5]), 100)
    assert levels.dtype == dtype


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi"])
def test_the_output_head_is_never_run(family):
    model = tiny_model(family)

    def refuse(*_):
        raise AssertionError("the output head was run")

    model.get_output_embeddings().register_forward_pre_hook(refuse)
    with pytest.raises(AssertionError, match="output head was run"):
        model(input_ids=torch.tensor([[1, 2]]))
    assert gather_levels(model, random_sentences([3, 5]), 100).isfinite().all()


def test_no_whole_sentence_is_kept(monkeypatch):
    """What the hooks keep between batches is [K+1, N, H], whatever the length of the sentences."""
    sizes = []
    empty = torch.empty

    def watch(*shape, **options):
        sizes.append(shape)
        return empty(*shape, **options)

    monkeypatch.setattr("onejump.activations.dump.torch.empty", watch)
    gather_levels(tiny_model("llama"), random_sentences([40] * 6), 80)
    assert max(np.prod(shape) for shape in sizes if shape[0] == N_BLOCKS + 1) == (N_BLOCKS + 1) * 6 * HIDDEN_SIZE


# --------------------------------------------------------------------------------------------------------------- dump


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """23 training sentences in 3 shards and 9 test sentences in 2."""
    return make_dump(tmp_path_factory.mktemp("dump"), 23, 9, shards={"train": 3, "test": 2})


@pytest.fixture(scope="module")
def other_dump(tmp_path_factory):
    """The same sentences through another model."""
    return make_dump(tmp_path_factory.mktemp("other"), 23, 9, "gpt2", shards={"train": 3, "test": 2})


def rows_of(dump, split):
    return [row for row in read_table(dump.positions).to_pylist() if row["split"] == split]


def activations_of(dump, split, keep="all"):
    return Activations(getattr(dump, split), dump.positions, Unembedding.load(dump.unembedding), split, keep)


def naive_levels(dump, split):
    """From the sentences' texts: whole forward passes, one by one."""
    texts = {row["sentence_id"]: row["text"] for row in read_table(dump.sentences).to_pylist()}
    rows = rows_of(dump, split)
    tokenizer = dump.source.load_tokenizer()
    sentences = [tokenizer(texts[row["sentence_id"]])["input_ids"] for row in rows]
    return levels_one_by_one(dump.source.load_model(), sentences, [row["position"] for row in rows])


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_read_is_what_whole_forward_passes_give_sentence_by_sentence(dump, split):
    activations = activations_of(dump, split)
    expected = naive_levels(dump, split)
    assert len(activations) == expected.shape[1] == {"train": 23, "test": 9}[split]
    assert (activations.n_blocks, activations.hidden_size) == (N_BLOCKS, HIDDEN_SIZE)
    assert activations.sentence_ids.tolist() == [row["sentence_id"] for row in rows_of(dump, split)]
    found = torch.stack([activations.level(level) for level in range(N_BLOCKS + 1)])
    assert scaled_difference(found, expected) < 2e-5


def test_shards_of_several_levels_hold_the_same_rows_as_each_level_alone(dump):
    activations = activations_of(dump, "train")
    pairs = list(activations.shards(2, 0, N_BLOCKS))
    assert [len(rows[0]) for rows in pairs] == [8, 8, 7]
    for i, level in enumerate((2, 0, N_BLOCKS)):
        assert torch.equal(torch.cat([rows[i] for rows in pairs]), activations.level(level))


def test_not_first_keeps_exactly_the_rows_after_the_first_position(dump):
    rows = rows_of(dump, "train")
    later = [i for i, row in enumerate(rows) if row["position"] > 0]
    assert 0 < len(later) < len(rows)
    every, kept = activations_of(dump, "train"), activations_of(dump, "train", "not_first")
    assert len(kept) == len(later)
    assert kept.sentence_ids.tolist() == [rows[i]["sentence_id"] for i in later]
    for level in range(N_BLOCKS + 1):
        assert torch.equal(kept.level(level), every.level(level)[later])


def test_not_first_of_sentences_that_stop_at_their_first_token_is_refused(dump, tmp_path):
    rows = [row | {"position": 0, "input_ids": row["input_ids"][:1]} for row in read_table(dump.positions).to_pylist()]
    positions = tmp_path / "p.parquet"
    write_table(positions, pa.Table.from_pylist(rows, read_table(dump.positions).schema))
    paths = [tmp_path / "0", tmp_path / "1"]
    for shard, path in enumerate(paths):
        dump_again(dump, path, shard=shard, positions=positions)
    first = replace(dump, positions=positions, test=paths)
    assert len(activations_of(first, "test")) == 9
    message = error_of(lambda: activations_of(first, "test", "not_first"))
    assert message.endswith("no row of split 'test' is left with positions: not_first")


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
    }
    assert file.metadata | facts == file.metadata


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept_on_disk_and_read_as_float32(tmp_path, dump, dtype):
    half = make_dump(tmp_path, 23, 9, shards={"train": 1, "test": 1}, dtype=dtype)
    assert str(TensorFile(half.test[0]).tensor("level.02").dtype) == f"torch.{dtype}"
    found = activations_of(half, "test").level(2)
    assert found.dtype == torch.float32
    exact = activations_of(dump, "test").level(2)
    assert 0 < scaled_difference([found], [exact]) < {"bfloat16": 0.05, "float16": 0.01}[dtype]


def dump_again(dump, path, split="test", shard=0, **changes):
    arguments = {
        "source": dump.source,
        "positions": dump.positions,
        "unembedding": dump.unembedding,
        "dtype": "float32",
    } | changes
    dump_shard(**arguments, split=split, shard=shard, path=path, device=CPU, token_budget=256)


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


@pytest.mark.parametrize("split, shard", [("test", 2), ("test", -1), ("validation", 0)])
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


@pytest.mark.parametrize("block, level", [(0, 1), (1, 2), (2, 3)])
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
    message = not_finite(tmp_path, "float32")
    assert message.startswith(f"sentence {lost[0]}: NaN or infinite hidden state at level 0")


def test_an_overflow_of_float16_is_refused_with_the_advice_to_use_another_dtype(tmp_path):
    model = tiny_model("llama")
    save_tiny_model("llama", tmp_path / "model")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(6e4)
    model.save_pretrained(tmp_path / "model")
    message = not_finite(tmp_path, "float16")
    assert "NaN or infinite hidden state at level 1 in float16; use float32 or bfloat16" in message


def not_finite(folder, dtype):
    """Dump a model with broken weights, with a head file that is right for it in all that dump_shard checks."""
    source = ModelSource(str(folder / "model"))
    model, revision = source.identity(source.load_model())
    facts = {"model": model, "revision": revision, "dtype": dtype, "n_blocks": 3, "parameters": 0}
    extract_unembedding(tiny_model("llama"))[0].save(folder / "h", facts)
    write_table(folder / "s.parquet", sentence_table(40, 4))
    save_positions(source, folder / "s.parquet", folder / "p.parquet", {"train": 1, "test": 1}, 0)
    message = error_of(
        lambda: dump_shard(source, folder / "p.parquet", folder / "h", "train", 0, folder / "out", dtype, CPU, 256)
    )
    assert not (folder / "out").exists()
    return message


# --------------------------------------------------------------------------------------------------------------- read


def test_shards_of_another_model_are_refused(dump, other_dump):
    message = error_of(lambda: Activations(other_dump.test, dump.positions, Unembedding.load(dump.unembedding), "test"))
    assert message.startswith(f"{other_dump.test[0]}: comes from model with head ")
    assert TensorFile(dump.unembedding).sha256 in message and TensorFile(other_dump.unembedding).sha256 in message


def test_shards_of_the_other_split_are_refused(dump):
    message = error_of(lambda: Activations(dump.test, dump.positions, Unembedding.load(dump.unembedding), "train"))
    assert message == f"{dump.positions}: split 'train' has 3 shards, but 2 files were given"
    message = error_of(lambda: Activations(dump.train[:2], dump.positions, Unembedding.load(dump.unembedding), "test"))
    assert message.startswith(f"{dump.train[0]}: is shard 0 of train, not shard 0 of test")


def test_shards_in_another_order_are_refused(dump):
    message = error_of(lambda: activations_of(replace(dump, test=dump.test[::-1]), "test"))
    assert message.startswith(f"{dump.test[1]}: is shard 1 of test, not shard 0 of test")


@pytest.mark.parametrize("chosen", [[0], [0, 1, 1], []])
def test_a_missing_or_repeated_shard_is_refused(dump, chosen):
    message = error_of(lambda: activations_of(replace(dump, test=[dump.test[i] for i in chosen]), "test"))
    assert message == f"{dump.positions}: split 'test' has 2 shards, but {len(chosen)} files were given"


def test_a_split_that_does_not_exist_is_refused(dump):
    assert "'validation'" in error_of(
        lambda: Activations([], dump.positions, Unembedding.load(dump.unembedding), "validation")
    )


def test_a_shard_file_that_is_not_there_is_refused_by_name(dump, tmp_path):
    message = error_of(lambda: activations_of(replace(dump, test=[dump.test[0], tmp_path / "gone"]), "test"))
    assert message.startswith(f"{tmp_path / 'gone'}: no such file")


def test_shards_of_other_sentences_are_refused(dump, tmp_path):
    table = read_table(dump.positions)
    swapped = table["sentence_id"].to_pylist()
    rows = [i for i, row in enumerate(table.to_pylist()) if (row["split"], row["shard"]) == ("test", 1)]
    swapped[rows[0]], swapped[rows[1]] = swapped[rows[1]], swapped[rows[0]]
    write_table(tmp_path / "p.parquet", table.set_column(0, "sentence_id", pa.array(swapped, pa.int32())))
    message = error_of(lambda: activations_of(replace(dump, positions=tmp_path / "p.parquet"), "test"))
    assert message.startswith(f"{dump.test[1]}: its 4 sentence")
    assert str(tmp_path / "p.parquet") in message


def test_shards_dealt_in_another_way_are_refused(dump, tmp_path):
    save_positions(dump.source, dump.sentences, tmp_path / "p.parquet", {"train": 2, "test": 2}, 0)
    message = error_of(lambda: activations_of(replace(dump, positions=tmp_path / "p.parquet"), "train"))
    assert "split 'train' has 2 shards, but 3 files were given" in message


def test_shards_of_other_positions_in_the_same_sentences_are_refused(dump, tmp_path):
    """Another seed chooses other positions in the same sentences: ids agree, but `not_first` would keep wrong rows."""
    save_positions(dump.source, dump.sentences, tmp_path / "p.parquet", {"train": 3, "test": 2}, 1)
    assert str(dump.test[0]) in error_of(
        lambda: activations_of(replace(dump, positions=tmp_path / "p.parquet"), "test")
    )


@pytest.mark.parametrize("level", [-1, N_BLOCKS + 1])
def test_a_level_out_of_range_is_refused_with_the_range(dump, level):
    activations = activations_of(dump, "test")
    assert error_of(lambda: activations.level(level)) == f"level {level} is out of range; this model has levels 0..3"


def copied(dump, tmp_path):
    """The dump with its first test shard copied, to be altered."""
    path = Path(tmp_path / "shard-00.safetensors")
    path.write_bytes(dump.test[0].read_bytes())
    return path, replace(dump, test=[path, dump.test[1]])


def test_a_shard_with_a_flipped_bit_is_refused_when_its_level_is_read(dump, tmp_path):
    path, altered = copied(dump, tmp_path)
    content = bytearray(path.read_bytes())
    level_3 = TensorFile(path).tensor("level.03").numpy().tobytes()
    content[content.index(level_3) + 5] ^= 16
    path.write_bytes(content)
    activations = activations_of(altered, "test")
    activations.level(2)
    message = error_of(lambda: activations.level(3))
    assert message.startswith(f"{path}: damaged (tensor 'level.03' does not match its checksum)")


@pytest.mark.parametrize("missing", [1, 100, 10**9])
def test_a_shard_cut_short_is_refused(dump, tmp_path, missing):
    path, altered = copied(dump, tmp_path)
    path.write_bytes(path.read_bytes()[:-missing])
    assert error_of(lambda: activations_of(altered, "test")).startswith(f"{path}: damaged")


def test_a_shard_of_another_program_is_refused(dump, tmp_path):
    path, altered = copied(dump, tmp_path)
    save_file(load_file(path), path)
    assert "not written by onejump" in error_of(lambda: activations_of(altered, "test"))


def rewritten(dump, tmp_path, **changes):
    """The dump with some tensors of its first test shard replaced (or left out: None), with good checksums."""
    path, altered = copied(dump, tmp_path)
    file = TensorFile(path)
    facts = {key: value for key, value in file.metadata.items() if not key.startswith("sha256")}
    tensors = file.tensors() | {name.replace("_", "."): tensor for name, tensor in changes.items()}
    write_tensors(path, {name: tensor for name, tensor in tensors.items() if tensor is not None}, facts)
    return path, altered


@pytest.mark.parametrize(
    "changes, found",
    [({"level_03": None}, 3), ({"level_04": torch.zeros(5, HIDDEN_SIZE)}, 5)],
    ids=["one less", "more"],
)
def test_another_number_of_levels_is_refused(dump, tmp_path, changes, found):
    path, altered = rewritten(dump, tmp_path, **changes)
    message = error_of(lambda: activations_of(altered, "test"))
    assert message.startswith(f"{path}: has {found} levels, expected 4")


def test_a_level_missing_in_the_middle_is_refused(dump, tmp_path):
    path, altered = rewritten(dump, tmp_path, level_01=None)
    assert str(path) in error_of(lambda: activations_of(altered, "test").level(1))


def test_another_hidden_size_is_refused(dump, tmp_path):
    path, altered = rewritten(dump, tmp_path, level_02=torch.zeros(5, HIDDEN_SIZE + 1))
    message = error_of(lambda: activations_of(altered, "test").level(2))
    assert message.startswith(f"{path}: ") and "33" in message and "32" in message


@pytest.mark.parametrize("rows", [4, 6])
def test_another_number_of_rows_is_refused(dump, tmp_path, rows):
    path, altered = rewritten(dump, tmp_path, level_02=torch.zeros(rows, HIDDEN_SIZE))
    assert str(path) in error_of(lambda: activations_of(altered, "test").level(2))


@pytest.mark.parametrize("values", [[float("nan")], [float("inf")], [float("inf"), -float("inf")]])
def test_values_that_are_not_finite_are_refused(dump, tmp_path, values):
    broken = torch.zeros(5, HIDDEN_SIZE)
    broken[3, 4 : 4 + len(values)] = torch.tensor(values)
    path, altered = rewritten(dump, tmp_path, level_02=broken)
    message = error_of(lambda: activations_of(altered, "test").level(2))
    assert message.startswith(f"{path}: NaN or infinite values at level 2")


def test_large_values_are_read_though_their_sum_is_infinite(dump, tmp_path):
    large = torch.full((5, HIDDEN_SIZE), 3e38)
    _, altered = rewritten(dump, tmp_path, level_02=large)
    assert torch.equal(activations_of(altered, "test").level(2)[:5], large)


def test_a_jump_given_as_a_shard_is_refused_by_name(dump, tmp_path):
    path = tmp_path / "level-00.safetensors"
    write_tensors(
        path, {"A": torch.ones(2)}, {"kind": "jump", "unembedding_sha256": TensorFile(dump.unembedding).sha256}
    )
    assert str(path) in error_of(lambda: activations_of(replace(dump, test=[path, path]), "test"))


def test_a_head_taken_again_from_the_same_model_is_the_same_head(dump, tmp_path):
    save_unembedding(dump.source, "float32", tmp_path / "h")
    assert len(Activations(dump.test, dump.positions, Unembedding.load(tmp_path / "h"), "test")) == 9
