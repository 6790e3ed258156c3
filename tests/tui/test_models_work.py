"""What the Models screen begins: pulls from a real registry, unpacking, registering."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
from textual.widgets import Input, Select, Static

from amigo_local.domain.modelfile import Modelfile
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.run_record import read_run
from amigo_local.engine.runner_process import RunRequest, start_detached
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.tui.session import Session
from amigo_local.tui.widgets.verb_dialog import VerbDialog
from tests.support.models_app import listed, on_screen
from tests.support.ollama_runtime import OllamaRuntime
from tests.support.ollama_server import RealOllama
from tests.support.registry import RealRegistry
from tests.support.slow_pull import SlowPull
from tests.support.tiny_gguf import write_tiny_llama
from tests.support.tui_driving import runner_of, screen_text, until

NOWHERE = ProgramSettings(ollama=OllamaSettings(use=False))


def test_a_pull_is_shown_by_layer_cut_and_gone_on_with(
    ollama_runtime: OllamaRuntime, ollama_server: RealOllama, ollama_registry: RealRegistry, tmp_path: Path
) -> None:
    gguf = write_tiny_llama(tmp_path / "pulled.gguf", seed=47, chat_template=None)
    tag = f"{ollama_registry.prefix}/by-screen:v1"
    first = OllamaServer(ollama_server.host)
    first.create(tag, gguf, Modelfile(), lambda event: None)
    first.client.push(tag, insecure=True)

    async def body(own: RealOllama) -> None:
        settings = ProgramSettings(ollama=OllamaSettings(host=own.url, store=str(own.models)))
        session = Session(tmp_path / "home", settings)
        async with on_screen(session, (80, 24)) as (app, pilot):
            await until(pilot, lambda: "There is no model here yet" in screen_text(app))
            await pilot.press("p")
            await until(pilot, lambda: isinstance(app.screen, VerbDialog))
            await pilot.press("enter")
            assert "tag is needed" in str(app.screen.query_one("#problem", Static).content)
            app.screen.query_one(Input).value = tag
            app.screen.query_one(Select).value = "yes"
            await pilot.press("ctrl+s")
            await until(pilot, lambda: "layer " in app.work_shown and " of 2.7 MiB" in app.work_shown)
            assert "x cancels" in app.work_shown and app.offered == {"cancel"}
            await until(pilot, lambda: "layer " in screen_text(app))
            await pilot.press("x")
            await until(pilot, lambda: "cancelled  p goes on with it" in app.work_shown)
            assert app.offered == set() and not first_has(own, tag)
            run_id = session.saved.run_id
            ollama_registry.blobs.rate = 0
            await pilot.press("p")
            await until(pilot, lambda: isinstance(app.screen, VerbDialog))
            assert app.screen.query_one(Input).value == tag
            await pilot.press("ctrl+s")
            await until(pilot, lambda: f"ollama:{tag}" in app.refs)
            assert session.saved.run_id == run_id and session.run and session.run.attempt == 2
            assert f"pull {tag} done" in app.work_shown
            assert app.models.current and app.models.current.ref == f"ollama:{tag}"
            await until(pilot, lambda: app.facts.get("quantization") == "Q8_0")

    def first_has(own: RealOllama, tag: str) -> bool:
        return OllamaServer(own.host).has(tag)

    ollama_registry.blobs.rate = 700_000.0
    try:
        with RealOllama(ollama_runtime, tmp_path / "own") as own:
            asyncio.run(body(own))
    finally:
        ollama_registry.blobs.rate = 0


def test_a_pull_begun_elsewhere_is_shown_and_can_be_cancelled(tmp_path: Path) -> None:
    async def body(server: SlowPull) -> None:
        settings = ProgramSettings(ollama=OllamaSettings(host=server.url))
        session = Session(tmp_path, settings)
        async with on_screen(session, (80, 24)) as (app, pilot):
            await until(pilot, lambda: "There is no model here yet" in screen_text(app))
            request = RunRequest(
                verb="pull", params={"tag": "a"}, settings=settings, home=str(tmp_path), title="pull a", detached=True
            )
            run_id = await asyncio.to_thread(start_detached, request)
            server.allow(1)
            await until(pilot, lambda: "1 of 100 B" in app.work_shown)
            assert session.saved.run_id == run_id
            await pilot.press("x")
            server.allow()
            await until(pilot, lambda: session.run is not None and session.run.exit_code == 130)

    with SlowPull() as server:
        asyncio.run(body(server))


def test_a_gguf_is_given_a_tag_and_a_tag_is_unpacked_by_small_forms(tmp_path: Path) -> None:
    """Without Ollama: into our own library, whose tags are then known by the file that they name."""
    from amigo_local.domain.artifact import Artifact
    from amigo_local.engine.fingerprint import digest_path, size_of
    from amigo_local.engine.workspace import Workspace

    workspace = Workspace(tmp_path / "home")
    workspace.prepare()
    built = write_tiny_llama(tmp_path / "m.gguf", seed=13)
    target = workspace.default_path("export", "form".ljust(64, "0")) / "m.gguf"
    artifact = Artifact("gguf", str(target), digest_path(built), size_of(built), "export", "form".ljust(64, "0"))
    workspace.commit(artifact, built, target)
    session = Session(tmp_path / "home", NOWHERE)

    async def body() -> None:
        async with on_screen(session) as (app, pilot):
            await listed(app, pilot)
            await pilot.press("g")
            await until(pilot, lambda: isinstance(app.screen, VerbDialog))
            await pilot.press(*"mine")
            app.screen.query_one("#context_length", Input).value = "many"
            await pilot.press("ctrl+s")
            assert "context_length" in str(app.screen.query_one("#problem", Static).content)
            app.screen.query_one("#context_length", Input).value = "256"
            await pilot.press("ctrl+s")
            await until(pilot, lambda: "ollama:mine:latest" in app.refs)
            assert app.models.current and app.models.current.ref == "ollama:mine:latest"
            await until(pilot, lambda: app.facts.get("parameter num_ctx") == "256")
            await pilot.press("u")
            await until(pilot, lambda: isinstance(app.screen, VerbDialog))
            app.screen.query_one("#dtype", Select).value = "f32"
            await pilot.press("ctrl+s")
            held: list[psutil.Process] = []

            def hold() -> bool:
                """So that it isn't done before it is cancelled."""
                if session.run and session.run.verb == "unpack" and (runner := runner_of(session.home)):
                    held.extend((runner, *runner.children()))
                    for process in held:
                        process.suspend()
                return bool(held)

            await until(pilot, hold)
            await until(pilot, lambda: session.live)
            await pilot.press("x")
            for process in held:
                process.resume()
            await until(pilot, lambda: session.run is not None and session.run.exit_code == 130)
            record = read_run(session.workspace, session.saved.run_id)
            assert (record.params["ref"], record.params["dtype"]) == ("ollama:mine:latest", "f32")

    asyncio.run(body())
