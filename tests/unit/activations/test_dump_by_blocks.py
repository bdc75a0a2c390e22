"""A dump that holds one block at a time gives the states of the whole model, bit for bit, and resumes with them."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models_by_blocks import CPU, saved, sentences_of
from refusals import error_of
from safetensors.torch import load_file, save_file
from tiny_architectures import TRIED, tiny_architecture
from tiny_models import make_dump, save_tiny_model, tiny_model

from onejump import stages
from onejump.activations import dump as stages_dump
from onejump.activations.dump import gather_levels
from onejump.activations.resuming import resumable
from onejump.files.checkpoints import Checkpoint
from onejump.files.tensors import TensorFile
from onejump.models.anatomy import Anatomy
from onejump.models.blocks import Blocks
from onejump.models.sources import ModelSource
from onejump.models.weights import Weights
from onejump.parameters import Compute, Model


class PowerCut(BaseException):
    """The end of a job at any moment."""


def reads_of(monkeypatch) -> Counter:
    """How often each tensor is read from the files."""
    counts, mapped = Counter(), Weights.map

    def counted(self, name):
        counts[name] += 1
        return mapped(self, name)

    monkeypatch.setattr(Weights, "map", counted)
    return counts


# ---------------------------------------------------------------------------------------------------------- the states


@pytest.mark.parametrize("model_type", TRIED)
def test_states_are_those_of_the_whole_model_and_each_weight_is_read_once(model_type, tmp_path, monkeypatch):
    one = saved(tiny_architecture(model_type), tmp_path)
    expected, counts = one.whole(), reads_of(monkeypatch)
    blocks = one.blocks()
    absent = {name for name, tensor in blocks.model.state_dict().items() if tensor.is_meta}
    found = one.streamed(blocks)
    assert torch.equal(found, expected)
    assert set(counts.values()) == {1}
    assert absent  # blocks were not there before
    assert {name for name, tensor in blocks.model.state_dict().items() if tensor.is_meta} == absent


@pytest.mark.parametrize(("kept", "dtype"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float16")])
def test_states_are_the_same_where_weights_are_cast_while_they_are_loaded(kept, dtype, tmp_path):
    one = saved(tiny_model("gemma3", dtype=kept), tmp_path, dtype)
    found = one.streamed(one.blocks(dtype))
    assert found.dtype == getattr(torch, dtype)
    assert torch.equal(found, one.whole())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_states_are_the_same_from_several_files_of_weights(family, tmp_path):
    one = saved(tiny_model(family), tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert torch.equal(one.streamed(one.blocks()), one.whole())


def test_names_without_the_prefix_of_the_model_are_found(tmp_path):
    one = saved(tiny_model("gpt2"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    plain = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    assert plain.keys().isdisjoint(weights.keys() - {"lm_head.weight"})
    save_file(plain, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(one.streamed(one.blocks()), one.whole())


def test_one_block_and_the_next_one_are_in_memory_and_no_more(tmp_path, monkeypatch):
    one = saved(tiny_model("llama"), tmp_path)
    blocks, seen = one.blocks(), []
    layers = blocks.model.model.layers

    def look(block, *_) -> None:
        loaded = [k for k, layer in enumerate(layers) if not any(p.is_meta for p in layer.parameters())]
        partly = [k for k, layer in enumerate(layers) if not all(p.is_meta for p in layer.parameters())]
        seen.append((loaded, partly, list(blocks._ahead)))

    for layer in layers:
        layer.register_forward_hook(look)
    one.streamed(blocks)
    batches = len(seen) // 3
    expected = [([k], [k], [k + 1] * (k < 2)) for k in range(3) for _ in range(batches)]
    assert batches > 1 and seen == expected


def test_the_output_head_is_not_even_loaded_unless_it_is_the_embedding(tmp_path):
    untied, tied = saved(tiny_model("llama"), tmp_path / "a"), saved(tiny_model("gemma2"), tmp_path / "b")
    assert untied.blocks().model.lm_head.weight.is_meta
    model = tied.blocks().model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight.is_meta


def test_a_dump_that_runs_out_of_memory_starts_again_with_smaller_batches(tmp_path, monkeypatch, caplog):
    one = saved(tiny_model("llama"), tmp_path)
    blocks = one.blocks()
    layer = blocks.model.model.layers[1]
    forward = layer.forward

    def limited(h, *args, **options):
        if h[..., 0].numel() > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(h, *args, **options)

    monkeypatch.setattr(layer, "forward", limited)
    anatomy = Anatomy(blocks.model, **one.anatomy.paths)
    found, budget = gather_levels(anatomy, sentences_of(), 48, None, None, blocks)
    assert budget <= 24
    assert "out of memory with 48 tokens a batch" in caplog.text
    assert torch.equal(found, one.whole(budget))
    monkeypatch.setattr(layer, "forward", lambda *_, **__: limited(torch.empty(1, 99, 1)))
    message = error_of(lambda: one.streamed(blocks))
    assert message.startswith("one sentence of ")
    assert "beside a block and the other sentences' states; let more jobs share the sentences" in message


# ------------------------------------------------------------------------------------------------------- interruptions


def cut_power_at(blocks: Blocks, k: int) -> list[int]:
    """Let the job end when it is about to load block k; returns the blocks that it loads."""
    loads, load = [], blocks._load

    def wrapped(number: int) -> None:
        if number == k:
            raise PowerCut
        loads.append(number)
        load(number)

    blocks._load = wrapped
    return loads


def run_until_power_is_cut(job: Callable[[], object], monkeypatch) -> None:
    """The job ends when it is about to load block 2, with a checkpoint of all before."""
    load = Blocks._load

    def failing(self, k: int) -> None:
        if k == 2:
            raise PowerCut
        load(self, k)

    with monkeypatch.context() as context:
        context.setenv("ONEJUMP_CHECKPOINT_SECONDS", "0")
        context.setattr(Blocks, "_load", failing)
        with pytest.raises(PowerCut):
            job()


@pytest.mark.parametrize("model_type", TRIED)
def test_a_dump_goes_on_before_the_block_where_it_was_broken_off(model_type, tmp_path, monkeypatch):
    monkeypatch.setenv("ONEJUMP_CHECKPOINT_SECONDS", "0")
    one = saved(tiny_architecture(model_type), tmp_path)
    last = len(one.anatomy.blocks) - 1
    blocks = one.blocks()
    cut_power_at(blocks, last)
    with pytest.raises(PowerCut):
        one.streamed(blocks, checkpoint=Checkpoint(tmp_path / "out", {}, CPU))
    blocks = one.blocks()
    loads = cut_power_at(blocks, -1)
    found = one.streamed(blocks, checkpoint=Checkpoint(tmp_path / "out", {}, CPU))
    assert loads == [last]
    assert torch.equal(found, one.whole())


def test_a_model_that_keeps_more_between_its_blocks_starts_anew(tmp_path, monkeypatch, caplog):
    """The last block also adds what the first one has given, which it finds in a dict of its arguments."""
    monkeypatch.setenv("ONEJUMP_CHECKPOINT_SECONDS", "0")
    one = saved(tiny_model("llama"), tmp_path)

    def remembering(model):
        first, *_, last = model.model.layers
        run, decoder = last.forward, model.model.forward
        forward_of_first = first.forward

        def begin(*args, **options):
            return decoder(*args, **options, kept={})

        def give(h, *args, kept, **options):
            kept["first"] = forward_of_first(h, *args, **options)
            return kept["first"]

        def add(h, *args, kept, **options):
            return run(h, *args, **options) + kept["first"]

        monkeypatch.setattr(model.model, "forward", begin)
        monkeypatch.setattr(first, "forward", give)
        monkeypatch.setattr(last, "forward", add)

    blocks = one.blocks()
    remembering(blocks.model)
    remembering(one.anatomy.model)
    found = one.streamed(blocks, checkpoint=Checkpoint(tmp_path / "out", {}, CPU))
    assert torch.equal(found, one.whole())
    assert "keeps more than hidden states between its blocks" in caplog.text
    assert not list(tmp_path.glob(".*"))


def test_what_no_checkpoint_can_hold_is_not_resumed(tmp_path):
    one = saved(tiny_model("llama"), tmp_path)
    ids = torch.ones(1, 4, dtype=torch.long)
    with torch.inference_mode(), one.anatomy.passes() as begin:
        standing, before = begin(ids), begin(ids)
        assert next(before) is not None
        assert not resumable([before], begin(ids))  # before the first block there is nothing to save
        for _ in range(2):
            next(standing)
        assert resumable([standing], begin(ids))
        assert torch.equal(standing.given, standing.arguments[0][0])
        standing.given = (standing.given, object())
        assert not resumable([standing], begin(ids))


# ---------------------------------------------------------------------------------------------------------- the stages


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("dump"), 23, 9, "gemma3", shards={"train": 1, "test": 1})


def run(dump, out: Path, load: str, source: ModelSource | None = None, **options) -> Path:
    model = Model((source or dump.source).location)
    stages.dump_activations(
        *(model, Compute("cpu"), dump.unembedding, dump.positions, "train", [0], [out], "float32", 64),
        load=load,
        **options,
    )
    return out


def test_stages_make_the_same_whether_the_model_is_held_whole_or_a_block_at_a_time(dump, tmp_path):
    whole, blocks = (TensorFile(run(dump, tmp_path / load, load)) for load in ("whole", "blocks"))
    assert (whole.metadata["load"], blocks.metadata["load"]) == ("whole", "blocks")
    assert TensorFile(run(dump, tmp_path / "auto", "auto")).metadata["load"] == "whole"  # it is small
    assert whole.names == blocks.names
    assert all(torch.equal(whole.tensor(name), blocks.tensor(name)) for name in whole.names)
    stages.extract_unembedding(Model(dump.source.location), tmp_path / "u", load="blocks")
    assert (tmp_path / "u").read_bytes() == dump.unembedding.read_bytes()


def test_a_dump_by_blocks_that_is_broken_off_ends_with_the_same_bytes(dump, tmp_path, monkeypatch, capsys):
    expected = run(dump, tmp_path / "expected", "blocks").read_bytes()
    run_until_power_is_cut(lambda: run(dump, tmp_path / "out", "blocks"), monkeypatch)
    assert not (tmp_path / "out").exists()
    assert run(dump, tmp_path / "out", "blocks").read_bytes() == expected
    assert "resuming from" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def three_shards(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("three"), 23, 9, "gemma3", shards={"train": 3, "test": 1}, token_budget=64)


def contents(path: Path) -> tuple[dict, dict]:
    """The metadata of a shard but for how the model was held, and its tensors as bytes."""
    file = TensorFile(path)
    facts = {key: value for key, value in file.metadata.items() if key not in ("load", "sha256")}
    return facts, {name: file.tensor(name).numpy().tobytes() for name in file.names}


def run_three(dump, folder: Path, load: str) -> list[tuple[dict, dict]]:
    """The three shards, dumped in one job."""
    outs = [folder / name for name in "abc"]
    options = dump.unembedding, dump.positions, "train", [0, 1, 2], outs, "float32", 64
    stages.dump_activations(Model(dump.source.location), Compute("cpu"), *options, load=load)
    assert sorted(folder.iterdir()) == outs
    return list(map(contents, outs))


def test_several_shards_in_one_job_are_those_of_a_job_each_and_read_the_weights_once(
    three_shards, tmp_path, monkeypatch
):
    expected = list(map(contents, three_shards.train))
    assert run_three(three_shards, tmp_path / "whole", "whole") == expected
    counts = reads_of(monkeypatch)
    assert run_three(three_shards, tmp_path / "blocks", "blocks") == expected
    assert set(counts.values()) == {1}


def test_a_job_of_several_shards_that_is_broken_off_goes_on(three_shards, tmp_path, monkeypatch):
    expected = run_three(three_shards, tmp_path / "expected", "blocks")
    run_until_power_is_cut(lambda: run_three(three_shards, tmp_path / "out", "blocks"), monkeypatch)
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    assert run_three(three_shards, tmp_path / "out", "blocks") == expected


def test_a_state_that_is_not_finite_leaves_no_shard_at_all(three_shards, tmp_path, monkeypatch):
    gather = stages_dump.gather_levels

    def broken(*given):
        levels, budget = gather(*given)
        levels[1, -1] = torch.nan
        return levels, budget

    monkeypatch.setattr(stages_dump, "gather_levels", broken)
    message = error_of(lambda: run_three(three_shards, tmp_path / "out", "blocks"))
    assert "NaN or infinite hidden state at level 1" in message
    assert not list((tmp_path / "out").glob("*"))


def test_an_output_is_needed_for_each_shard(three_shards, tmp_path):
    options = three_shards.unembedding, three_shards.positions, "train", [0, 1], [tmp_path / "a"]
    message = error_of(lambda: stages.dump_activations(Model("x"), Compute("cpu"), *options))
    assert message == "--out: 1 given for 2 --shard; give one for each"


def test_states_that_do_not_fit_on_the_disk_are_refused_before_any_pass(dump, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr("onejump.activations.dump.gather_levels", None)
    message = error_of(lambda: run(dump, tmp_path / "new" / "out", "blocks"))
    assert message == f"{tmp_path}/new/out: needs 0.00 GB, but its disk has 0.00 GB free; make room"
    assert not (tmp_path / "new").exists()


def test_a_model_without_the_blocks_that_its_unembedding_names_is_refused(dump, tmp_path):
    other = save_tiny_model("gpt2", tmp_path / "other")
    message = error_of(lambda: run(dump, tmp_path / "out", "blocks", other))
    assert message == f"model {other.location}: has no model.layers, as its unembedding says; extract it again"
