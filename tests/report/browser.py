"""Chromium for the tests of the report and for the pictures of it in the docs."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

# One at a time: another worker may be installing Slurm.
APT_GET = ("flock", "/run/lock/onejump-packages", "apt-get")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class NoBrowserError(Exception):
    """There is no Chromium here, and it cannot be installed."""


def find_chromium() -> str:
    """The path of Chromium, installed from Debian's or Ubuntu's packages where it is missing and that is allowed.

    Raises:
        NoBrowserError: neither is possible.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            subprocess.run([*APT_GET, "--quiet", "--quiet", *command], check=False, capture_output=True)
        found = shutil.which("chromium")
    if found is None:
        raise NoBrowserError(f"none of {', '.join(NAMES)} is here, and only root on Debian or Ubuntu can install it")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium that makes no requests of its own."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield browser
        browser.close()
