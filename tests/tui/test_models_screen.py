"""The Models screen against a real Ollama server, and a home whose artifacts say what made them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Static

from amigo_local.domain.events import AnyEvent, Column, Note, Table
from amigo_local.domain.modelfile import Modelfile
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.tui.screens.base import AmigoScreen
from amigo_local.tui.screens.confirm import Confirm
from amigo_local.tui.screens.models import ModelsScreen
from amigo_local.tui.screens.pick_row import PickRow
from amigo_local.tui.session import Session
from amigo_local.tui.widgets.lineage_tree import LineageTree
from amigo_local.tui.widgets.long_text import LongText
from amigo_local.tui.widgets.model_facts import ModelFacts
from amigo_local.tui.widgets.row_list import RowList
from amigo_local.tui.widgets.table_view import TableView
from tests.support.made_home import TAG, MadeHome
from tests.support.models_app import CountingSession, go_to, listed, on_screen
from tests.support.ollama_runtime import OllamaRuntime
from tests.support.ollama_server import RealOllama, free_port
from tests.support.pinned_session import PinnedSession
from tests.support.tiny_gguf import write_tiny_llama
from tests.support.tui_driving import screen_text, until

NOWHERE = ProgramSettings(ollama=OllamaSettings(use=False))
COLUMNS = tuple(
    Column(name)
    for name in ("model", "where", "size", "architecture", "quantization", "context", "made from", "ref")
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ollama_server: RealOllama) -> MadeHome:
    return MadeHome(tmp_path_factory.mktemp("screen"), ollama_server)


@pytest.fixture
def session(made: MadeHome) -> CountingSession:
    (made.folder / "home" / "tui.json").unlink(missing_ok=True)
    store = OllamaSettings(host=made.server.url, store=str(made.server.models))
    return CountingSession(made.folder / "home", ProgramSettings(ollama=store))


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_tags_and_artifacts_with_details_and_a_way_to_what_they_were_made_from(
    session: CountingSession, made: MadeHome, size: tuple[int, int]
) -> None:
    async def body() -> None:
        async with on_screen(session, size) as (app, pilot):
            await listed(app, pilot)
            assert {f"ollama:{TAG}", made.export.path, made.adapter.path} <= set(app.refs)
            await go_to(app, pilot, f"ollama:{TAG}")
            known = {
                "architecture": "llama",
                "quantization": "Q8_0",
                "context length": "512",
                "parameters": "2,621,440",
            }
            assert known.items() <= app.facts.items()
            assert app.facts["parameter num_ctx"] == "4096"
            assert "Tensors by type" in screen_text(app) or size == (80, 24)
            await pilot.press("right_square_bracket")
            assert "<|im_start|>" in app.details.query_one(LongText).text
            await pilot.press("right_square_bracket")
            await pilot.pause()
            for line in (f"register {TAG}", f"export {TAG}  by direct", "train adapter  by direct", "made from it (1)"):
                assert line in screen_text(app)
            # Down to what the export was made from, and there.
            await pilot.press("enter")
            tree = app.details.query_one(LineageTree).branches
            await until(pilot, lambda: tree.has_focus)
            await pilot.press("down", "down")
            await pilot.pause()
            assert "enter goes there: base" in screen_text(app)
            await pilot.press("enter")
            await until(pilot, lambda: app.facts.get("reference") == "ollama:verbs-source:latest")
            await pilot.press("escape")
            await until(pilot, lambda: app.models.query_one(RowList).has_focus)
            assert app.models.table.region.width > 0

    asyncio.run(body())


def test_details_are_asked_once_for_where_the_cursor_rests_and_what_applies_there_is_offered(
    session: CountingSession, made: MadeHome
) -> None:
    async def body() -> None:
        async with on_screen(session) as (app, pilot):
            await listed(app, pilot)
            app.models.table.point_at(made.export.path)
            app.models.table.point_at(made.adapter.path)
            await go_to(app, pilot, "ollama:verbs-source:latest")
            shown = [asked["ref"] for asked in session.asked if asked.get("action") == "show"]
            assert shown[-1] == "ollama:verbs-source:latest"
            assert made.export.path not in shown and made.adapter.path not in shown
            await go_to(app, pilot, made.export.path)
            count = len(session.asked)
            await go_to(app, pilot, "ollama:verbs-source:latest")
            await go_to(app, pilot, made.export.path)
            assert len(session.asked) == count
            await pilot.press("f5")
            await until(pilot, lambda: session.asked[-1].get("ref") == made.export.path)
            assert session.asked[count]["verb"] == "models"
            assert app.offered == {"unpack", "register", "remove", "compare", "refine"}
            app.models.table.point_at(f"ollama:{TAG}")
            assert app.offered == {"unpack", "remove", "compare", "refine"}
            app.models.table.point_at(made.adapter.path)
            await until(pilot, lambda: "Unpack" not in screen_text(app))
            assert app.offered == {"remove"}
            await pilot.press("u")
            assert isinstance(app.screen, ModelsScreen)

    asyncio.run(body())


def test_a_removal_says_what_depends_on_it_and_waits_for_a_yes(session: CountingSession, made: MadeHome) -> None:
    server = OllamaServer(made.server.host)
    server.create("screen-gone", made.folder / "base.gguf", Modelfile(), lambda event: None)

    async def body() -> None:
        async with on_screen(session) as (app, pilot):
            await listed(app, pilot)
            app.models.table.point_at(made.adapter.path)
            await pilot.press("delete")
            await until(pilot, lambda: "Depends on it:" in screen_text(app))
            assert isinstance(app.screen, Confirm)
            assert made.export.path in str(app.screen.query(Static).first().content)
            await pilot.press("escape")
            assert Path(made.adapter.path).exists()
            app.models.table.point_at("ollama:screen-gone:latest")
            await pilot.press("delete")
            await until(pilot, lambda: "Ollama at http" in screen_text(app))
            assert server.has("screen-gone")
            await pilot.press("y")
            await until(pilot, lambda: "ollama:screen-gone:latest" not in app.refs)
            assert not server.has("screen-gone") and not app.has_failed()

    asyncio.run(body())


def test_without_a_server_artifacts_are_listed_and_it_says_how_to_start_one(made: MadeHome) -> None:
    away = ProgramSettings(ollama=OllamaSettings(host=f"http://127.0.0.1:{free_port()}"))

    async def body() -> None:
        async with on_screen(Session(made.folder / "home", away)) as (app, pilot):
            await listed(app, pilot)
            assert app.refs and not any(ref.startswith("ollama:") for ref in app.refs)
            told = "no Ollama server answers; its tags are not listed: ollama serve"
            await until(pilot, lambda: told in screen_text(app))
            await go_to(app, pilot, made.export.path)

    asyncio.run(body())


def test_a_server_that_goes_away_is_told_and_what_was_listed_stays(
    ollama_runtime: OllamaRuntime, tmp_path: Path
) -> None:
    async def body() -> None:
        with RealOllama(ollama_runtime, tmp_path / "own") as own:
            server = OllamaServer(own.host)
            server.create("there", write_tiny_llama(tmp_path / "m.gguf", seed=5), Modelfile(), lambda event: None)
            server.create("other", tmp_path / "m.gguf", Modelfile(system="x"), lambda event: None)
            settings = ProgramSettings(ollama=OllamaSettings(host=own.url, store=str(own.models)))
            async with on_screen(Session(tmp_path / "home", settings)) as (app, pilot):
                await listed(app, pilot)
                await go_to(app, pilot, "ollama:other:latest")
                own.kill()
                app.models.table.point_at("ollama:there:latest")
                facts = app.details.query_one(ModelFacts)
                await until(pilot, lambda: facts.failure is not None)
                assert "✗" in screen_text(app) and "ollama serve" in screen_text(app)
                await pilot.press("delete")
                await until(pilot, lambda: "no Ollama server answers" in app.has_failed())
                assert len(app.refs) == 2
                await pilot.press("f5")
                await until(pilot, lambda: "its tags are not listed" in screen_text(app))
                assert "There is no model here yet" in screen_text(app)

    asyncio.run(body())


def pinned(names: list[str], shown: Mapping[str, str] = {}) -> Mapping[str, Any]:
    """Answers of `models` for tags of those names; `shown`: properties of each."""
    rows = tuple((name, "Ollama", 1 << 30, "llama", "Q4_K_M", 8192, None, f"ollama:{name}") for name in names)

    def answer(params: Mapping[str, Any]) -> list[AnyEvent]:
        if params.get("action") == "show":
            properties = (("reference", params["ref"]), *shown.items())
            return [Table(params["ref"], (Column("property"), Column("value")), properties)]
        return [Table("Models", COLUMNS, rows)]

    return {"models": answer}


@pytest.mark.parametrize(
    ("template", "piece", "size"),
    [
        ("x" * 200_000, "x", (80, 24)),
        ("{{ .Prompt }}\n" * 15_000, "Prompt", (120, 40)),
        ("\x1b[2J\x07" * 50_000, "␛[2J", (40, 10)),
        ("東京" * 100_000, "東", (80, 24)),
    ],
    ids=["line", "lines", "escapes", "wide"],
)
def test_long_names_and_texts_of_200_000_characters_leave_the_layout_whole(
    tmp_path: Path, template: str, piece: str, size: tuple[int, int]
) -> None:
    answers = pinned(
        ["n" * 300, "東京" * 80, "e\x1b[31mvil"], {"template": template, "parameter stop": "\x1b[2J" + "s" * 5000}
    )

    async def body() -> None:
        session = PinnedSession(tmp_path, answers, with_run=False)
        async with on_screen(session, size) as (app, pilot):
            await listed(app, pilot)
            await until(pilot, lambda: "parameter stop" in app.facts)
            before = time.perf_counter()
            await pilot.press("right_square_bracket", "enter")
            await pilot.pause()
            assert time.perf_counter() - before < 2
            text = app.details.query_one(LongText)
            assert text.text.count(piece) >= 15_000  # the whole of it
            assert text.has_focus
            await pilot.press("end")
            for widget in (app.details, text):
                assert widget.region.x >= 0 and widget.region.right <= size[0] and widget.region.bottom <= size[1]
            assert "\x1b" not in screen_text(app)
            assert all(len(line) <= size[0] for line in screen_text(app).splitlines())

    asyncio.run(body())


def test_a_tag_that_is_elsewhere_keeps_its_warning_and_text(tmp_path: Path) -> None:
    def answer(params: Mapping[str, Any]) -> list[AnyEvent]:
        if params.get("action") == "show":
            note = Note("its weights can't be read here: no folder", "warning", "--set ollama.store=DIR")
            return [note, Table("t", (Column("property"), Column("value")), (("architecture", "llama"),))]
        row = ("far:1b", "remote", None, "llama", None, None, None, "ollama:far:1b")
        return [Table("Models", COLUMNS, (row,))]

    async def body() -> None:
        session = PinnedSession(tmp_path, {"models": answer}, with_run=False)
        async with on_screen(session, (80, 24)) as (app, pilot):
            await listed(app, pilot)
            await until(pilot, lambda: "can't be read here" in screen_text(app))
            assert "--set ollama.store=DIR" in screen_text(app)
            assert app.offered == {"remove", "compare"}

    asyncio.run(body())


def test_compare_and_refine_hand_the_model_to_the_other_screens(tmp_path: Path) -> None:
    async def body() -> None:
        session = PinnedSession(tmp_path, pinned(["source:1b", "refined:1b", "third:1b"]), with_run=False)
        async with on_screen(session) as (app, pilot):
            await listed(app, pilot)
            app.models.table.point_at("ollama:source:1b")
            await pilot.press("c")
            await until(pilot, lambda: isinstance(app.screen, PickRow) and "with …" in screen_text(app))
            assert "ollama:source:1b" not in [row[0] for row in app.screen.query_one(TableView).shown]
            await pilot.press("slash", *"refined")
            await pilot.press("enter", "enter")
            await until(pilot, lambda: isinstance(app.screen, AmigoScreen) and app.screen.NAME == "compare")
            assert (session.saved.compare.left, session.saved.compare.right) == (
                "ollama:source:1b",
                "ollama:refined:1b",
            )
            app.action_show_screen("models")
            await until(pilot, lambda: bool(app.screen_stack) and isinstance(app.screen, ModelsScreen))
            await pilot.press("r")
            await until(pilot, lambda: isinstance(app.screen, AmigoScreen) and app.screen.NAME == "recipe")
            assert session.saved.choice.model == "ollama:source:1b"
            await pilot.pause()

    asyncio.run(body())
