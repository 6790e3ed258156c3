"""Session: what all screens share. It starts and asks verbs, follows a run, and remembers; it draws nothing."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from amigo_local.domain.errors import EXIT_FAILED, InputError
from amigo_local.domain.events import Progress, Record, StageFailed, TokenGenerated
from amigo_local.domain.run_state import RunState
from amigo_local.domain.settings import ProgramSettings
from amigo_local.engine.control import Command, tell_run
from amigo_local.engine.follow import JournalFollower
from amigo_local.engine.journal import JOURNAL_NAME
from amigo_local.engine.live_runs import live_runs
from amigo_local.engine.lock import is_alive
from amigo_local.engine.run_record import read_run
from amigo_local.engine.runner_process import RunRequest, start_detached
from amigo_local.engine.workspace import Workspace
from amigo_local.tui.asking import Asked, Reply, RunnerPool
from amigo_local.tui.saved_state import read_state, write_state

LOOKED_AT = 10
"""Of the runs only the newest can be going on unseen."""
POLL_SECONDS = 0.1
TELL_SECONDS = 0.2
LIVENESS_SECONDS = 0.5
SLICE_SECONDS = 0.004
"""Applying records in one go, before others get their turn, which is as long while a key is being answered."""
BREATH_SECONDS = 0.0005
"""Their turn while no key is."""
SLICE_BYTES = 1 << 15
"""Of a journal, about a hundred records."""

OnUpdate = Callable[[RunState, list[Record]], None]
"""Told at most once in TELL_SECONDS: the whole, and what is new in it but pieces of text and progress."""


class Loop(NamedTuple):
    """What makes two loops the same one: how much of it is run at once, and with which changes, doesn't."""

    verb: str
    recipe: tuple[str, ...]
    model: str


