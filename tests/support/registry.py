"""A real registry on loopback for Ollama to push to and pull from: Debian's docker-registry.

Ollama wants every blob GET to redirect to another host name, as registry.ollama.ai does to its CDN;
so blobs are redirected from `localhost` to a small range-capable file server on 127.0.0.1, which can
also be slow or cut transfers.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.ollama_server import free_port

INSTALL = "apt-get install docker-registry"


class BlobServer(ThreadingHTTPServer):
    """Serves the registry's storage. `rate` is bytes a second per connection (0: no limit);
    `drop_after` cuts the first transfer of each blob after that many bytes (0: never)."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _BlobHandler)
        self.root = root.resolve()
        self.rate = 0.0
        self.drop_after = 0
        self.dropped: set[str] = set()
        self.sent_bytes = 0
        self.ranges: list[str] = []
        """The Range header of every GET, in order."""


class _BlobHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BlobServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._reply(with_body=False)

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range", ""))
        self._reply(with_body=True)

    def _reply(self, with_body: bool) -> None:
        path = (self.server.root / self.path.partition("?")[0].lstrip("/")).resolve()
        if not path.is_relative_to(self.server.root) or not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2] or size - 1), size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.end_headers()
        if with_body:
            self._send(path, start, end - start + 1)

    def _send(self, path: Path, start: int, left: int) -> None:
        sent = 0
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(start)
            while left and (piece := file.read(min(1 << 16, left))):
                self.wfile.write(piece)
                left, sent = left - len(piece), sent + len(piece)
                self.server.sent_bytes += len(piece)
                if self.server.rate:
                    time.sleep(len(piece) / self.server.rate)
                if 0 < self.server.drop_after <= sent and str(path) not in self.server.dropped:
                    self.server.dropped.add(str(path))
                    break
        if left:
            self.close_connection = True


class RealRegistry:
    """Context manager. Models are named `localhost:PORT/namespace/model`; push and pull with insecure=True."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("docker-registry")
        if not binary:
            raise FileNotFoundError(f"no `docker-registry` on PATH: {INSTALL}")
        storage = folder / "registry"
        storage.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.prefix = f"localhost:{self.port}/test"
        self.blobs = BlobServer(storage)
        redirect = {"name": "redirect", "options": {"baseurl": f"http://127.0.0.1:{self.blobs.server_address[1]}"}}
        settings = {
            "version": "0.1",
            "log": {"level": "warn"},
            "http": {"addr": f"127.0.0.1:{self.port}"},
            "storage": {"filesystem": {"rootdirectory": str(storage)}},
            "middleware": {"storage": [redirect]},
        }
        self._config = folder / "registry.yml"
        self._config.write_text(json.dumps(settings))  # JSON is YAML
        self._command = [binary, "serve", str(self._config)]
        self._log = folder / "registry.log"

    def __enter__(self) -> RealRegistry:
        threading.Thread(target=self.blobs.serve_forever, daemon=True).start()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(500):
            if self._process.poll() is not None:
                raise RuntimeError(f"docker-registry ended at once: {self._log.read_text()[-800:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.02)
        self.__exit__()
        raise RuntimeError("docker-registry does not answer")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self.blobs.shutdown()
        self.blobs.server_close()
