"""Sealed files read back as written; an altered one is refused in one line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import error_of, flipped

from onejump.files.atomic import OnejumpError
from onejump.files.sealed import read_sealed_json, read_sealed_svg, seal_svg, write_sealed_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text().filter(lambda key: key != "sha256"), JSON, max_size=4))
def test_json_reads_back_as_written_in_its_order(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("sealed") / "x.json"
    write_sealed_json(path, value)
    found = read_sealed_json(path)
    assert (found, list(found)) == (value, list(value))


def check_flips(path, read, whole):
    """Each bit flipped is refused by name, or the same is read."""
    content, refusals = path.read_bytes(), []
    for position in range(len(content)):
        path.write_bytes(flipped(content, position, position % 8))
        try:
            assert read(path) == whole
        except OnejumpError as error:
            refusals.append(str(error))
    assert all(refusal.startswith(f"{path}: ") and "\n" not in refusal for refusal in refusals)
    assert len(refusals) > 0.8 * len(content)


def test_json_with_a_flipped_bit_is_refused_or_read_the_same(tmp_path):
    value = {"ojfa": 3, "scores": [0.25, -1e-9, 3.0], "name": "é", "nested": {"a": None, "b": True}}
    write_sealed_json(tmp_path / "x.json", value)
    check_flips(tmp_path / "x.json", read_sealed_json, value)


def test_an_svg_reads_back_as_sealed_and_with_a_flipped_bit_it_is_refused(tmp_path):
    path, image = tmp_path / "x.svg", b'<?xml version="1.0"?>\n<svg><path d="M0 0"/></svg>\n'
    path.write_bytes(image)
    seal_svg(path)
    assert path.read_bytes().startswith(image)
    assert read_sealed_svg(path) == image
    check_flips(path, read_sealed_svg, image)


@pytest.mark.parametrize("content", [b"", b"3", b"[]", b"{}", b'{"a": 1}', b"[" * 10**5, b"\xff"])
def test_json_without_its_digest_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    assert str(tmp_path) in error_of(lambda: read_sealed_json(tmp_path / "x.json"))


@pytest.mark.parametrize("content", [b"", b"<svg/>"])
def test_an_svg_without_its_digest_is_refused(tmp_path, content):
    (tmp_path / "x.svg").write_bytes(content)
    assert "does not match its checksum" in error_of(lambda: read_sealed_svg(tmp_path / "x.svg"))
