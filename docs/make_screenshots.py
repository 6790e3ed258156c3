"""Writes the pictures of all screens in docs/images, taken of real work: `make screenshots`.

The work is `amigo-local demo` with a real Ollama server (ten minutes, the first time); its home stays in
.cache/screenshots. A training is then begun anew, its screens are taken while it runs, and it is cancelled.
Needs bubblewrap, Chromium and Fira Code: apt install bubblewrap chromium fonts-firacode.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from textual.pilot import Pilot

from amigo_local.domain.events import RunFinished
from amigo_local.domain.settings import ProgramSettings
from amigo_local.engine.journal import read_journal
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.saved_state import CompareState, EvaluateState
from amigo_local.tui.session import Session

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.browser import Browser
from tests.support.ollama_runtime import prepare_runtime
from tests.support.ollama_server import RealOllama
from tests.support.served_app import Served
from tests.support.tui_driving import headless, screen_text, until

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
STAGE = CACHE / "screenshots"
IMAGES = ROOT / "docs" / "images"
SHOWN_AS = Path("/srv")
"""Where STAGE is mounted, so that no picture shows a path of the machine that made it."""
SIZE = (120, 40)
OLD, NEW = "ollama:smollm2-135m:amigo-demo-base", "ollama:smollm2-135m:amigo-demo"
PROMPT = "Write a function that says whether a word is a palindrome."


class Picture(NamedTuple):
    screen: str
    there: str
    """Regular expression: what is to be read on it before it is taken."""
    keys: Sequence[str] = ()
    """Pressed before that."""
    name: str = ""
    """Of its file; empty: the screen's."""


BEFORE = (Picture("recipe", r"a  process"),)
WHILE_TRAINING = (
    Picture("loop", r"train +running .* [5-9]\d %"),
    Picture("train", r"[5-9]\d %"),
    Picture("loop", r"train +running .* [5-9]\d %", ["ctrl+t"], name="light"),
)
AFTERWARDS = (
    Picture("models", "adapter(.|\\n)*base", ["right_square_bracket", "right_square_bracket"]),
    Picture("compare", r"tok/s(.|\n)*l Left", [*PROMPT, "enter"]),
    Picture("evaluate", "code at once +[0-9]"),
    Picture("runs", "Stages"),
    Picture("doctor", "What fits"),
)


def main() -> None:
    _check_tools()
    STAGE.mkdir(parents=True, exist_ok=True)
    with RealOllama(prepare_runtime(CACHE / "ollama"), STAGE / "ollama") as server:
        environment = {**os.environ, "OLLAMA_HOST": server.host, "OLLAMA_MODELS": str(SHOWN_AS / "ollama" / "models")}
        environment |= {"TZ": "UTC", "OMP_NUM_THREADS": "1", "HOME": str(SHOWN_AS)}
        mounted = ["bwrap", "--dev-bind", "/", "/", "--bind", str(STAGE), str(SHOWN_AS), "--chdir", str(SHOWN_AS)]
        subprocess.run([*mounted, sys.executable, str(Path(__file__)), "--draw"], env=environment, check=True)
        _take_web(server)
    _to_png(sorted((STAGE / "svg").glob("*.svg")))


def _check_tools() -> None:
    missing = [package for binary, package in (("bwrap", "bubblewrap"), ("chromium", "chromium")) if not _has(binary)]
    if not _has("fc-match") or "FiraCode" not in subprocess.check_output(["fc-match", "Fira Code"], text=True):
        missing += ["fontconfig", "fonts-firacode"]
    if missing:
        sys.exit(f"pictures need more: apt install {' '.join(missing)}")


def _has(binary: str) -> bool:
    return shutil.which(binary) is not None


def _to_png(drawings: Sequence[Path]) -> None:
    """By a browser: what Fira Code lacks comes from another font, which cairosvg doesn't do."""
    for drawing in drawings:
        width, height = (float(size) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing.read_text())[0])
        png = drawing.with_suffix(".png")
        with Browser((round(width), round(height))) as browser:
            browser.open(drawing.as_uri())
            browser.screenshot(png)
        _keep(png)


