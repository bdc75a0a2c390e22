"""Download data files packed in wheels on the Python package index, which is reachable where model hubs are not."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from onejump.files.atomic import OnejumpError, temporary_folder
from onejump.files.digests import check_sha256


def fetch_wheel_member(wheel: str, member: str, sha256: str, path: str | Path) -> None:
    """Download a wheel from the Python package index and extract one data file from it.

    Args:
        wheel: exact requirement, such as `gensim==4.4.0`.
        member: the file's path inside the wheel.
        sha256: expected SHA-256 of the file, in hexadecimal.
        path: where to put the file.

    Raises:
        OnejumpError: the wheel cannot be downloaded or lacks the member, or the member has another digest.
    """
    with temporary_folder(path) as folder:
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
                extracted = Path(archive.extract(member, folder))
        except zipfile.BadZipFile as error:
            raise OnejumpError(f"wheel {wheel}: the download is not a whole wheel ({error}); try again") from error
        check_sha256(extracted, sha256, name=f"{wheel}: {member}")
        os.replace(extracted, path)
