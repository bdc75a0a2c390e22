"""Progress bars for long stages: a moving bar on a terminal, a line every half minute in a log."""

import sys
from collections.abc import Iterable
from typing import TextIO

from tqdm import tqdm


class _Lines:
    """A stream that puts each state of a bar on a line of its own, instead of overwriting the last."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if state := text.strip():
            self._stream.write(state + "\n")

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(steps: Iterable | None, desc: str | None, unit: str, total: int | None = None, done: int = 0) -> tqdm:
    """A bar over `steps`, or one of `total` units that its `update` advances.

    Args:
        steps: What to iterate over; None for a bar that is advanced by hand.
        desc: Label in front of the bar; None for no bar.
        unit: What is counted.
        total: Number of units, if `steps` has no length, or is what is left of them.
        done: Units that an earlier attempt has done.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        steps,
        desc=desc,
        unit=unit,
        total=total,
        initial=done,
        disable=desc is None,
        file=sys.stderr if terminal else _Lines(sys.stderr),
        mininterval=0.5 if terminal else 30,
    )
