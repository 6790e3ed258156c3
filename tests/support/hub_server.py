"""A hub on loopback: the parts of its HTTP API that huggingface_hub 2.4 uses, over directories of checkpoints and data.

As the real one does, it serves large files by a redirect to another host name (`localhost` beside 127.0.0.1), names
the commit and the digest in headers, answers 401 for what it won't show, and says why in X-Error-Code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

LARGE = (".safetensors", ".model", ".parquet")  # what .gitattributes puts into large-file storage

_INFO = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/revision/([^/]+))?")
_RESOLVE = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_CDN = re.compile(r"/cdn/((?:datasets/)?[^/]+/[^/]+)/([^/]+)/(.+)")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str
    authorized: bool


@dataclass
class _Repository:
    gated: bool
    commits: dict[str, Path] = field(default_factory=dict)
    main: str = ""
    license: str = ""


class HubServer(ThreadingHTTPServer):
    """Context manager; `url` is what HF_ENDPOINT takes. `rate` is bytes a second per connection (0: no limit);
    `drop_after` cuts the first transfer of each large file after that many bytes (0: never)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.repositories: dict[str, _Repository] = {}
        """By name; data sets by `datasets/ORG/NAME`, as in URLs."""
        self.token = "hf_accepted"
        """Opens gated repositories."""
        self.rate = 0.0
        self.drop_after = 0
        self.dropped: set[str] = set()
        self.requests: list[Request] = []
        self.sent_bytes: dict[str, int] = {}
        """Of bodies, by the file's name."""
        self.is_down = False
        """Answers 503 to everything."""
        self.damaged: set[str] = set()
        """Names of files whose first transfer has a wrong byte."""

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def publish_set(self, name: str, directory: Path, gated: bool = False, license: str = "") -> str:
        """The same of a data set; its card says `license`."""
        commit = self.publish(f"datasets/{name}", directory, gated)
        self.repositories[f"datasets/{name}"].license = license
        return commit

    def publish(self, repo: str, directory: Path, gated: bool = False) -> str:
        """A new commit of that repository on main; returns its hash."""
        found = self.repositories.setdefault(repo, _Repository(gated))
        commit = hashlib.sha1(f"{repo} {directory} {len(found.commits)}".encode()).hexdigest()
        found.commits[commit] = directory
        found.main = commit
        return commit

    @property
    def weight_bytes(self) -> int:
        """Sent of all safetensors files."""
        return sum(count for name, count in self.sent_bytes.items() if name.endswith(".safetensors"))

    def forget(self) -> None:
        """What was sent so far."""
        self.requests.clear()
        self.sent_bytes.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        authorized = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        self.server.requests.append(
            Request(self.command, path, self.headers.get("Range", ""), "Authorization" in self.headers)
        )
        if self.server.is_down:
            self._refuse(503, "", "down for maintenance")
            return
        if match := _CDN.fullmatch(path):
            self._send_file(self.server.repositories[match[1]].commits[match[2]] / match[3])
            return
        info, resolve = _INFO.fullmatch(path), _RESOLVE.fullmatch(path)
        if info:
            repo, revision = ("datasets/" if info[1] == "datasets" else "") + info[2], info[3] or "main"
        elif resolve:
            repo, revision = resolve[1], resolve[2]
        repository = self.server.repositories.get(repo) if info or resolve else None
        if not info and not resolve:
            self._refuse(404, "", "no such page")
        elif repository is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
        else:
            commit = repository.main if revision == "main" else revision
            if commit not in repository.commits:
                self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            elif info:
                self._send_info(repo, repository, commit)
            elif repository.gated and not authorized:
                self._refuse(401, "GatedRepo", f"Access to {repo} is restricted.")
            elif resolve:
                self._resolve(repo, repository.commits[commit], commit, resolve[3])

    def _send_info(self, repo: str, repository: _Repository, commit: str) -> None:
        siblings = []
        directory = repository.commits[commit]
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            name = path.relative_to(directory).as_posix()
            entry: dict[str, object] = {"rfilename": name, "size": path.stat().st_size, "blobId": "0" * 40}
            if path.name.endswith(LARGE):
                entry["lfs"] = {"sha256": _sha256(path), "size": path.stat().st_size, "pointerSize": 134}
            siblings.append(entry)
        gated = "manual" if repository.gated else False
        repo = repo.removeprefix("datasets/")
        body: dict[str, object] = {"id": repo, "sha": commit, "private": False, "gated": gated, "siblings": siblings}
        body |= {"modelId": repo, "cardData": {"license": repository.license} if repository.license else None}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repo: str, directory: Path, commit: str, name: str) -> None:
        path = directory / name
        if not path.is_file() or ".." in name.split("/"):
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        elif name.endswith(LARGE):
            size, digest = path.stat().st_size, _sha256(path)
            self._send(
                302,
                b"",
                {
                    "Location": f"http://localhost:{self.server.port}/cdn/{repo}/{commit}/{name}",
                    "X-Repo-Commit": commit,
                    "X-Linked-Size": str(size),
                    "X-Linked-Etag": f'"{digest}"',
                },
            )
        else:
            self._send_file(path, {"X-Repo-Commit": commit})

    def _send_file(self, path: Path, headers: dict[str, str] | None = None) -> None:
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2] or size - 1), size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{_sha256(path)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send_body(path, start, end - start + 1)

    def _send_body(self, path: Path, start: int, left: int) -> None:
        server, sent = self.server, 0
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(start)
            while left and (piece := file.read(min(1 << 15, left))):
                if path.name in server.damaged:
                    server.damaged.remove(path.name)
                    piece = bytes([piece[0] ^ 0xFF]) + piece[1:]
                # Counted first: the client may look as soon as it has the last byte.
                server.sent_bytes[path.name] = server.sent_bytes.get(path.name, 0) + len(piece)
                self.wfile.write(piece)
                left, sent = left - len(piece), sent + len(piece)
                if server.rate:
                    time.sleep(len(piece) / server.rate)
                whole = self.headers.get("Range", "") == "" or self.headers["Range"].endswith("-")
                if 0 < server.drop_after <= sent and whole and path.name not in server.dropped:
                    server.dropped.add(path.name)
                    break
        if left:
            self.close_connection = True

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        said = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._send(status, body, said | (headers or {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _sha256(path: Path) -> str:
    return _digest(path, path.stat().st_mtime_ns)


@functools.cache
def _digest(path: Path, modified_ns: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