class Session:
    """One per app. `on_update` is the app's: it hands what is new to the screen that shows."""

    def __init__(self, home: Path, settings: ProgramSettings, clock: Callable[[], float] = time.time) -> None:
        self.home, self.settings, self.clock = home, settings, clock
        self.workspace = Workspace(home)
        self.saved = read_state(home)
        self.run: RunState | None = None
        """The run that is followed."""
        self.live = False
        """Whether that run goes on now, whoever started it."""
        self.on_update: OnUpdate = lambda state, records: None
        self.on_failure: Callable[[StageFailed], None] = lambda failure: None
        """Told what goes wrong while nobody asks."""
        self._loop: Loop | None = None
        """What the followed run was asked, where it works from a recipe."""
        self._pool = RunnerPool(home / "cache" / "runners.log")
        self._following: asyncio.Task[None] | None = None
        self._beginning: tuple[RunRequest, asyncio.Task[str]] | None = None
        self._held_until = self._held_at_most = 0.0

    # -- Verbs that are answered

    def stream(self, verb: str, params: Mapping[str, Any]) -> Asked:
        """The records of a verb as they come: `async for batch in session.stream(…)`."""
        return Asked(self._pool, self._request(verb, params))

    async def ask(self, verb: str, params: Mapping[str, Any] | None = None) -> Reply:
        """Everything a verb says, once it has ended. A failure is in the reply, not raised."""
        asked = self.stream(verb, params or {})
        records: list[Record] = []
        async for batch in asked:
            records += batch
        asked.reply.records = records
        return asked.reply

    # -- Runs

    async def start(self, verb: str, params: Mapping[str, Any], title: str = "", resume: str | None = None) -> str:
        """Starts a run that outlives this program, follows it, and returns its id. Raises InputError when it is
        refused: the home is in use, or the settings are wrong."""
        request = self._request(verb, params, title=title or verb, resume=resume, detached=True)
        return await self._begin(request)

    async def _begin(self, request: RunRequest) -> str:
        """The same asked again while it is being started, as by a key pressed twice, is one run; and whoever no longer
        waits for it leaves nobody with a run that isn't followed."""
        if self._beginning is None or self._beginning[0] != request or self._beginning[1].done():
            self._beginning = request, asyncio.ensure_future(self._start_and_follow(request))
        return await asyncio.shield(self._beginning[1])

    async def _start_and_follow(self, request: RunRequest) -> str:
        run_id = await asyncio.to_thread(start_detached, request)
        await self.follow(run_id)
        return run_id

    def loop_params(self) -> dict[str, Any]:
        """The settings of the chosen loop, as `plan` and `run` take them."""
        choice = self.saved.choice
        chosen = {"recipe": choice.recipe, "overrides": choice.overrides}
        return chosen | ({"model": choice.model} if choice.model else {})

    async def run_chosen(self, *, next_only: bool) -> str:
        """Starts the chosen loop; the demo, which brings its model, as a whole."""
        if self.saved.choice.is_demo:
            return await self.start_loop("demo", {})
        return await self.start_loop("run", self.loop_params() | {"next": next_only})

    async def start_loop(self, verb: str, params: Mapping[str, Any]) -> str:
        """Starts the chosen loop, in the journal of the followed run when that is one of the same recipe."""
        title = shlex.join([verb, *loop_arguments(params)])
        again = self.run.run_id if self.run and not self.live and self._loop == _loop_of(verb, params) else None
        return await self.start(verb, params, title, resume=again)

    async def resume(self, run_id: str) -> str:
        """Goes on with a run that was cut, cancelled or has failed."""
        request = self._request(
            "runs", {"action": "resume", "id": run_id}, title=f"runs resume {run_id}", detached=True
        )
        return await self._begin(request)

    def command(self, command: Command, run_id: str = "") -> None:
        """Tells a live run to pause, continue, stop or cancel. Raises InputError when it doesn't run or the home
        can't be written."""
        run_id = run_id or self.saved.run_id
        if not run_id:
            raise InputError("there is no run going on to be told that", "start one with Enter on the Loop screen")
        tell_run(self.workspace.runs_dir / run_id, command)

    def is_live(self, run_id: str) -> bool:
        return bool(run_id) and is_alive(self.workspace.runs_dir / run_id)

    async def follow(self, run_id: str, *, choose: bool = True) -> None:
        """Shows that run from its first record on; what was followed before goes on unwatched. choose: its recipe is
        what the screens work on from now on."""
        await self._stop_following()
        choose = choose and run_id != self.saved.run_id
        self.saved.run_id, self.run = run_id, RunState(run_id=run_id)
        self._learn_what_was_asked(run_id, choose)
        self.save()
        self.live = self.is_live(run_id)
        self._following = asyncio.ensure_future(self._follow(run_id, self.run))
        self._following.add_done_callback(self._followed)

    def _learn_what_was_asked(self, run_id: str, choose: bool) -> None:
        self._loop = None
        with contextlib.suppress(InputError):  # of another version: it can be watched all the same
            record = read_run(self.workspace, run_id)
            self._loop = _loop_of(record.verb, record.params)
            if self._loop and choose:
                choice = self.saved.choice
                choice.recipe, choice.model = list(self._loop.recipe), self._loop.model
                choice.overrides = list(record.params.get("overrides") or ())

    @property
    def follows_loop(self) -> bool:
        """Whether the followed run works from a recipe."""
        return self._loop is not None

    @property
    def follows_choice(self) -> bool:
        """Whether it works from the chosen recipe and model, and so lies beside their plan."""
        choice = self.saved.choice
        return self._loop is not None and (self._loop.recipe, self._loop.model) == (tuple(choice.recipe), choice.model)

    async def notice(self) -> bool:
        """While nothing is followed that goes on, a run that does, whoever began it, is; what was chosen stays."""
        if self.live or (self._beginning and not self._beginning[1].done()):
            return False
        found = await asyncio.to_thread(live_runs, self.workspace.runs_dir, LOOKED_AT)
        if not found or self.live:
            return False
        known = self.saved.run_id in found
        await self.follow(self.saved.run_id if known else found[-1], choose=not self.saved.choice.recipe)
        return True

    async def follow_newest(self) -> None:
        """On start: a run that goes on, else the one that was followed last, if it is still there."""
        run_id = self.saved.run_id
        if not await self.notice() and run_id and (self.workspace.runs_dir / run_id / JOURNAL_NAME).is_file():
            await self.follow(run_id)

    async def _follow(self, run_id: str, state: RunState) -> None:
        folder = self.workspace.runs_dir / run_id
        follower = JournalFollower(folder / JOURNAL_NAME)
        told, looked, applied, seen, was_live = 0.0, 0.0, 0.0, -1, self.live
        fresh: list[Record] = []
        while self.run is state:
            until, more = time.monotonic() + SLICE_SECONDS, True
            if until < min(self._held_until, applied + self._held_at_most):
                await asyncio.sleep(SLICE_SECONDS)
                continue
            while more and time.monotonic() < until:
                more = bool(records := follower.poll(SLICE_BYTES))
                for record in records:
                    state.apply(record)
                fresh += [record for record in records if not isinstance(record.event, Progress | TokenGenerated)]
            applied = now = time.monotonic()
            if now - looked >= LIVENESS_SECONDS:
                looked, self.live = now, is_alive(folder)
            if now - told >= TELL_SECONDS and (state.records != seen or self.live != was_live):
                told, seen, was_live = now, state.records, self.live
                self.on_update(state, fresh)
                fresh = []
            pause = SLICE_SECONDS if now < self._held_until else BREATH_SECONDS
            await asyncio.sleep(pause if more else POLL_SECONDS)

    def hold(self, seconds: float, at_most: float = 0.0) -> None:
        """A key is answered in the next `seconds`: new records of the run take half of that time at most; none, until
        they have waited `at_most` seconds for this and the keys before it."""
        self._held_until, self._held_at_most = time.monotonic() + seconds, at_most

    async def _stop_following(self) -> None:
        following, self._following = self._following, None
        if following:
            following.cancel()
            await asyncio.wait([following])

    def _followed(self, following: asyncio.Task[None]) -> None:
        """What ends the following but another run or the end of the app isn't kept quiet."""
        if not following.cancelled() and (error := following.exception()):
            detail = "".join(traceback.format_exception(error))
            hint = f"amigo-local runs watch {self.saved.run_id}"
            self.on_failure(StageFailed(f"the run is no longer followed: {error}", hint, EXIT_FAILED, detail))

    # -- The rest

    def _request(self, verb: str, params: Mapping[str, Any], **more: Any) -> RunRequest:
        return RunRequest(verb=verb, params=dict(params), settings=self.settings, home=str(self.home), **more)

    async def warm(self) -> None:
        """Starts a process ahead of the first question."""
        await self._pool.warm()

    def save(self) -> None:
        write_state(self.home, self.saved)

    async def close(self) -> None:
        """Runs go on; questions end."""
        self.save()
        await self._stop_following()
        await self._pool.close()


def _loop_of(verb: str, params: Mapping[str, Any]) -> Loop | None:
    """None for a verb that works from no recipe."""
    recipe = ("demo",) if verb == "demo" else tuple(params.get("recipe") or ())
    return Loop(verb, recipe, params.get("model") or "") if recipe else None


def loop_arguments(params: Mapping[str, Any]) -> list[str]:
    """The same request as a person would type it."""
    words = [str(recipe) for recipe in params.get("recipe") or ()]
    words += ["--model", params["model"]] if params.get("model") else []
    words += ["--next"] if params.get("next") else []
    return words + [word for text in params.get("overrides") or () for word in ("--set", str(text))]
