"""CompareScreen: two models side by side, one prompt, both answers as they stream, and a vote."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random
from typing import ClassVar

from textual import work
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from amigo_local.data.votes import Choice, Vote, append_vote
from amigo_local.domain.errors import EXIT_CANCELLED, AmigoError
from amigo_local.domain.events import GenerationFinished, Note, StageFailed, TokenGenerated
from amigo_local.presentation.run_models import models_of
from amigo_local.presentation.visible_text import visible
from amigo_local.tui.asking import Asked
from amigo_local.tui.comparison import VERDICTS, Comparison, Ended, Side, Talk, brief
from amigo_local.tui.prompt_set import newest_prompts
from amigo_local.tui.screens.choose_model import choose_model
from amigo_local.tui.screens.compare_prompts import ComparePrompts
from amigo_local.tui.widgets.answer_view import AnswerView
from amigo_local.tui.widgets.failure_bar import FailureBar
from amigo_local.tui.widgets.model_rows import short_name
from amigo_local.tui.widgets.prompt_box import PromptBox

_ASKED_CHARACTERS = 1000
"""Of a prompt, above its answers."""
_SAID_NOTHING = "it said nothing"


class CompareScreen(ComparePrompts):
    NAME = "compare"
    DEFAULT_CSS = """
    CompareScreen {
        #asked { height: 1; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; display: none; }
        &.-high #asked.shown { display: block; }
        #about { height: auto; max-height: 2; padding: 0 1; }
        #note { width: 1fr; height: auto; min-height: 1; color: $text-muted; padding-right: 2; }
        #standing { width: auto; max-width: 60%; height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
        #panes { height: 1fr; }
        AnswerView { width: 1fr; height: 1fr; }
        &.-narrow #panes { layout: vertical; }
        &.-low #about { max-height: 1; }
        &.-low PromptBox { min-height: 1; max-height: 3; background: $panel; border: none; &:focus { border: none; } }
        &.-low.-narrow AnswerView:focus-within { height: 3fr; }
    }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (70, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (18, "-high")]
    AUTO_FOCUS = "PromptBox"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "vote('first')", "Left"),
        Binding("r", "vote('second')", "Right"),
        Binding("t", "vote('tie')", "Tie"),
        Binding("d", "vote('both_bad')", "Both bad"),
        Binding("u", "take_back", "Take back"),
        Binding("escape", "cancel", "Stop answering"),
        Binding("escape", "to_answers", "Answers"),
        Binding("enter", "to_prompt", "Prompt"),
        Binding("m", "pick(0)", "Model"),
        Binding("M", "pick(1)", "2nd model", key_display="M"),
        Binding("c", "copy('code')", "Copy code"),
        Binding("n", "step(1)", "Next prompt"),
        Binding("p", "step(-1)", "Prompt before", show=False),
        Binding("b", "blind", "Blind"),
        Binding("w", "anew", "New talk"),
        Binding("s", "swap", "Swap", show=False),
        Binding("C", "copy('text')", "Copy all", show=False),
        Binding("o", "open_set", "Prompt set", show=False),
    ]

    def __init__(self, chance: Random | None = None) -> None:
        super().__init__()
        self.comparison = Comparison(chance or Random())
        self._asked: Asked | None = None
        self._note = ""

    def body(self) -> ComposeResult:
        yield Static(id="asked", markup=False)
        with Horizontal(id="about"):
            yield Static(id="note", markup=False)
            yield Static(id="standing", markup=False)
        with Horizontal(id="panes"):
            yield AnswerView(id="left")
            yield AnswerView(id="right")
        yield PromptBox(self.state.draft, self.state.prompts)

    # -- What is shown

    @property
    def views(self) -> list[AnswerView]:
        return list(self.query(AnswerView))

    @property
    def models(self) -> list[str]:
        return [ref for ref in (self.state.left, self.state.right) if ref]

    def on_mount(self) -> None:
        """What was said when the app was closed is there again."""
        cut = self.comparison.take_up(self.state.talk)
        if self.comparison.sides:
            self._redraw()
        if cut:
            self._give_back()
            self._remember()

    def shown(self) -> None:
        if not self.models and self.session.run:
            self.state.left, self.state.right = (*models_of(self.session.run), "", "")[:2]
        comparison = self.comparison
        if not comparison.running and comparison.sides and {side.model for side in comparison.sides} != {*self.models}:
            self._clear()  # others were chosen elsewhere
        if not self.models:  # the box would swallow the very keys that choose one
            self.action_to_answers()
        super().shown()
        self._show_all()

    def _show_all(self) -> None:
        comparison = self.comparison
        for place, view in enumerate(self.views):
            chosen = (self.state.left, self.state.right)[place]
            if place < len(comparison.sides):
                ref = comparison.sides[place].model
                view.show_model("AB"[place] if comparison.hidden else self._short(ref), comparison.hidden)
            else:
                view.show_model(self._short(chosen) if chosen else "no model")
                view.say("" if chosen else self._how_to_choose("mM"[place]), "" if chosen else "waiting")
        self._show_asked()
        self.show_standing()
        self.refresh_bindings()

    def _show_asked(self) -> None:
        """The first line of what the answers are to."""
        prompt = visible(self.comparison.prompt).strip()
        first, _, more = prompt.partition("\n")
        asked = self.query_one("#asked", Static)
        asked.set_class(bool(prompt), "shown")
        asked.update(Content.assemble(("› ", "$primary"), first[:_ASKED_CHARACTERS], " …" if more else ""))
        asked.tooltip = Content(prompt[:_ASKED_CHARACTERS]) if more else None

    def _how_to_choose(self, key: str) -> str:
        return f"{'escape, then ' if self.box.has_focus else ''}{key} chooses a model"

    def _short(self, ref: str) -> str:
        return short_name(ref, self.session.workspace.artifacts_dir)

    def show_standing(self) -> None:
        comparison = self.comparison
        parts = []
        if comparison.can_vote:
            parts.append("escape, then vote" if self.box.has_focus else "which is better?")
        elif comparison.vote:
            parts.append(f"voted: {self._verdict(comparison.vote)}")
        if comparison.turn > 1:
            parts.append(f"turn {comparison.turn}")
        parts += [part for part in (str(self.prompt_set), "blind" if self.state.blind else "") if part]
        self.query_one("#standing", Static).update(Content(" · ".join(parts)))
        self.query_one("#note", Static).update(Content(brief(self._note)))
        self.query_one("#note", Static).tooltip = Content(self._note) if self._note else None

    def _verdict(self, vote: Vote) -> str:
        return VERDICTS.get(vote.verdict, f"{self._short(vote.chosen_model)} is better")

    def _redraw(self) -> None:
        for view, side in zip(self.views, self.comparison.sides, strict=False):
            view.clear()
            view.append(side.text)
            view.finish(side.finished)
            if side.finished and not side.text:
                view.say(_SAID_NOTHING)
        self._mark_unfinished()
        self._show_all()

    def _remember(self) -> None:
        self.state.talk = self.comparison.kept()
        self.run_worker(asyncio.to_thread(self.session.save), group="keep")

    # -- Asking

    def on_prompt_box_submitted(self, event: PromptBox.Submitted) -> None:
        if self.comparison.running:
            self.notify("the models are still answering; escape stops them", severity="warning")
        elif not self.models:
            self.notify(f"no model yet: {self._how_to_choose('m')}", severity="warning")
        else:
            self.box.sent(event.text)
            self.state.prompts = self.box.prompts = newest_prompts(self.box.prompts)
            self.query_one(FailureBar).hide()
            if event.text == self.prompt_set.given:
                self.comparison.start_anew()  # each prompt of a set is asked on its own
            self._answer(event.text)

    @work(group="answers")
    async def _answer(self, prompt: str) -> None:
        comparison = self.comparison
        params = comparison.begin(prompt, self.models, self.state.blind)
        for view in self.views:
            view.clear()
        for view, _ in zip(self.views, comparison.sides, strict=False):
            view.say("waiting for the first word", "waiting")
        self._note = ""
        self._show_all()
        self._remember()
        failures = [await self._stream(params)]
        if failures[0] and failures[0].exit_code != EXIT_CANCELLED and (rest := comparison.ask_the_rest()):
            _mark_unfinished(self.views[0], comparison.sides[0], "failed")
            failures.append(await self._stream(rest))
        failed = next((failure for failure in failures if failure), None)
        cancelled = failed is not None and failed.exit_code == EXIT_CANCELLED
        whole = comparison.end(cancelled)
        if not whole:
            comparison.reveal()
            self._mark_unfinished()
            self._give_back()
            if failed and not cancelled:
                self.amigo.show_failure(failed)
        self._show_all()
        self._remember()
        if whole and not self.box.text and self.box.has_focus:
            self.action_to_answers()

    async def _stream(self, params: dict[str, object]) -> StageFailed | None:
        """Why it didn't come to its end."""
        self._asked = asked = self.session.stream("chat", params)
        async for batch in asked:
            for record in batch:
                self._take(record.event)
        self._asked = None
        reply = asked.reply
        if reply.exit_code == EXIT_CANCELLED:
            return StageFailed("cancelled", "", EXIT_CANCELLED)
        return reply.error if reply.exit_code else None

    def _take(self, event: object) -> None:
        match event:
            case TokenGenerated() | GenerationFinished():
                place = self.comparison.take(event)
                if place is None:
                    return
                view = self.views[place]
                view.say("" if view.text or isinstance(event, TokenGenerated) else _SAID_NOTHING)
                if isinstance(event, TokenGenerated):
                    view.append(event.text)
                else:
                    view.finish(event)
            case Note():
                self._note = f"{event.level}: {event.text}" if event.level in ("warning", "problem") else event.text
                self.show_standing()

    def _mark_unfinished(self) -> None:
        for view, side in zip(self.views, self.comparison.sides, strict=False):
            _mark_unfinished(view, side, self.comparison.ended)

    def _give_back(self) -> None:
        """The prompt is there to be asked again."""
        if not self.box.text:
            self.box.full_text = self.comparison.prompt

    def action_cancel(self) -> None:
        if self._asked:
            self.run_worker(self._asked.cancel(), group="cancel")

    # -- Votes

    @work(group="vote")
    async def action_vote(self, choice: Choice) -> None:
        comparison = self.comparison
        try:
            comparison.vote = vote = comparison.choose(choice, self.session.clock())
        except AmigoError as error:
            self.amigo.show_failure(error)
            return
        if await self._keep(vote):
            comparison.reveal()
        else:
            comparison.vote = None
        self._show_all()
        self._remember()

    @work(group="vote")
    async def action_take_back(self) -> None:
        vote = self.comparison.take_back(self.session.clock())
        if vote and await self._keep(vote):
            self.comparison.vote = None
            self._show_all()
            self._remember()

    async def _keep(self, vote: Vote) -> bool:
        try:
            await asyncio.to_thread(append_vote, self.session.home, vote)
        except AmigoError as error:
            self.amigo.show_failure(error)
            return False
        return True

    # -- Models

    @work(group="dialog", exclusive=True)
    async def action_pick(self, place: int) -> None:
        state = self.state
        question = ("The model on the left", "The model on the right")[place]
        if not (ref := await choose_model(self, question, (state.left, state.right)[place])):
            return
        state.left, state.right = (ref, state.right) if place == 0 else (state.left, ref)
        self._clear()
        if len(self.models) == len(self.views):
            self.action_to_prompt()

    def action_swap(self) -> None:
        self.state.left, self.state.right = self.state.right, self.state.left
        self.comparison.swap()
        self._redraw()
        self._remember()

    def action_blind(self) -> None:
        self.state.blind = not self.state.blind
        self._note = "blind from the next prompt on: sides are shuffled, names come after the vote"
        self._note = self._note if self.state.blind else ""
        self.show_standing()

    def action_anew(self) -> None:
        self._clear()
        self._note = "a new conversation"
        self.show_standing()

    def _clear(self) -> None:
        """Prompt, answers and conversation; not what is in the box."""
        self.comparison.take_up(Talk())
        for view in self.views:
            view.clear()
        self._show_all()
        self._remember()

    # -- Copying, and where the keys go

    def action_copy(self, what: str) -> None:
        view = self._pointed
        side = "left" if view is self.views[0] else "right"
        text = "\n\n".join(view.code()) if what == "code" else view.text
        if not text:
            self.notify(f"there is no {what} on the {side} to copy", severity="warning")
            return
        self.app.copy_to_clipboard(text)
        self.notify(f"copied the {what} on the {side}: {len(text.splitlines()):,} lines")

    @property
    def _pointed(self) -> AnswerView:
        """The pane that has the focus, or had it last."""
        return next((view for view in self.views if view.has_focus_within), self.views[0])

    def action_to_answers(self) -> None:
        self._pointed.focus_text()

    def on_descendant_focus(self) -> None:
        self._show_all()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        running, in_box = self.comparison.running, self.box.has_focus
        match action:
            case "vote":
                return self.comparison.can_vote
            case "take_back":
                return self.comparison.vote is not None
            case "cancel":
                return running
            case "to_answers":
                return in_box and not running
            case "to_prompt":
                return not in_box
            case "pick" | "swap" | "anew":
                return not running
        return super().check_action(action, parameters)

    def commands(self) -> Iterable[SystemCommand]:
        yield SystemCommand("Choose the left model", "Which one answers on the left", lambda: self.action_pick(0))
        yield SystemCommand("Choose the right model", "Which one answers on the right", lambda: self.action_pick(1))
        yield SystemCommand("Swap sides", "Exchange the two", self.action_swap)
        yield SystemCommand("Blind comparison", "Hide who is who until the vote", self.action_blind)
        yield from super().commands()
        yield SystemCommand("New conversation", "Forget the turns before", self.action_anew)
        yield SystemCommand("Copy the answer", "All of the text of the pane in use", lambda: self.action_copy("text"))


def _mark_unfinished(view: AnswerView, side: Side, how: Ended) -> None:
    if not side.finished and how in ("cancelled", "failed"):
        view.finish()
        view.say("stopped" if how == "cancelled" else "not finished" if side.text else "no answer", how)


SCREEN = CompareScreen
