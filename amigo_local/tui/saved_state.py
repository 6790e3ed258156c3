"""SavedState: what the app remembers from one start to the next, in `tui.json` of the home folder."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import msgspec

from amigo_local.domain.recipe import EvaluateSettings, Suite
from amigo_local.engine.workspace import write_synced
from amigo_local.tui.comparison import Talk

STATE_FILE = "tui.json"
PROMPTS_KEPT = 200
_writing = threading.RLock()
"""A signal may come while the same thread writes."""


class RecipeChoice(msgspec.Struct, kw_only=True):
    """What the Loop and Recipe screens work on."""

    recipe: list[str] = []
    """Names or paths; several make a chain."""
    model: str = ""
    """REF, instead of the recipe's own; empty: the recipe's."""
    overrides: list[str] = []
    """`key.path=value`, as --set takes them."""
    vram: str = ""
    ram: str = ""
    """To plan for another machine; empty: this one."""

    @property
    def is_demo(self) -> bool:
        """It brings its model with it, so that there is nothing to plan with before it runs."""
        return self.recipe == ["demo"] and not self.model


class CompareState(msgspec.Struct, kw_only=True):
    left: str = ""
    right: str = ""
    """REFs."""
    draft: str = ""
    blind: bool = False
    prompts: list[str] = []
    """Sent before, the oldest first."""
    prompt_set: str = ""
    """Path of a file with prompts."""
    prompt_place: int = 0
    talk: Talk = msgspec.field(default_factory=Talk)
    """What was asked last, the answers, the vote on them, and the turns before."""


class EvaluateState(msgspec.Struct, kw_only=True):
    refs: list[str] = []
    """REFs of one model, or of two to compare."""
    suites: list[Suite] = msgspec.field(default_factory=lambda: list(EvaluateSettings().suites))
    problems: int | None = None
    """Of HumanEval; None: all."""
    max_tokens: int = EvaluateSettings().max_answer_tokens
    shown: str = ""
    """Folder of an older evaluation that was chosen to be looked at; empty: the newest."""


class SavedState(msgspec.Struct, kw_only=True):
    theme: str = ""
    screen: str = ""
    run_id: str = ""
    """The run that is followed."""
    choice: RecipeChoice = msgspec.field(default_factory=RecipeChoice)
    compare: CompareState = msgspec.field(default_factory=CompareState)
    evaluate: EvaluateState = msgspec.field(default_factory=EvaluateState)


def read_state(home: Path) -> SavedState:
    """A fresh state where there is none yet, or none that can be read: it is no more than convenience."""
    try:
        return msgspec.json.decode((home / STATE_FILE).read_bytes(), type=SavedState)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return SavedState()


def write_state(home: Path, state: SavedState) -> None:
    """Replaces the file; a home that can't be written remembers nothing."""
    waiting = home / f"{STATE_FILE}-{os.getpid()}.partial"  # there may be another window
    with _writing, contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
        write_synced(waiting, msgspec.json.format(msgspec.json.encode(state), indent=1))
        waiting.replace(home / STATE_FILE)
