"""The conda environment that rules name gets onejump from the clone."""

import os
import subprocess

from studies import ROOT

DEPLOY = ROOT / "envs" / "study.post-deploy.sh"


def test_onejump_itself_is_installed_from_the_clone_and_only_from_one(tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def deploy(folder):
        return subprocess.run([DEPLOY], cwd=folder, env=environment, text=True, capture_output=True)

    assert deploy(ROOT).stdout == "-m pip install --no-deps --editable .\n"
    refused = deploy(tmp_path)
    assert refused.returncode == 1 and "is no clone of onejump" in refused.stderr
