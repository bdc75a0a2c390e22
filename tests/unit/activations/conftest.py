"""Two dumps of the same sentences."""

import pytest
from tiny_models import make_dump


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """23 training sentences in 3 shards and 9 test sentences in 2."""
    return make_dump(tmp_path_factory.mktemp("dump"), 23, 9, shards={"train": 3, "test": 2})


@pytest.fixture(scope="module")
def other_dump(tmp_path_factory):
    """The same sentences through another model."""
    return make_dump(tmp_path_factory.mktemp("other"), 23, 9, "gpt2", shards={"train": 3, "test": 2})
