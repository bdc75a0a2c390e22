"""What a test does when a part of the machine is not there."""

import os

import pytest


def do_without(reason: str) -> None:
    """Skip, and say why; but continuous integration has every part, so there it is a failure."""
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{reason}, and continuous integration does not go without")
    pytest.skip(reason)
