"""What can differ on a GPU, against the CPU: `make test-gpu`. Without a GPU it fails."""

import pytest
import torch
from device_stages import require_alike, stages_of
from safetensors.torch import load_file
from tiny_models import ALL_FAMILIES, N_BLOCKS, dump_shard, make_dump

from onejump import stages
from onejump.activations.offloading import Offloaded
from onejump.files.tensors import TensorFile
from onejump.models.devices import DEVICE_LINE, DTYPES, resolve_device
from onejump.parameters import Compute, Model

DEVICE = "cuda"
# How far hidden states may be from those of the CPU, beside the largest of their level.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}


@pytest.fixture(scope="module", autouse=True)
def device() -> torch.device:
    return resolve_device(DEVICE)


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("dump"), 60, 20)


def levels_of(file) -> torch.Tensor:
    """[K+1, N, H] float64 of a shard."""
    tensors = load_file(file)
    return torch.stack([tensors[f"level.{level:02d}"] for level in range(N_BLOCKS + 1)]).double()


def test_auto_is_the_gpu(device):
    assert resolve_device("auto").type == device.type


def test_a_job_names_its_device(device, capsys):
    Compute(DEVICE).start()
    assert capsys.readouterr().err == f"{DEVICE_LINE}{torch.cuda.get_device_name(device)}\n"


def test_all_stages_compute_what_the_cpu_does(dump, tmp_path):
    for name, device in (("expected", "cpu"), ("found", DEVICE)):
        for stage in stages_of(dump, tmp_path / name, Compute(device)).values():
            stage()
    require_alike(tmp_path / "found", tmp_path / "expected")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_dump_has_the_states_of_the_cpu(family, dtype, tmp_path):
    made = make_dump(tmp_path, 12, 20, family, dtype=dtype)
    shard = tmp_path / "on-device.safetensors"
    dump_shard(made.source, made.positions, made.unembedding, "test", 0, shard, dtype, DEVICE)
    found, expected = levels_of(shard), levels_of(made.test[0])
    largest = expected.abs().amax((1, 2), keepdim=True)
    assert ((found - expected).abs() / largest).max() < TOLERANCES[dtype]
    options = Model(made.source.location), Compute(DEVICE), made.unembedding, made.positions, "test", [0]
    stages.dump_activations(*options, [tmp_path / "blocks"], dtype, load="blocks")
    assert torch.equal(levels_of(tmp_path / "blocks"), found)


@pytest.mark.parametrize("in_file", [False, True])
def test_states_that_wait_off_the_device_are_the_same(in_file, dump, tmp_path, monkeypatch):
    options = Model(dump.source.location), Compute(DEVICE), dump.unembedding, dump.positions, "test", [0]
    stages.dump_activations(*options, [tmp_path / "expected"], load="blocks")
    monkeypatch.setattr("onejump.activations.dump.find_place", lambda *_: Offloaded(tmp_path if in_file else None))
    stages.dump_activations(*options, [tmp_path / "found"], load="blocks")
    assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()


def test_out_of_memory_halves_the_batches(device, tmp_path, caplog):
    """A real lack: the process may have six tenths of the memory that the dump took before."""
    made = make_dump(tmp_path, 12, 3000)
    given = made.source, made.positions, made.unembedding, "test", 0
    plain, short = tmp_path / "plain.safetensors", tmp_path / "short.safetensors"
    torch.cuda.reset_peak_memory_stats()
    dump_shard(*given, plain, "float32", DEVICE, token_budget=16384)
    peak, total = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
    try:
        dump_shard(*given, short, "float32", DEVICE, token_budget=16384)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with 16384 tokens a batch" in caplog.text
    budget = int(TensorFile(short).metadata["token_budget"])
    assert budget < 16384
    dump_shard(*given, plain, "float32", DEVICE, token_budget=budget)
    assert plain.read_bytes() == short.read_bytes()
