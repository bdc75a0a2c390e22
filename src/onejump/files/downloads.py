"""Data files that come inside wheels of the Python package index, which reaches where hubs do not."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from onejump.files.atomic import OnejumpError
from onejump.files.digests import check_sha256


def fetch_wheel_member(wheel: str, member: str, sha256: str, path: str | Path) -> None:
    """Take one data file out of a wheel of the Python package index.

    Args:
        wheel: exact requirement, such as `gensim==4.4.0`.
        member: the file's path inside the wheel.
        sha256: expected digest of the file.
        path: where the file is put.

    Raises:
        OnejumpError: the wheel cannot be had, lacks the member, or the member has another digest.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        # The wheel is only a container here, so any platform's build will do: name one, and every host gets the same.
        platform = ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64"]
        platform += ["--platform=manylinux2014_x86_64", "--only-binary=:all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *platform, "--dest", folder, wheel]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise OnejumpError(f"wheel {wheel}: cannot be downloaded ({reason}); check the name, version and network")
        try:
            with zipfile.ZipFile(wheels[0]) as archive:
                if member not in archive.namelist():
                    raise OnejumpError(f"wheel {wheel}: has no member {member!r}; correct it in the config")
                extracted = Path(archive.extract(member, folder))
        except zipfile.BadZipFile as error:
            raise OnejumpError(f"wheel {wheel}: what came is no whole wheel ({error}); fetch it again") from error
        check_sha256(extracted, sha256, name=f"{wheel}: {member}")
        os.replace(extracted, path)
