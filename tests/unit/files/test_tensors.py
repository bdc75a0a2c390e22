"""Tensors read back as written; an altered file is refused."""

import numpy as np
import pytest
import torch
from refusals import error_of, flipped
from safetensors.torch import save_file

from onejump.files.tensors import TensorFile, write_tensors

TENSORS = {"ab": torch.arange(3), "x": torch.tensor([[1.5, -2.0, 0.25], [3.0, 4.0, -5.0]])}

METADATA = {"kind": "test", "n": 3, "softcap": None}


def read_all(path):
    return TensorFile(path).tensors()


def test_files_are_readable_as_the_umask_says(tmp_path):
    write_tensors(tmp_path / "t.safetensors", TENSORS, METADATA)
    (tmp_path / "plain").touch()
    assert (tmp_path / "t.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(3,), (4, 5), (0, 5), (2, 3, 4)])
def test_tensors_of_every_dtype_and_shape_read_back_as_written(tmp_path, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    tensor = (100 * torch.randn(shape, generator=generator)).to(dtype)
    write_tensors(tmp_path / "t", {"x": tensor, "other": torch.ones(2)}, {})
    file = TensorFile(tmp_path / "t")
    found = file.tensor("x")
    assert found.dtype == dtype
    assert torch.equal(found, tensor)
    assert file.names == ["other", "x"]


@pytest.mark.parametrize("rows", [slice(0, 4), slice(1, 3), slice(2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_rows_of_a_tensor_are_those_of_the_whole_whenever_it_is_verified(tmp_path, rows, dtype):
    tensor = torch.arange(20).reshape(4, 5).to(dtype)
    write_tensors(tmp_path / "t", {"x": tensor}, {})
    file = TensorFile(tmp_path / "t")
    for _ in range(2):
        assert torch.equal(file.tensor("x", rows), tensor[rows])


def test_damage_outside_the_rows_asked_for_is_found(tmp_path):
    write_tensors(tmp_path / "t", {"x": torch.ones(100, 5)}, {})
    content = bytearray((tmp_path / "t").read_bytes())
    content[-1] ^= 1
    (tmp_path / "t").write_bytes(content)
    assert "does not match its checksum" in error_of(lambda: TensorFile(tmp_path / "t").tensor("x", slice(0, 1)))


def test_an_array_is_the_tensor_and_its_damage_is_found(tmp_path):
    values = torch.arange(6.0).view(2, 3) / 7
    write_tensors(tmp_path / "t", {"x": values}, {})
    np.testing.assert_array_equal(TensorFile(tmp_path / "t").array("x"), values)
    content = bytearray((tmp_path / "t").read_bytes())
    content[-1] ^= 1
    (tmp_path / "t").write_bytes(content)
    assert "does not match its checksum" in error_of(lambda: TensorFile(tmp_path / "t").array("x"))


def test_a_tensor_without_dimensions_reads_back_as_written(tmp_path):
    write_tensors(tmp_path / "t", {"x": torch.tensor(1.5)}, {})
    assert torch.equal(read_all(tmp_path / "t")["x"], torch.tensor(1.5))


def test_views_and_parameters_read_back_as_written(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"transposed": base.T, "row": base[1], "parameter": torch.nn.Parameter(base.clone())}
    write_tensors(tmp_path / "t", tensors, {})
    found = read_all(tmp_path / "t")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_nan_and_infinity_read_back_as_written(tmp_path):
    tensor = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    write_tensors(tmp_path / "t", {"x": tensor}, {})
    assert torch.equal(read_all(tmp_path / "t")["x"].view(torch.int32), tensor.view(torch.int32))


def test_metadata_read_back_as_written(tmp_path):
    write_tensors(tmp_path / "t", TENSORS, METADATA | {"eps": 1e-5, "list": [1, 2]})
    file = TensorFile(tmp_path / "t")
    assert file.metadata["kind"] == "test"
    assert [file.value(key) for key in ("n", "softcap", "eps", "list")] == [3, None, 1e-5, [1, 2]]


def test_the_same_content_gives_the_same_bytes_and_digest(tmp_path):
    one = write_tensors(tmp_path / "1", TENSORS, METADATA)
    two = write_tensors(tmp_path / "2", {name: tensor.clone() for name, tensor in TENSORS.items()}, dict(METADATA))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert one == two == TensorFile(tmp_path / "1").sha256


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (TENSORS | {"x": TENSORS["x"] + 1e-6}, METADATA),
        (TENSORS | {"x": TENSORS["x"].reshape(3, 2)}, METADATA),
        (TENSORS | {"x": TENSORS["x"].view(torch.int32)}, METADATA),
        (TENSORS | {"y": TENSORS["x"].clone()}, METADATA),
        ({"ba": TENSORS["ab"], "x": TENSORS["x"]}, METADATA),
        (TENSORS, METADATA | {"n": 4}),
        (TENSORS, METADATA | {"more": 1}),
    ],
    ids=["value", "shape", "dtype", "one more tensor", "tensor name", "metadata value", "one more key"],
)
def test_any_other_content_gives_another_digest(tmp_path, tensors, metadata):
    assert write_tensors(tmp_path / "1", TENSORS, METADATA) != write_tensors(tmp_path / "2", tensors, metadata)


def test_a_safetensors_file_with_a_bit_flipped_in_any_byte_is_refused_by_name(tmp_path):
    path = tmp_path / "level.safetensors"
    write_tensors(path, TENSORS, METADATA)
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in (position % 8, (position + 3) % 8):
            path.write_bytes(flipped(content, position, bit))
            assert str(path) in error_of(lambda: read_all(path)), f"byte {position}, bit {bit}"
    path.write_bytes(content)
    assert torch.equal(read_all(path)["x"], TENSORS["x"])


def test_a_safetensors_file_cut_short_anywhere_is_refused_by_name(tmp_path):
    path = tmp_path / "level.safetensors"
    write_tensors(path, TENSORS, METADATA)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert str(path) in error_of(lambda: read_all(path)), f"cut to {length} bytes"


def test_a_safetensors_file_with_bytes_after_its_end_is_refused(tmp_path):
    path = tmp_path / "t"
    write_tensors(path, TENSORS, METADATA)
    path.write_bytes(path.read_bytes() + b"\0")
    assert str(path) in error_of(lambda: read_all(path))


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_safetensors_file_of_another_program_is_refused_as_such(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata)
    assert error_of(lambda: TensorFile(path)) == (
        f"{path}: has no sha256 in its metadata, so it was not written by onejump"
    )


def test_a_file_whose_tensors_were_exchanged_is_refused(tmp_path):
    """A header of one run over the data of another: each part is whole, and only the digests tell."""
    path = tmp_path / "t"
    write_tensors(path, TENSORS, METADATA)
    save_file(TENSORS | {"x": TENSORS["x"].flip(0)}, path, TensorFile(path).metadata)
    assert "tensor 'x' does not match its checksum" in error_of(lambda: read_all(path))


def test_a_tensor_that_is_not_there_is_named_with_those_that_are(tmp_path):
    write_tensors(tmp_path / "t", TENSORS, METADATA)
    message = error_of(lambda: TensorFile(tmp_path / "t").tensor("level.07"))
    assert message == f"{tmp_path / 't'}: has no tensor 'level.07', only ab, x"


@pytest.mark.parametrize("read", [lambda file: file.value("eps"), lambda file: file.metadata["eps"]])
def test_a_fact_that_another_version_did_not_write_is_named(tmp_path, read):
    write_tensors(tmp_path / "t", TENSORS, METADATA)
    message = error_of(lambda: read(TensorFile(tmp_path / "t")))
    assert message.startswith(f"{tmp_path / 't'}: has no 'eps' in its metadata, so another version wrote it; remove")
