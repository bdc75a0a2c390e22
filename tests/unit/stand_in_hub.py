"""A server with the part of the hub's interface that publishing and loading a jump use; it keeps files in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

TOKEN = "hf_of_nobody"


class StandInHub:
    """Repositories by name, each a list of commits; a commit is its files by path."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.url = ""

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content."""
        parts = urlparse(path).path.strip("/").split("/")
        if method == "POST" and token != f"Bearer {TOKEN}":
            return self._error(401, "", "Invalid credentials in Authorization header")
        match parts:
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
                self.repositories.setdefault(name, {})
                return self._json({"url": f"{self.url}/{name}"})
            case ["api", "validate-yaml"]:
                return self._json({"warnings": [], "errors": []})
            case ["api", "models", owner, name, *rest] if f"{owner}/{name}" in self.repositories:
                commits = self.repositories[f"{owner}/{name}"]
                match rest:
                    case ["preupload", "main"]:
                        files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
                        return self._json({"files": [file | {"shouldIgnore": False} for file in files]})
                    case ["commit", "main"]:
                        return self._commit(f"{owner}/{name}", commits, body)
                    case ["revision" | "tree" as asked, revision]:
                        commit = next(reversed(commits), None) if revision == "main" else revision
                        if commit not in commits:
                            return self._error(404, "RevisionNotFound", "Invalid rev id")
                        files = [{"type": "file", "oid": "0" * 40, "path": path} for path in commits[commit]]
                        files = [file | {"size": len(commits[commit][file["path"]])} for file in files]
                        return self._json(files if asked == "tree" else {"id": f"{owner}/{name}", "sha": commit})
            case [owner, name, "resolve", commit, *file] if f"{owner}/{name}" in self.repositories:
                content = self.repositories[f"{owner}/{name}"].get(commit, {}).get("/".join(file))
                if content is None:
                    return self._error(404, "EntryNotFound", "Entry not found")
                return 200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}, content
        return self._error(404, "RepoNotFound", "Repository not found")

    def _commit(self, name: str, commits: dict, body: bytes) -> tuple[int, dict[str, str], bytes]:
        lines = [json.loads(line) for line in body.splitlines()]
        added = [line["value"] for line in lines if line["key"] == "file"]
        commit = hashlib.sha1(body + str(len(commits)).encode()).hexdigest()
        commits[commit] = {file["path"]: base64.b64decode(file["content"]) for file in added}
        return self._json({"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit})

    def _json(self, value: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def _error(self, status: int, code: str, message: str) -> tuple[int, dict[str, str], bytes]:
        return status, {"X-Error-Code": code, "X-Error-Message": message}, json.dumps({"error": message}).encode()


@contextmanager
def serve() -> Iterator[StandInHub]:
    """The hub, at `url`."""
    hub = StandInHub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, content = hub.answer(self.command, self.path, body, self.headers.get("Authorization"))
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = reply

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
