"""PlanAsking: the plan of what is chosen, asked one at a time; of several choices in a row the newest is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amigo_local.tui.asking import Reply
from amigo_local.tui.session import Session


class PlanAsking:
    def __init__(self, session: Session, show: Callable[[Reply], None]) -> None:
        self._session, self._show = session, show
        self._asked: dict[str, Any] = {}
        """What the plan that shows, or is being made, was asked for."""
        self._asking = self._again = False

    @property
    def question(self) -> dict[str, Any]:
        """What is chosen now, as `plan` takes it."""
        choice = self._session.saved.choice
        wished = {"vram": choice.vram, "ram": choice.ram}
        return self._session.loop_params() | {name: size for name, size in wished.items() if size}

    @property
    def is_answered(self) -> bool:
        """Whether that is what the newest plan is of, be it still in the making."""
        return self.question == self._asked

    def forget(self) -> None:
        """What is made and what is free may be other things by now: the same question counts as new."""
        self._asked = {}

    async def ask(self) -> None:
        """Until the newest choice is planned; what was asked in between isn't shown."""
        self._again = True
        if self._asking:
            return
        self._asking = True
        try:
            while self._again:
                self._again, question = False, self.question
                self._asked = question
                reply = await self._session.ask("plan", question)
                if question == self.question:
                    self._show(reply)
        finally:
            self._asking = False
