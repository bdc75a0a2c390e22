"""On the path of the jobs of the fault test: a stage for which there is an order dies in the middle of a write."""

import os
import signal
import sys
from pathlib import Path

ORDERS = os.environ.get("ONEJUMP_TEST_ORDERS")
fsync = os.fsync


def fsync_or_die(fd) -> None:
    """Files are synced just before they get their final name; an order is carried out once."""
    if Path(sys.argv[0]).name == "onejump":
        try:
            os.unlink(Path(ORDERS, sys.argv[1]))
        except FileNotFoundError:
            pass
        else:
            path = os.readlink(f"/proc/self/fd/{fd if isinstance(fd, int) else fd.fileno()}")
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    fsync(fd)


if ORDERS:
    os.fsync = fsync_or_die
