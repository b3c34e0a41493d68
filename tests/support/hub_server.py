"""A stand-in of the Hugging Face Hub: repositories in memory, behind the part of its HTTP interface that uploads and
downloads use (https://huggingface.co/docs/hub/api). Every file is uploaded as a regular one, within its commit."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import pytest
import yaml

WRITER, READER = "hf_writer", "hf_reader"  # tokens


@dataclass
class Repository:
    """A repository.

    Attributes:
        branches: commit by branch.
        commits: files by path, by commit.
    """

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        """Add a commit to a branch."""
        sha = hashlib.sha1(f"{len(self.commits)}{branch}{sorted(files)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch or commit."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision."""
        return self.commits[self.find(revision) or ""]


class HubServer(ThreadingHTTPServer):
    """The server and its repositories by name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        return cast(HubServer, self.server)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.command == "POST" and token not in (WRITER, READER):
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif self.command == "POST" and token == READER:
            self._refuse(403, message="You don't have the rights to do this")
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.startswith("/api/models/"):
            _, _, _, org, name, *rest = path.split("/")
            self._models(f"{org}/{name}", rest, body, token)
        elif "/resolve/" in path:
            _, org, name, _, revision, *file = path.split("/")
            self._file(f"{org}/{name}", revision, "/".join(file), token)
        else:
            self._send({})

    def _validate(self, card: str) -> None:
        """Refuse a model card with a licence that is no identifier in lower case, as the Hub does."""
        licence = str(yaml.safe_load(card.split("---\n")[1]).get("license", ""))
        wrong = [] if licence == licence.lower() else [{"message": '"license" must be one of ...'}]
        content = json.dumps({"errors": wrong, "warnings": []}).encode()
        self._write(400 if wrong else 200, content, {})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repositories:
            self._refuse(409, message="You already created this model repo")
            return
        # Versions of the client name it differently.
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        repository = Repository(private)
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repositories[name] = repository
        self._send({"url": f"{self.hub.address}/{name}", "name": name})

    def _models(self, name: str, rest: list[str], body: bytes, token: str) -> None:
        repository = self._repository(name, token)
        if repository is None:
            return
        action, revision = (*rest, "main")[:2] if len(rest) > 1 else ("revision", "main")
        if action == "branch":
            repository.branches.setdefault(revision, repository.branches["main"])
            self._send({})
            return
        commit = repository.find(revision)
        if commit is None:
            self._refuse(404, code="RevisionNotFound")
        elif action == "revision":
            siblings = [{"rfilename": path} for path in repository.commits[commit]]
            plain = {"id": name, "sha": commit, "private": repository.private}
            self._send({**plain, "siblings": siblings, "tags": [], "downloads": 0})
        elif action == "tree":
            self._send(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}
                    for path, content in repository.commits[commit].items()
                ]
            )
        elif action == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self._send({"files": [{"path": f["path"], **modes} for f in json.loads(body)["files"]]})
        else:
            assert action == "commit"
            self._commit(name, revision, body)

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        files, message = dict(repository.files(branch)), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
                parent = value.get("parentCommit")
                if parent not in (None, repository.branches[branch]):
                    self._refuse(412, message="The branch has changed")
                    return
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        sha = repository.commit(branch, files, message)
        address = f"{self.hub.address}/{name}/commit/{sha}"
        self._send({"commitUrl": address, "commitOid": sha})

    def _file(self, name: str, revision: str, path: str, token: str) -> None:
        repository = self._repository(name, token)
        if repository is None:
            return
        commit = repository.find(revision)
        if commit is None:
            self._refuse(404, code="RevisionNotFound")
            return
        content = repository.commits[commit].get(path)
        if content is None:
            self._refuse(404, code="EntryNotFound", commit=commit)
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(content)}"'}
        self._write(200, content, {**headers, "Content-Type": "application/octet-stream"})

    def _repository(self, name: str, token: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and token not in (WRITER, READER)):
            self._refuse(404 if token else 401, code="RepoNotFound")
            return None
        return found

    def _send(self, value: Any) -> None:
        self._write(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, *, message: str = "", code: str = "", commit: str = "") -> None:
        named = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        content = json.dumps({"error": message}).encode()
        self._write(status, content, {name: text for name, text in named.items() if text})

    def _write(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def hub_server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serve an empty Hub with a cache and a token of its own, which the client in this process uses."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = HubServer()
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
