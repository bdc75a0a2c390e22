"""A job that is broken off and run again ends with the same bytes; checkpoints of other jobs are not used."""

import shutil
from pathlib import Path

import pytest
import torch
from refusals import error_of
from tiny_models import dump_shard, make_dump

from onejump.files.checkpoints import Checkpoint
from onejump.jumps.objective import Rows
from onejump.parameters import Compute, Dump
from onejump.stages import fit_jump

CPU = torch.device("cpu")


class PowerCut(BaseException):
    """The end of a job at any moment."""


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("dump"), n_train=60, n_test=10, shards={"train": 1, "test": 1})


@pytest.fixture(autouse=True)
def checkpoint_at_every_step(monkeypatch):
    monkeypatch.setenv("ONEJUMP_CHECKPOINT_SECONDS", "0")


def cut_power_after(monkeypatch, owner, name: str, calls: int) -> None:
    """Let the call number `calls` + 1 of a function be the last thing that a job does."""
    function, count = getattr(owner, name), iter(range(calls))

    def wrapped(*args, **kwargs):
        if next(count, None) is None:
            raise PowerCut
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def fit(dump, path: Path, level: int | None, joint_batches: str = "mixed", seed: int = 0) -> bytes:
    shards = Dump(dump.unembedding, dump.positions, dump.train)
    name = "joint" if level is None else str(level)
    fit_jump(shards, Compute("cpu"), [name], [path], "adam", rank=2, joint_batches=joint_batches, seed=seed)
    return path.read_bytes()


@pytest.mark.parametrize(("level", "joint_batches"), [(1, "mixed"), (None, "mixed"), (None, "per_level")])
@pytest.mark.parametrize("epochs", [1, 37])
def test_a_fit_goes_on_where_it_was_broken_off(dump, tmp_path, monkeypatch, capsys, level, joint_batches, epochs):
    whole = fit(dump, tmp_path / "whole.safetensors", level, joint_batches)
    assert "resuming" not in capsys.readouterr().err
    path = tmp_path / "jump.safetensors"
    with monkeypatch.context() as context:
        cut_power_after(context, Rows, "mse", epochs)
        with pytest.raises(PowerCut):
            fit(dump, path, level, joint_batches)
    assert [file.name for file in tmp_path.glob(".*")] == [".jump.safetensors.checkpoint"]
    with monkeypatch.context() as context:
        cut_power_after(context, Rows, "mse", 80 - epochs + 1)  # the epochs left, and the training error of the end
        assert fit(dump, path, level, joint_batches) == whole
    assert f"resuming from {tmp_path}/.jump.safetensors.checkpoint" in capsys.readouterr().err
    assert list(tmp_path.glob(".*")) == []


def test_a_dump_goes_on_where_it_was_broken_off(dump, tmp_path, monkeypatch, capsys):
    path = tmp_path / "shard.safetensors"
    arguments = (dump.source, dump.positions, dump.unembedding, "train", 0, path, "float32", CPU, 64)
    dump_shard(*arguments)
    whole = path.read_bytes()
    path.unlink()
    with monkeypatch.context() as context:
        cut_power_after(context, Checkpoint, "save", 3)
        with pytest.raises(PowerCut):
            dump_shard(*arguments)
    assert not path.exists()
    capsys.readouterr()
    dump_shard(*arguments)
    assert path.read_bytes() == whole
    said = capsys.readouterr().err
    assert "resuming from" in said
    assert "train shard 0: 100%|" in said.splitlines()[-1]
    assert list(tmp_path.glob(".*")) == []


def test_a_checkpoint_of_another_seed_level_or_corpus_is_not_used(dump, tmp_path, monkeypatch, capsys):
    path = tmp_path / "jump.safetensors"
    with monkeypatch.context() as context:
        cut_power_after(context, Rows, "mse", 5)
        with pytest.raises(PowerCut):
            fit(dump, path, 1)
    left = tmp_path / ".jump.safetensors.checkpoint"
    other = make_dump(tmp_path / "other", n_train=60, n_test=10, shards={"train": 1, "test": 1}, seed=1)
    for source, level, seed in ((dump, 1, 1), (dump, 2, 0), (other, 1, 0)):
        expected = fit(source, tmp_path / "expected.safetensors", level, seed=seed)
        shutil.copy(left, tmp_path / ".again.safetensors.checkpoint")
        assert fit(source, tmp_path / "again.safetensors", level, seed=seed) == expected
    assert "resuming" not in capsys.readouterr().err


def test_state_comes_back_as_it_was_and_only_to_the_same_computation(tmp_path, monkeypatch):
    state = {"a": {0: {"x": torch.arange(3), "y": [0.1, None, True]}}, "b": torch.tensor(2.0), "c": {}}
    checkpoint = Checkpoint(tmp_path / "out", {"seed": 0}, CPU)
    assert checkpoint.load() is None
    checkpoint.save(state)
    found = Checkpoint(tmp_path / "out", {"seed": 0}, CPU).load()
    assert found["a"][0]["x"].tolist() == [0, 1, 2]
    assert (found["a"][0]["y"], found["b"].item(), found["c"]) == ([0.1, None, True], 2.0, {})
    assert Checkpoint(tmp_path / "out", {"seed": 1}, CPU).load() is None
    monkeypatch.setattr("onejump.files.checkpoints._code_digest", lambda: "of other code")
    assert Checkpoint(tmp_path / "out", {"seed": 0}, CPU).load() is None


def test_a_damaged_checkpoint_is_not_used(tmp_path):
    checkpoint = Checkpoint(tmp_path / "out", {}, CPU)
    checkpoint.save({"x": torch.ones(4)})
    data = bytearray(checkpoint.path.read_bytes())
    data[-1] ^= 1
    checkpoint.path.write_bytes(data)
    assert checkpoint.load() is None


def test_short_jobs_write_none(tmp_path, monkeypatch):
    monkeypatch.delenv("ONEJUMP_CHECKPOINT_SECONDS")
    assert not Checkpoint(tmp_path / "out", {}, CPU).due
    monkeypatch.setenv("ONEJUMP_CHECKPOINT_SECONDS", "0")
    assert Checkpoint(tmp_path / "out", {}, CPU).due


def test_a_wrong_interval_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEJUMP_CHECKPOINT_SECONDS", "often")
    message = error_of(lambda: Checkpoint(tmp_path / "out", {}, CPU))
    assert message == "ONEJUMP_CHECKPOINT_SECONDS is 'often', expected a number of seconds; fix or unset it"
