"""One Jump Fits All: low-rank early-exit jumps, their exact optimum, and the study of both.

The public interface is `Jump`, a published jump, `plot_trajectory`, which draws what it predicts at every level, and
`OnejumpError`, what every error is that a user can fix. docs/api.md describes them; what is not there may change from
one version to the next.
"""

from typing import TYPE_CHECKING

from onejump.files.atomic import OnejumpError

if TYPE_CHECKING:
    from onejump.report.plots.trajectory import plot_trajectory
    from onejump.sharing.published import PublishedJump as Jump

__all__ = ["Jump", "OnejumpError", "plot_trajectory"]


def __getattr__(name: str):
    """What needs PyTorch or Matplotlib, which take a second to import, once it is asked for."""
    if name == "Jump":
        from onejump.sharing.published import PublishedJump

        return PublishedJump
    if name == "plot_trajectory":
        from onejump.report.plots.trajectory import plot_trajectory

        return plot_trajectory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
