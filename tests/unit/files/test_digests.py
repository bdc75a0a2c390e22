"""Digests of files."""

import hashlib

from refusals import OTHER_SHA256, error_of

from onejump.files.digests import check_sha256, sha256_of_file


def test_sha256_of_a_file_is_the_sha256_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    assert sha256_of_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_a_file_with_another_digest_is_refused_with_both(tmp_path):
    (tmp_path / "f").write_bytes(b"the data")
    message = error_of(lambda: check_sha256(tmp_path / "f", OTHER_SHA256))
    assert str(tmp_path / "f") in message
    assert OTHER_SHA256 in message
    assert sha256_of_file(tmp_path / "f") in message
