"""Progress bars for long stages: they move on a terminal, and are a line every half minute in a log."""

import sys
from collections.abc import Iterable
from typing import TextIO

from tqdm import tqdm


class _Lines:
    """A stream in which each state of a bar is a line of its own, not one that returns to its beginning."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if state := text.strip():
            self._stream.write(state + "\n")

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(steps: Iterable | None, desc: str | None, unit: str, total: int | None = None) -> tqdm:
    """A bar over `steps`, or one of `total` units that is moved by `update`.

    Args:
        steps: what is gone through; None for a bar that is moved by hand.
        desc: what goes on, before the bar; None for no bar.
        unit: what is counted.
        total: how many there are, where `steps` does not tell.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        steps,
        desc=desc,
        unit=unit,
        total=total,
        disable=desc is None,
        file=sys.stderr if terminal else _Lines(sys.stderr),
        mininterval=0.5 if terminal else 30,
    )
