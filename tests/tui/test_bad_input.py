"""What others wrote, typed or did to the terminal: nothing steers it, nothing ends the app, nobody is left behind."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from amigo_local.domain.events import (
    AnyEvent,
    CheckpointSaved,
    Column,
    MetricLogged,
    Note,
    Progress,
    Record,
    RunFinished,
    RunStarted,
    StageFailed,
    StageStarted,
    Table,
    encode_record,
)
from amigo_local.domain.settings import ProgramSettings
from amigo_local.engine.run_record import RunRecord
from tests.support.command_line import SCRIPT, environment
from tests.support.pty_program import PtyProgram

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

RUN = "20260101-000000-run"
EVIL = "evil[/]\x1b]0;PWNED\x07[red]\x9b31m[@click=app.quit]\u202e x[/"
"""Sets a terminal's title by two introducers, and is no markup that closes."""


def write_hostile_home(home: Path) -> None:
    """A failed run and a state whose every text is EVIL."""
    folder = home / "runs" / RUN
    folder.mkdir(parents=True)
    events: list[AnyEvent] = [
        RunStarted(verb="run", title=f"run {EVIL}"),
        StageStarted("train-1", EVIL, of=EVIL),
        Progress(EVIL, 1, 2, "steps"),
        MetricLogged(1, {"loss": 1.0, EVIL: 1.0}),
        CheckpointSaved(1, EVIL),
        Note(EVIL, "problem", EVIL),
        Table(EVIL, (Column(EVIL, "text"),), ((EVIL,),)),
        StageFailed(EVIL, EVIL, 1, EVIL),
        RunFinished(1, 3.0),
    ]
    records = [Record(RUN, seq, 1_795_800_000.0, "train" if seq else "run", event) for seq, event in enumerate(events)]
    (folder / "journal.jsonl").write_bytes(b"".join(encode_record(record) + b"\n" for record in records))
    chosen = {"recipe": [EVIL], "model": EVIL, "overrides": [EVIL]}
    asked = RunRecord(run_id=RUN, verb="run", title=f"run {EVIL}", params=chosen, settings=ProgramSettings())
    (folder / "run.json").write_bytes(msgspec.json.encode(asked))
    compare = {"left": EVIL, "right": EVIL, "prompts": [EVIL], "draft": EVIL, "prompt_set": EVIL}
    saved = {"run_id": RUN, "choice": {**chosen, "vram": EVIL}, "compare": compare, "theme": EVIL, "screen": "loop"}
    (home / "tui.json").write_bytes(msgspec.json.encode(saved))


def test_texts_of_others_are_neither_markup_nor_do_they_steer_the_terminal(tmp_path: Path) -> None:
    write_hostile_home(tmp_path)
    with PtyProgram([str(SCRIPT), "tui"], (140, 45), environment(tmp_path)) as app:
        app.wait_for("no recipe at")  # what planning it says
        keys = {
            "2": "Pull",
            "3": "no recipe at",
            "4": "checkpoint",
            "6": "humaneval",
            "7": "Resume",
            "8": "Copy the fix",
        }
        for key, shown in {**keys, "1": "Run next", "5": "PWNED"}.items():
            mark = app.mark()
            app.write(key)
            app.wait_for(shown, mark)
        written = app.since(0)
        mark = app.mark()
        app.write("\x11")
        assert app.wait() == 0, app.since(mark)
    assert "PWNED" in written
    assert set(re.findall("\x1b\\](\\d*)", written)) <= {"22"}  # Textual's own: the shape of the pointer
    assert re.findall("[\x9b\u202e]", written) == []


def test_bytes_that_are_no_utf_8_are_a_typing_error_and_nothing_more(tmp_path: Path) -> None:
    with PtyProgram([str(SCRIPT), "tui"], (100, 30), environment(tmp_path)) as app:
        app.wait_for("Recipe: choose one")
        mark = app.mark()
        for key, shown in {"3": "Choose a recipe", "o": "Open a recipe"}.items():
            app.write(key)
            app.wait_for(shown, mark)
        app.write(b"\xff\x80caf\xe9 au lait")
        app.wait_for("lait", mark)
        app.write(b"\x1b[200~\xfe pasted\x1b[201~")
        app.wait_for("pasted", mark)
        app.write("\x11")
        assert app.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_a_key_does_with_its_processes_and_a_sane_terminal(tmp_path: Path, number: int) -> None:
    with PtyProgram([str(SCRIPT), "tui"], (100, 30), environment(tmp_path)) as app:
        app.wait_for("Recipe: choose one")
        app.wait_for("Ollama server")  # a runner process has answered
        runners = psutil.Process(app.pid).children(recursive=True)
        assert runners
        mark = app.mark()
        app.signal(number)
        assert app.wait() == 0
        assert psutil.wait_procs(runners, timeout=10)[1] == []
        left_on = {mode for mode in ("?1049", "?1000", "?1003", "?2004") if f"\x1b[{mode}l" not in app.since(mark)}
        assert left_on == set() and re.search(r"\x1b\[\?25h", app.since(mark))


def test_a_hangup_told_twice_ends_it(tmp_path: Path) -> None:
    """As by a shell whose terminal is closed; the second comes while the first is still writing."""
    for place in range(3):
        home = tmp_path / str(place)
        with PtyProgram([str(SCRIPT), "tui"], (100, 30), environment(home)) as app:
            app.wait_for("Recipe: choose one")
            for _ in range(2):
                app.signal(signal.SIGHUP)
                time.sleep(0.0005)
            assert app.wait(10) in (128 + signal.SIGHUP, -signal.SIGHUP)
        assert (home / "tui.json").is_file()
