"""One Jump Fits All: low-rank early-exit jumps, their exact optimum, and the study of both.

The public interface is `Jump`, a published jump, and `OnejumpError`, what every error is that a user can fix.
docs/api.md describes both; what is not there may change from one version to the next.
"""

from typing import TYPE_CHECKING

from onejump.files.atomic import OnejumpError

if TYPE_CHECKING:
    from onejump.sharing.published import PublishedJump as Jump

__all__ = ["Jump", "OnejumpError"]


def __getattr__(name: str):
    """`Jump`, once it is asked for: it needs PyTorch, which takes a second to import."""
    if name == "Jump":
        from onejump.sharing.published import PublishedJump

        return PublishedJump
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
