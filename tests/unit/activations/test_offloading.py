"""States that wait in the host's memory or in a file are those that wait on the device, bit for bit."""

from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from models_by_blocks import CPU, saved, sentences_of
from refusals import error_of
from test_dump_by_blocks import run_until_power_is_cut
from tiny_architectures import TRIED, tiny_architecture
from tiny_models import tiny_model

from onejump.activations import dump, offloading
from onejump.activations.dump import gather_levels
from onejump.activations.offloading import Offloaded, OnDevice, find_place, new_tensor
from onejump.files.checkpoints import Checkpoint
from onejump.models.anatomy import Anatomy

GPU = namedtuple("Device", "type")("cuda")


def free(monkeypatch, device: float, host: float) -> None:
    """So many bytes are free."""
    for module in (offloading, dump):
        monkeypatch.setattr(module, "free_bytes", lambda place: host if place.type == "cpu" else device)


def offloaded(monkeypatch, folder: Path | None) -> Offloaded:
    """States wait in the host's memory or in a folder, whatever is free."""
    place = Offloaded(folder)
    monkeypatch.setattr(dump, "find_place", lambda *_: place)
    return place


@pytest.mark.parametrize("model_type", TRIED)
@pytest.mark.parametrize("in_file", [False, True])
def test_states_that_wait_elsewhere_are_those_of_the_whole_model(model_type, in_file, tmp_path, monkeypatch):
    one = saved(tiny_architecture(model_type), tmp_path / "model")
    place = offloaded(monkeypatch, tmp_path if in_file else None)
    assert torch.equal(one.streamed(one.blocks()), one.whole())
    assert len(place._held) > 1  # batches
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_only_the_pass_that_runs_has_its_states_in_memory(tmp_path, monkeypatch):
    one, place = saved(tiny_model("llama"), tmp_path), offloaded(monkeypatch, None)
    states, full, running = [], [], place.running

    @contextmanager
    def looking(current):
        with running(current):
            yield
            states.append((current, current.arguments[0][0].untyped_storage()))
            full.append((current, {owner for owner, storage in states if storage.nbytes() > 0}))

    monkeypatch.setattr(place, "running", looking)
    one.streamed(one.blocks())
    assert len(full) == 4 * len(place._held)
    assert all(owners == {current} for current, owners in full)


def test_a_dump_whose_states_wait_in_memory_resumes_with_the_same_states(tmp_path, monkeypatch):
    one = saved(tiny_model("gemma3"), tmp_path / "model")
    offloaded(monkeypatch, None)

    def job() -> torch.Tensor:
        return one.streamed(one.blocks(), checkpoint=Checkpoint(tmp_path / "out", {}, CPU))

    run_until_power_is_cut(job, monkeypatch)
    assert (tmp_path / ".out.checkpoint").exists()
    reads, resume = [], dump.resume
    monkeypatch.setattr(dump, "resume", lambda *given: reads.append(given[1]) or resume(*given))
    assert torch.equal(job(), one.whole())
    assert set(reads) == {2}


def test_what_fits_in_no_memory_is_in_files_without_a_name_and_is_not_saved(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ONEJUMP_CHECKPOINT_SECONDS", "0")
    one = saved(tiny_model("gemma3"), tmp_path / "model")
    free(monkeypatch, 0, 100)
    monkeypatch.setattr(Checkpoint, "save", None)
    blocks = one.blocks()
    checkpoint = Checkpoint(tmp_path / "new" / "out", {}, CPU)
    anatomy = Anatomy(blocks.model, **one.anatomy.paths)
    found, _ = gather_levels(anatomy, sentences_of(), 24, None, checkpoint, blocks)
    assert torch.equal(found, one.whole())
    assert f"wait in a file in {tmp_path}/new" in caplog.text
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("device", "on_device", "host", "expected"),
    [
        (GPU, 207, 0, "device"),
        (GPU, 206, 307, "host"),
        (GPU, 206, 306, "file"),
        (CPU, 0, 314, "device"),
        (CPU, 999, 313, "file"),
    ],
)
def test_states_wait_where_as_much_room_is_left_as_they_take(
    device, on_device, host, expected, tmp_path, monkeypatch, caplog
):
    free(monkeypatch, on_device, host)
    place = find_place(100, device, 7, 100, tmp_path)
    found = "device" if type(place) is OnDevice else "file" if place.in_file else "host"
    assert found == expected
    assert ("the states of sentences under way" in caplog.text) == (expected != "device")


def test_a_disk_without_room_for_the_states_is_refused(tmp_path, monkeypatch):
    free(monkeypatch, 0, 0)
    message = error_of(lambda: find_place(1e15, CPU, 0, 0, tmp_path))
    assert message.startswith(f"{tmp_path}/states: needs 1,000,000.00 GB, but its disk has ")


def test_a_tensor_in_a_file_holds_what_is_written_to_it_and_leaves_no_file(tmp_path):
    mapped = new_tensor((3, 5), torch.bfloat16, tmp_path / "new")
    values = torch.randn(3, 5).to(torch.bfloat16)
    mapped.copy_(values)
    assert torch.equal(mapped, values)
    assert list((tmp_path / "new").iterdir()) == []
    message = error_of(lambda: new_tensor((2**50,), torch.uint8, tmp_path))
    assert message.startswith(f"{tmp_path}: no room for states (")
