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
    """A bar over `steps`, or one of `total` units that its `update` advances; no bar if `desc` is None.

    `done` units are from an earlier attempt, and `steps` are those left.
    """
    terminal = sys.stderr.isatty()
    stream, interval = (sys.stderr, 0.5) if terminal else (_Lines(sys.stderr), 30)
    options = {"file": stream, "mininterval": interval, "disable": desc is None, "unit": unit, "initial": done}
    return tqdm(steps, desc, total, **options)
