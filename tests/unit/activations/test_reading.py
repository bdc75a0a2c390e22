"""What is read is what was dumped; shards that do not belong together are refused."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from levels_by_hand import levels_one_by_one, scaled_difference
from refusals import error_of
from safetensors.torch import load_file, save_file
from tiny_models import HIDDEN_SIZE, N_BLOCKS, dump_shard, make_dump, save_positions, save_unembedding

from onejump.activations.reading import Activations
from onejump.files.tables import read_table, write_table
from onejump.files.tensors import TensorFile, write_tensors
from onejump.models.unembedding import Unembedding


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


def test_one_kind_of_text_is_read_alone_where_there_are_two(dump, tmp_path):
    table = read_table(dump.positions)
    origins = ["generated" if number % 3 else "corpus" for number in range(len(table))]
    positions = tmp_path / "p.parquet"
    write_table(positions, table.append_column("origin", pa.array(origins)))
    of = {row["sentence_id"]: origin for row, origin in zip(table.to_pylist(), origins, strict=True)}
    given = dump.train, positions, Unembedding.load(dump.unembedding), "train"
    every = Activations(*given)
    for origin in ("corpus", "generated"):
        own = [i for i, number in enumerate(every.sentence_ids.tolist()) if of[number] == origin]
        found = Activations(*given, origin=origin)
        assert 0 < len(own) < len(every) and found.sentence_ids.tolist() == every.sentence_ids[own].tolist()
        assert torch.equal(found.level(2), every.level(2)[own])
        assert found.sha256 != every.sha256
    message = error_of(lambda: Activations(dump.train, dump.positions, *given[2:], origin="generated"))
    assert message.startswith(f"{dump.positions}: has no column origin, only ")


def test_not_first_of_sentences_that_stop_at_their_first_token_is_refused(dump, tmp_path):
    rows = [row | {"position": 0, "input_ids": row["input_ids"][:1]} for row in read_table(dump.positions).to_pylist()]
    positions = tmp_path / "p.parquet"
    write_table(positions, pa.Table.from_pylist(rows, read_table(dump.positions).schema))
    paths = [tmp_path / "0", tmp_path / "1"]
    for shard, path in enumerate(paths):
        dump_shard(dump.source, positions, dump.unembedding, "test", shard, path, "float32")
    first = replace(dump, positions=positions, test=paths)
    assert len(activations_of(first, "test")) == 9
    message = error_of(lambda: activations_of(first, "test", "not_first"))
    assert message.endswith("no row of split 'test' is left with positions: not_first")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept_on_disk_and_read_as_float32(tmp_path, dump, dtype):
    half = make_dump(tmp_path, 23, 9, shards={"train": 1, "test": 1}, dtype=dtype)
    assert str(TensorFile(half.test[0]).tensor("level.02").dtype) == f"torch.{dtype}"
    found = activations_of(half, "test").level(2)
    assert found.dtype == torch.float32
    exact = activations_of(dump, "test").level(2)
    assert 0 < scaled_difference([found], [exact]) < {"bfloat16": 0.05, "float16": 0.01}[dtype]


def test_shards_of_another_model_are_refused(dump, other_dump):
    message = error_of(lambda: Activations(other_dump.test, dump.positions, Unembedding.load(dump.unembedding), "test"))
    assert message.startswith(f"{other_dump.test[0]}: comes from model with unembedding ")
    assert TensorFile(dump.unembedding).sha256 in message
    assert TensorFile(other_dump.unembedding).sha256 in message


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
    ("changes", "found"),
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
    assert message.startswith(f"{path}: ")
    assert "33" in message
    assert "32" in message


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
