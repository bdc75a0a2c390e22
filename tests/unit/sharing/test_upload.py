"""Publishing to the hub and loading from it, with a server that stands in for it."""

import os
import subprocess
import sys

import pytest
from stand_in_hub import TOKEN, serve

from onejump.sharing.folder import GENERATE

LOAD = "import sys, onejump; print(onejump.Jump.from_pretrained(sys.argv[1], revision=sys.argv[2] or None))"
NAME = "someone/tiny-jump"


@pytest.fixture(scope="module")
def hub():
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(hub, study, tmp_path_factory) -> str:
    """The commit of a jump that was published and uploaded; its folder's files are the repository's."""
    home = tmp_path_factory.mktemp("home")
    done = publish(study, home / "jump", NAME, home, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    ((commit, files),) = hub.repositories[NAME].items()
    paths = [path for path in (home / "jump").rglob("*") if path.is_file()]
    assert files == {str(path.relative_to(home / "jump")): path.read_bytes() for path in paths} and len(files) == 5
    assert f"REPOSITORY = {NAME!r}".encode() in files[GENERATE]
    assert done.stdout.splitlines()[-1] == f"{hub.url}/{NAME}/commit/{commit}"
    return commit


def run(command, home, **environment) -> subprocess.CompletedProcess:
    """As a user does, without the hub settings of this machine."""
    settings = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings |= {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | environment
    return subprocess.run([sys.executable, *command], env=settings, capture_output=True, text=True)


def publish(study, out, repository, home, **environment) -> subprocess.CompletedProcess:
    options = {"results": study.folder, "config": study.folder / "config.json", "model": "tiny", "variant": "alone"}
    options |= {"base": study.dump.source.location, "out": out, "push": repository}
    command = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return run(["-m", "onejump.cli", "publish", *command], home, **environment)


def load(name, home, revision="", **environment) -> subprocess.CompletedProcess:
    return run(["-c", LOAD, name, revision], home, **environment)


def error(done) -> str:
    """The last line of a refusal."""
    assert done.returncode == 1
    return done.stderr.splitlines()[-1].removeprefix("onejump.files.atomic.OnejumpError: ")


@pytest.mark.parametrize("by", ["main", "commit"])
def test_a_published_jump_is_loaded_by_its_id_and_then_offline(hub, pushed, tmp_path, by):
    revision = pushed if by == "commit" else ""
    first = load(NAME, tmp_path, revision, HF_ENDPOINT=hub.url)
    assert first.returncode == 0, first.stderr
    assert first.stdout == "<onejump.Jump joint of model, levels 0..2, rank 3>\n"
    cached = {file.name for file in tmp_path.rglob("snapshots/*/*")}
    assert cached == {"jump_config.json", "jump.safetensors"}  # neither card nor figure, and nothing that could run
    again = load(NAME, tmp_path, revision, HF_HUB_OFFLINE="1")
    assert again.stdout == first.stdout, again.stderr


def test_what_is_not_in_the_cache_is_refused_offline(tmp_path):
    said = error(load(NAME, tmp_path, HF_HUB_OFFLINE="1"))
    assert said.startswith(f"jump {NAME}: revision 'main' is not in the cache and the hub cannot be reached")


def test_a_commit_that_is_not_there_is_refused(hub, pushed, tmp_path):
    said = error(load(NAME, tmp_path, "f" * 40, HF_ENDPOINT=hub.url))
    assert said == f"jump {NAME}: has no revision '{'f' * 40}'; name a commit, tag or branch that it has"


def test_a_repository_that_is_not_there_is_refused(hub, tmp_path):
    said = error(load("nobody/nothing", tmp_path, HF_ENDPOINT=hub.url))
    assert said.startswith("jump nobody/nothing: is not on the hub, or is private; check the id")


def test_a_repository_without_a_jump_is_refused(hub, tmp_path):
    hub.repositories["someone/model"] = {"a" * 40: {"config.json": b"{}"}}
    said = error(load("someone/model", tmp_path, HF_ENDPOINT=hub.url))
    assert "has no jump_config.json, so it is no published jump" in said


@pytest.mark.parametrize("trouble", ["no token", "offline", "no hub"])
def test_what_cannot_be_uploaded_stays_as_a_folder(hub, study, tmp_path, trouble):
    environment = {
        "no token": {"HF_ENDPOINT": hub.url},
        "offline": {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"},
        "no hub": {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN},
    }[trouble]
    out = tmp_path / "jump"
    done = publish(study, out, "someone/other", tmp_path, **environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"onejump: error: someone/other: {out} is whole, but cannot be uploaded (")
    assert line.endswith("; set HF_TOKEN to a token that may write there, and HF_HUB_OFFLINE to 0")
    assert len(list(out.iterdir())) == 5 and "someone/other" not in hub.repositories
