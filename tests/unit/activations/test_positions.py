"""Positions are uniform, and sentences are assigned to shards completely."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import error_of
from tiny_models import (
    MAX_POSITIONS,
    SPECIAL,
    random_text,
    save_positions,
    save_tiny_model,
    sentence_table,
    tiny_tokenizer,
)

from onejump.activations.positions import choose_positions
from onejump.files.tables import read_table, write_table


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


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("choice", ["tokenizer", "always", "never"])
def test_the_config_decides_whether_sentences_start_with_bos(adds, choice):
    tokenizer, sentences = tiny_tokenizer(adds), sentence_table(12, 4)
    table = choose_positions(sentences, tokenizer, None, {"train": 1, "test": 1}, 0, choice)
    plain = [len(ids) for ids in tiny_tokenizer(False)(sentences["text"].to_pylist())["input_ids"]]
    begins = adds if choice == "tokenizer" else choice == "always"
    assert table["starts_with_bos"].to_pylist() == [begins] * 16
    assert table["n_tokens"].to_pylist() == [n + begins for n in plain]
    assert all((ids[0] == tokenizer.bos_token_id) == begins for ids in table["input_ids"].to_pylist())


def test_a_bos_token_that_the_tokenizer_does_not_have_is_refused():
    table = table_of_lengths([3, 3])
    message = error_of(lambda: choose_positions(table, GivenTokens(), None, {"train": 1}, 0, "always"))
    assert message == "bos: always, but the tokenizer has no BOS token; use bos: tokenizer"
    assert choose_positions(table, GivenTokens(), None, {"train": 1}, 0, "never")["n_tokens"].to_pylist() == [3, 3]
