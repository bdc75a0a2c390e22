"""Models on the hub, tested without it: a cache in its layout, and a local server that refuses as the hub does."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tiny_models import save_tiny_model

MODEL, COMMIT = "someone/tiny", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """HF_HOME with one revision of one model, as a download leaves it."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "hub" / f"models--{MODEL.replace('/', '--')}"
    save_tiny_model("llama", folder / "snapshots" / COMMIT, bos=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return home


@pytest.fixture(scope="module")
def hub():
    """A server that knows one gated model, and one model that has no revision asked for."""

    class Hub(BaseHTTPRequestHandler):
        def refuse(self):
            status, code = 404, "RepoNotFound"
            if "/gated/" in self.path:
                status, code = 403, "GatedRepo"
            elif MODEL in self.path:
                status, code = 404, "RevisionNotFound"
            body = json.dumps({"error": code}).encode()
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = refuse

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def extract(out: Path, home: Path, model: str, revision: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `onejump extract-unembedding` as a user does, without the hub settings of this machine."""
    settings = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings |= {"HF_HOME": str(home)} | environment
    command = [sys.executable, "-m", "onejump.cli", "extract-unembedding", "--model", model, "--revision", revision]
    return subprocess.run([*command, "--out", str(out)], env=settings, capture_output=True, text=True)


def error(done: subprocess.CompletedProcess, out: Path) -> str:
    """The single line of a refusal."""
    assert done.returncode == 1, done.stderr
    assert not out.exists()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("onejump: error:")]
    assert "Traceback" not in done.stderr
    return line


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_cached_model_loads_offline_and_its_commit_is_recorded(cache, tmp_path, revision):
    from onejump.models.unembedding import Unembedding

    out = tmp_path / "unembedding.safetensors"
    done = extract(out, cache, MODEL, revision, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    unembedding = Unembedding.load(out)
    assert (unembedding.metadata["model"], unembedding.metadata["revision"]) == (MODEL, COMMIT)


@pytest.mark.parametrize(("model", "revision"), [(MODEL, "f" * 40), ("someone/other", "main")])
def test_what_is_not_in_the_cache_is_refused_offline(cache, tmp_path, model, revision):
    out = tmp_path / "unembedding.safetensors"
    line = error(extract(out, cache, model, revision, HF_HUB_OFFLINE="1"), out)
    assert f"model {model}: revision {revision!r} is not in the cache" in line
    assert line.endswith(f"hf download {model} --revision {revision}")


@pytest.mark.parametrize(
    ("model", "revision", "expected"),
    [
        ("gated/model", "main", "is gated; accept its licence on the hub, and set HF_TOKEN"),
        (MODEL, "no-such-branch", "has no revision 'no-such-branch'; name a commit"),
        ("nobody/nothing", "main", "is not on the hub, or is private; check the id"),
    ],
)
def test_what_the_hub_refuses_is_refused_in_one_line(hub, tmp_path, model, revision, expected):
    out = tmp_path / "unembedding.safetensors"
    line = error(extract(out, tmp_path / "home", model, revision, HF_ENDPOINT=hub), out)
    assert f"model {model}: {expected}" in line