def _take_web(server: RealOllama) -> None:
    """What was compared last is there again, in a browser too."""
    with Served(STAGE / "amigo", "--screen", "compare", ollama=server.url) as served, Browser((1280, 800)) as browser:
        browser.open(served.url)
        browser.wait_for(lambda: browser.received.count(" tok/s") >= 2, 60)
        time.sleep(1)  # what it has received is drawn
        browser.screenshot(STAGE / "web.png")
    _keep(STAGE / "web.png")


def _keep(png: Path) -> None:
    few = Image.open(png).convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
    few.save(IMAGES / png.name, optimize=True)
    print(IMAGES / png.name)


# -- Inside of the mount


def draw() -> None:
    home = SHOWN_AS / "amigo"
    finished = _finished(home)
    if not finished:
        script = Path(sys.executable).with_name("amigo-local")
        subprocess.run([str(script), "demo", "--home", str(home)], check=True)
        finished = _finished(home)
    shutil.rmtree(SHOWN_AS / "svg", ignore_errors=True)
    (SHOWN_AS / "svg").mkdir()
    asyncio.run(_take_all(home, finished))


def _finished(home: Path) -> float:
    """When the newest run that came to a good end did; 0.0: there is none."""
    ends = (
        record.time
        for journal in home.glob("runs/*/journal.jsonl")
        for record in read_journal(journal)
        if isinstance(record.event, RunFinished) and record.event.exit_code == 0
    )
    return max(ends, default=0.0)


async def _take_all(home: Path, finished: float) -> None:
    async with _opened(home, time.time) as (app, pilot):
        app.session.saved.choice.recipe = ["demo"]
        app.session.saved.choice.model = OLD
        app.session.saved.choice.overrides = [f"train.seed={time.time_ns() % 1_000_000_000}"]  # never trained before
        for picture in BEFORE:
            await _take(picture, app, pilot)
        run_id = await app.session.start_loop("run", app.session.loop_params())
        for picture in WHILE_TRAINING:
            await _take(picture, app, pilot)
        app.action_toggle_light()
        app.session.command("cancel")
        await until(pilot, lambda: not app.session.is_live(run_id))
        app.session.saved.choice.overrides = []
    for left in (home / "runs" / run_id, *(home / "artifacts").glob("*.partial")):
        shutil.rmtree(left)
    async with _opened(home, lambda: finished + 120) as (app, pilot):
        app.session.saved.compare = CompareState(left=OLD, right=NEW)
        app.session.saved.evaluate = EvaluateState(refs=[OLD, NEW])
        for picture in AFTERWARDS:
            await _take(picture, app, pilot)


@contextlib.asynccontextmanager
async def _opened(home: Path, clock: Callable[[], float]) -> AsyncIterator[tuple[AmigoApp, Pilot[None]]]:
    session = Session(home, ProgramSettings(), clock=clock)
    app = AmigoApp(session)
    async with headless(app, SIZE) as pilot:
        yield app, pilot
    await session.close()


async def _take(picture: Picture, app: AmigoApp, pilot: Pilot[None]) -> None:
    app.action_show_screen(picture.screen)
    await _settle(pilot)
    await pilot.press(*({" ": "space", ".": "full_stop"}.get(key, key) for key in picture.keys))
    await until(pilot, lambda: bool(re.search(picture.there, screen_text(app))), 300)
    await _settle(pilot)
    (SHOWN_AS / "svg" / f"{picture.name or picture.screen}.svg").write_text(_as_typed(app.export_screenshot()))


def _as_typed(svg: str) -> str:
    """Without Fira Code's ligatures, which terminals don't show either."""
    plain = "font-family: Fira Code, monospace;"
    return svg.replace(plain, f"{plain} font-variant-ligatures: none;")


async def _settle(pilot: Pilot[None]) -> None:
    """Until nothing new is drawn; a cursor that blinks is waited for no longer than it takes to see that."""
    last, same = "", 0
    for _ in range(40):
        await pilot.pause(0.1)
        now = pilot.app.export_screenshot()
        same, last = (same + 1 if now == last else 0), now
        if same == 8:
            return


if __name__ == "__main__":
    draw() if sys.argv[1:] == ["--draw"] else main()
