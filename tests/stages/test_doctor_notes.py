"""doctor goes on whatever answers, and names a fix with each problem."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from amigo_local.domain.events import Note, Record
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.runner import Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.stages import load_stage
from amigo_local.stages.doctor import DoctorParams


class OnlyVersion(BaseHTTPRequestHandler):
    """Says that it is there, and fails at everything else."""

    def do_GET(self) -> None:
        known = self.path == "/api/version"
        body = b'{"version": "0.0.1"}' if known else b'{"error": "the models folder is gone"}'
        self.send_response(200 if known else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_a_server_that_fails_is_a_problem_with_a_fix_and_the_rest_is_still_told(tmp_path: Path) -> None:
    records: list[Record] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), OnlyVersion) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = ProgramSettings(ollama=OllamaSettings(host=f"127.0.0.1:{server.server_address[1]}"))
        outcome = Runner(Workspace(tmp_path), settings, load_stage, records.append).run("doctor", DoctorParams())
        server.shutdown()
    assert outcome.exit_code == 0
    problems = [r.event for r in records if isinstance(r.event, Note) and r.event.level == "problem"]
    assert any("the models folder is gone" in problem.text for problem in problems)
    assert all(problem.fix for problem in problems)
    assert "What fits" in [getattr(record.event, "title", "") for record in records]
