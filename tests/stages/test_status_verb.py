"""status: one event of what is free, served and running, that no server and no run can make fail or slow."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from amigo_local.domain.events import MachineMeasured, Record, RunContinued, RunPaused, RunStarted, encode_record
from amigo_local.domain.modelfile import Modelfile
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.lock import hold_run
from amigo_local.engine.run_record import RunRecord, write_run
from amigo_local.engine.runner import Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.stages import load_stage
from amigo_local.stages.status import StatusParams
from tests.support.command_here import amigo_here
from tests.support.ollama_server import RealOllama, free_port
from tests.support.tiny_gguf import write_tiny_llama


def measured(root: Path, host: str) -> MachineMeasured:
    records: list[Record] = []
    settings = ProgramSettings(ollama=OllamaSettings(host=host))
    outcome = Runner(Workspace(root), settings, load_stage, records.append).run("status", StatusParams())
    assert outcome.exit_code == 0
    (event,) = [record.event for record in records if isinstance(record.event, MachineMeasured)]
    return event


def test_what_the_server_holds_is_told_as_the_server_tells_it(tmp_path: Path, ollama_server: RealOllama) -> None:
    server = OllamaServer(ollama_server.host)
    server.create("status-model", write_tiny_llama(tmp_path / "m.gguf", seed=21), Modelfile(), lambda event: None)
    server.load("status-model", 256)
    event = measured(tmp_path / "home", ollama_server.host)
    assert event.ollama is not None and event.ollama_problem == ""
    assert (event.ollama.url, event.ollama.version) == (server.url, server.version())
    mine = [model for model in event.ollama.loaded if model.name == "status-model:latest"]
    same = [model for model in server.loaded() if model.name == "status-model:latest"]
    assert [(m.size_bytes, m.size_vram_bytes) for m in mine] == [(m.size_bytes, m.size_vram_bytes) for m in same]
    assert mine[0].expires[:2] == "20"
    assert event.machine.ram_total_bytes > event.machine.ram_available_bytes > 0
    said = amigo_here(tmp_path / "home", "status", ollama=ollama_server.url).stdout
    assert "status-model:latest" in said and "free of" in said
    server.unload("status-model")


def test_a_server_that_is_away_hangs_or_is_another_is_a_sentence(tmp_path: Path) -> None:
    away = measured(tmp_path, f"127.0.0.1:{free_port()}")
    assert away.ollama is None and away.ollama_problem.startswith("no Ollama server answers at")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        hangs = measured(tmp_path, f"127.0.0.1:{silent.getsockname()[1]}")
        assert hangs.ollama is None and hangs.ollama_problem and time.monotonic() - began < 3

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'["no", "server"]')

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        strange = measured(tmp_path, f"127.0.0.1:{other.server_address[1]}")
        other.shutdown()
    assert strange.ollama is None and "is no Ollama server" in strange.ollama_problem


def test_runs_that_go_on_are_told_with_their_title_and_whether_they_wait(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for run_id in ("a", "b"):
        folder = workspace.runs_dir / run_id
        folder.mkdir(parents=True)
        asked = RunRecord(run_id=run_id, verb="train", title=f"train {run_id}", params={}, settings=ProgramSettings())
        write_run(workspace, asked)
    host = f"127.0.0.1:{free_port()}"
    journal = workspace.runs_dir / "a" / "journal.jsonl"

    def write(event: RunStarted | RunPaused | RunContinued) -> None:
        with journal.open("ab") as file:
            file.write(encode_record(Record("a", 0, 0.0, "", event)) + b"\n")

    write(RunStarted("train", 'a title with "type":"run_paused" in it'))
    with hold_run(workspace.runs_dir / "a", "amigo-local train a"):
        (run,) = measured(tmp_path, host).running
        assert (run.run_id, run.title, run.paused) == ("a", "train a", False)
        assert abs(run.since - time.time()) < 60
        write(RunPaused())
        assert [each.paused for each in measured(tmp_path, host).running] == [True]
        write(RunContinued())
        assert [each.paused for each in measured(tmp_path, host).running] == [False]
    assert measured(tmp_path, host).running == ()


def test_the_second_time_takes_no_fifty_milliseconds(tmp_path: Path, ollama_server: RealOllama) -> None:
    measured(tmp_path, ollama_server.host)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        measured(tmp_path, ollama_server.host)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.05, times
    assert load_stage("status").place == "here"
