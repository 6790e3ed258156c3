"""Comparison: one prompt to one or two models, who said what on which side, and the vote on it. It draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Literal

import msgspec

from amigo_local.data.votes import Choice, Verdict, Vote, can_vote, taken_back, vote_on
from amigo_local.domain.events import AnyEvent, GenerationFinished, TokenGenerated
from amigo_local.domain.generation import Message

History = tuple[Message, ...]
VERDICTS: dict[Verdict, str] = {"tie": "a tie", "both_bad": "both are bad"}
"""As words, where no side is better."""


class Side(msgspec.Struct, eq=False):
    """What one model says to the prompt."""

    model: str
    """REF."""
    history: History = ()
    """The turns before."""
    said: list[str] = []
    finished: GenerationFinished | None = None

    @property
    def text(self) -> str:
        self.said = ["".join(self.said)]
        return self.said[0]


Ended = Literal["", "running", "cancelled", "failed"]
"""How the answers came to their end; empty: all are whole."""


class Talk(msgspec.Struct, kw_only=True):
    """What is kept of a comparison until the app is opened again; its fields are those of Comparison."""

    prompt: str = ""
    sides: list[Side] = []
    blind: bool = False
    hidden: bool = False
    vote: Vote | None = None
    ended: Ended = ""
    conversation: dict[str, History] = {}


class Comparison:
    """`sides` stand as they are shown, the left one first. `chance` shuffles them when nobody may know who is who."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.sides: list[Side] = []
        self.prompt = ""
        self.blind = False
        self.hidden = False
        """Names and telling figures aren't to be seen before the vote."""
        self.vote: Vote | None = None
        self.ended: Ended = ""
        self._conversation: dict[str, History] = {}
        """Earlier turns by REF."""
        self._asked: list[Side] = []
        """Who is asked now, by the side of the events."""

    # -- From one start of the app to the next

    def kept(self) -> Talk:
        """It has the sides themselves: what they are still to say is in it too."""
        return Talk(
            prompt=self.prompt,
            sides=self.sides,
            blind=self.blind,
            hidden=self.hidden,
            vote=self.vote,
            ended=self.ended,
            conversation=self._conversation,
        )

    def take_up(self, talk: Talk) -> bool:
        """True when the end of the app has cut its answers; nothing of it is hidden then."""
        self.prompt, self.sides, self.blind, self.hidden = talk.prompt, talk.sides, talk.blind, talk.hidden
        self.vote, self.ended, self._conversation = talk.vote, talk.ended, talk.conversation
        cut = self.running
        if cut:
            self.ended = "failed"
            self.reveal()
        return cut

    # -- Asking

    def begin(self, prompt: str, models: Sequence[str], blind: bool) -> dict[str, Any]:
        """What `chat` is to be asked. A conversation goes on with the same models only."""
        if set(models) != set(self._conversation):
            self._conversation = {}
        models = list(models)
        self.blind = self.hidden = blind and len(models) == 2
        if self.blind:
            self.chance.shuffle(models)
        self.prompt, self.vote = prompt, None
        self.sides = [Side(model, self._conversation.get(model, ())) for model in models]
        return self._ask(self.sides)

    def ask_the_rest(self) -> dict[str, Any] | None:
        """When the first of two failed and the other was therefore never asked: what to ask that one."""
        first, *rest = self._asked
        if first.finished or any(side.text or side.finished for side in rest):
            return None
        return self._ask(rest) if rest else None

    def _ask(self, sides: list[Side]) -> dict[str, Any]:
        self._asked, self.ended = list(sides), "running"
        return {
            "ref": [side.model for side in sides],
            "prompt": self.prompt,
            "history": [[{"role": turn.role, "content": turn.content} for turn in side.history] for side in sides],
            "together": "auto" if len(sides) == 2 else "no",
        }

    def take(self, event: AnyEvent) -> int | None:
        """Takes in what was said; returns which of `sides` it was, None for other events."""
        if not isinstance(event, TokenGenerated | GenerationFinished) or event.side >= len(self._asked):
            return None
        side = self._asked[event.side]
        if isinstance(event, TokenGenerated):
            side.said.append(event.text)
        else:
            side.finished = event
        return self.sides.index(side)

    @property
    def running(self) -> bool:
        return self.ended == "running"

    def end(self, cancelled: bool = False) -> bool:
        """Nothing more comes. True when every side has answered: then the conversation is a turn longer."""
        whole = bool(self.sides) and all(side.finished for side in self.sides)
        self.ended = "" if whole else "cancelled" if cancelled else "failed"
        if whole:
            for side in self.sides:
                turn = (Message("user", self.prompt), Message("assistant", side.text))
                self._conversation[side.model] = (*side.history, *turn)
        return whole

    def start_anew(self) -> None:
        self._conversation = {}

    def swap(self) -> None:
        self.sides.reverse()

    @property
    def turns(self) -> int:
        """Of the conversation so far."""
        return max((len(history) // 2 for history in self._conversation.values()), default=0)

    @property
    def turn(self) -> int:
        """Which one the sides show, from 1 on; 0: none."""
        return max((len(side.history) // 2 + 1 for side in self.sides), default=0)

    # -- Voting

    @property
    def can_vote(self) -> bool:
        whole = not self.running and all(side.finished for side in self.sides)
        return whole and self.vote is None and can_vote([side.text for side in self.sides])

    def choose(self, choice: Choice, now: float) -> Vote:
        """The vote, to be kept. Raises InputError when there is nothing to choose between."""
        return vote_on(
            self.prompt,
            [side.text for side in self.sides],
            [side.model for side in self.sides],
            choice,
            time=now,
            histories=[side.history for side in self.sides],
            blind=self.hidden,
        )

    def take_back(self, now: float) -> Vote | None:
        """What takes the vote back, to be kept; None when there was none."""
        return taken_back(self.vote, now) if self.vote else None

    def reveal(self) -> None:
        self.hidden = False


def brief(note: str) -> str:
    """Its first clause and its last: `both fit: FIGURES: they answer at the same time`, but for the figures."""
    clauses = note.split(": ")
    return note if len(clauses) < 3 else f"{clauses[0]}: {clauses[-1]}"
