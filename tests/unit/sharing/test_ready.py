"""The jumps that come with onejump: loaded by their short names, as `onejump publish` made them, and in the wheel."""

import runpy
import shutil
import subprocess
import tomllib

import pytest
from refusals import error_of
from studies import ROOT

import onejump
from onejump.sharing import hub
from onejump.sharing.folder import CONFIG

PACKAGE = ROOT / "src" / "onejump"
NAMES = sorted(path.parent.name for path in hub.READY.glob(f"*/{CONFIG}"))


@pytest.fixture
def ready(folder, tmp_path, monkeypatch):
    """A folder of ready jumps with one of them, `tiny`."""
    monkeypatch.setattr(hub, "READY", tmp_path / "ready")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "ready" / "tiny")
    (tmp_path / "ready" / "README.md").touch()
    return tmp_path / "ready"


def test_a_ready_jump_is_loaded_by_its_short_name(ready):
    assert onejump.Jump.from_pretrained("tiny").levels == range(3)


def test_a_folder_of_that_name_comes_first(ready, study):
    study.publish(ready.parent / "tiny", "gated", "all")
    assert onejump.Jump.from_pretrained("tiny").config["jump"] == "all"


@pytest.mark.parametrize("name", ["large", "README.md"])
def test_a_name_of_none_of_them_is_refused(ready, name):
    assert error_of(lambda: onejump.Jump.from_pretrained(name)) == (
        f"jump {name}: no such folder, and none of the jumps that come with onejump (tiny); name one of these, or give "
        "a folder or a hub id as 'owner/name'"
    )


def test_a_name_with_a_slash_is_one_on_the_hub(ready, monkeypatch):
    (ready / "someone").mkdir()
    shutil.copytree(ready / "tiny", ready / "someone" / "tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = error_of(lambda: onejump.Jump.from_pretrained("someone/tiny"))
    assert said.startswith("jump someone/tiny: revision 'main' is not in the cache")


@pytest.mark.parametrize("name", NAMES)
def test_a_ready_jump_is_small_free_and_says_where_its_model_is(name):
    config = onejump.Jump.from_pretrained(name).config
    assert config["jump"] == "joint" and config["gated"]
    assert config["licence"] == "apache-2.0" and config["fitted_on"]["licence_of_the_text"]
    source = config["base_model"]["source"]["gguf"]
    assert config["base_model"]["revision"] == source["sha256"] and config["base_model"]["hub_id"]
    assert all("==" in part["wheel"] for part in source.get("parts", [source]))
    files = [file for file in (hub.READY / name).rglob("*") if file.is_file()]
    assert len(files) == 5 and sum(file.stat().st_size for file in files) < 300_000


def test_the_table_of_the_ready_jumps_is_that_of_their_files():
    page = runpy.run_path(str(ROOT / "docs" / "describe_jumps.py"))["page"]()
    assert page == (ROOT / "jumps" / "README.md").read_text()
    assert [name for name in NAMES if f"[`{name}`]" not in page] == []


def test_all_that_is_no_module_is_in_the_wheel():
    tracked = subprocess.run(["git", "ls-files", "."], cwd=PACKAGE, capture_output=True, text=True, check=True)
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed = {path for pattern in tool["package-data"]["onejump"] for path in PACKAGE.glob(pattern)}
    files = tracked.stdout.splitlines()
    modules = {name for name in files if name.endswith(".py") and not name.startswith("sharing/ready/")}
    assert [name for name in files if name not in modules and PACKAGE / name not in packed] == []
