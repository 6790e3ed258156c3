"""A stand-in for an Ollama server whose pull sends its layer piece by piece, as a test allows: what is proven with it
is how a run is watched and steered, in processes that start in a moment."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

PIECES = 100
DIGEST = "sha256:" + "ab" * 32


class SlowPull:
    """`allow(n)` lets n more pieces out, to whatever pull asks for them, `allow()` all, 5 ms apart; `hold()` stops that
    again. Each tag is listed once it was pulled."""

    def __init__(self) -> None:
        self.pulled: list[str] = []
        self.asked: list[str] = []
        self._allowed = 0
        self._changed = threading.Condition()
        slow = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                tags = [
                    {"name": name, "digest": DIGEST, "size": PIECES, "modified_at": "2026-01-01T00:00:00Z"}
                    for name in slow.pulled
                ]
                self._reply({"version": "0.0.0", "models": tags})

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                slow.asked.append(request["model"])
                self.send_response(200)
                self.send_header("Content-Type", "application/x-ndjson")
                self.end_headers()
                try:
                    for done in range(1, PIECES + 1):
                        slow._await_piece()
                        status = {"status": "pulling", "digest": DIGEST, "total": PIECES, "completed": done}
                        self._line(status)
                    slow.pulled.append(request["model"])
                    self._line({"status": "success"})
                except (BrokenPipeError, ConnectionResetError):
                    pass  # it was cut, or cancelled

            def _line(self, status: dict[str, object]) -> None:
                self.wfile.write(json.dumps(status).encode() + b"\n")
                self.wfile.flush()

            def _reply(self, body: dict[str, object]) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: object) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def allow(self, pieces: int = 1 << 30) -> None:
        with self._changed:
            self._allowed += pieces
            self._changed.notify_all()

    def hold(self) -> None:
        with self._changed:
            self._allowed = 0

    def _await_piece(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._allowed > 0)
            self._allowed -= 1
        time.sleep(0.005)

    def __enter__(self) -> SlowPull:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.allow()
        self._server.shutdown()
        self._server.server_close()
