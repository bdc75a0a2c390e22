"""The conda environment that rules name: the locked versions, and onejump itself."""

import os
import re
import subprocess

import yaml
from studies import ROOT

DEPLOY = ROOT / "envs" / "study.post-deploy.sh"


def test_the_conda_environment_has_the_locked_versions():
    lock = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "envs" / "requirements.lock").read_text(), re.M))
    locked = {name.lower().replace("_", "-"): version for name, version in lock.items()}
    (pip,) = (
        part["pip"]
        for part in yaml.safe_load((ROOT / "envs" / "study.yaml").read_text())["dependencies"]
        if isinstance(part, dict)
    )
    pins = dict(pin.lower().replace("_", "-").split("==") for pin in pip)
    assert pins == {name: locked[name] for name in pins}
    needed = re.findall(r'^    "([\w-]+)",$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert set(needed) <= set(pins)


def test_onejump_itself_is_installed_from_the_clone_and_only_from_one(tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def deploy(folder):
        return subprocess.run([DEPLOY], cwd=folder, env=environment, text=True, capture_output=True)

    assert deploy(ROOT).stdout == "-m pip install --no-deps --editable .\n"
    refused = deploy(tmp_path)
    assert refused.returncode == 1 and "is no clone of onejump" in refused.stderr
