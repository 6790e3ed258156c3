"""ComparePrompts: the prompt box of the Compare screen, and the prompts of a file that are asked one by one."""

from __future__ import annotations

from collections.abc import Iterable

from textual import work
from textual.app import SystemCommand
from textual.widgets import TextArea

from amigo_local.domain.errors import AmigoError
from amigo_local.tui.prompt_set import PromptSet
from amigo_local.tui.saved_state import CompareState
from amigo_local.tui.screens.ask_text import AskText
from amigo_local.tui.screens.base import AmigoScreen
from amigo_local.tui.widgets.prompt_box import PromptBox


class ComparePrompts(AmigoScreen):
    """A screen over it asks what is in the box, and gives these actions their keys, among its own."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt_set = PromptSet()

    def show_standing(self) -> None:
        """A hook, as the base's: another prompt of the set is the next one."""

    @property
    def state(self) -> CompareState:
        return self.session.saved.compare

    @property
    def box(self) -> PromptBox:
        return self.query_one(PromptBox)

    def action_to_prompt(self) -> None:
        self.box.focus()

    def shown(self) -> None:
        if self.state.prompt_set and not self.prompt_set.path:
            self.run_worker(self._read_set(self.state.prompt_set, self.state.prompt_place), group="set", exclusive=True)

    def action_step(self, by: int) -> None:
        """Puts the next prompt of the set into the box, or the one before."""
        if self.prompt_set.prompts:
            self._put(self.prompt_set.step(by))
        else:
            self.action_open_set()

    def _put(self, prompt: str) -> None:
        self.state.prompt_set, self.state.prompt_place = self.prompt_set.path, self.prompt_set.place
        self.box.replace_by(prompt)
        self.action_to_prompt()
        self.show_standing()

    @work(group="dialog", exclusive=True)
    async def action_open_set(self) -> None:
        help = "a .jsonl with a `prompt` column, or a .txt or .md with one prompt a line or --- between them"
        path = await self.app.push_screen_wait(AskText("Ask the prompts of which file?", help, self.state.prompt_set))
        if path and await self._read_set(path, 0):
            self._put(self.prompt_set.step(1))

    async def _read_set(self, path: str, place: int) -> bool:
        try:
            await self.prompt_set.read(path, place)
        except AmigoError as error:
            self.amigo.show_failure(error)
            return False
        self.show_standing()
        return True

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        self.state.draft = self.box.full_text

    def on_prompt_box_held(self, event: PromptBox.Held) -> None:
        self.notify(f"long: it stands in the prompt as {event.word} and is sent in full", markup=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "step":
            return bool(self.prompt_set.prompts) or parameters == (1,)
        return super().check_action(action, parameters)

    def commands(self) -> Iterable[SystemCommand]:
        yield SystemCommand("Open a prompt set", "Ask the prompts of a file one by one", self.action_open_set)
