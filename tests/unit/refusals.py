"""What bad input must meet: an OnejumpError of one line."""

import pytest

from onejump.files.atomic import OnejumpError


def error_of(action) -> str:
    """The message of the OnejumpError that `action()` must raise."""
    with pytest.raises(OnejumpError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message
