"""ModelActions: what can be done with the chosen model, and the runs that this begins."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from textual import work
from textual.app import SystemCommand
from textual.binding import Binding, BindingType

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import Record, Table
from amigo_local.domain.run_state import RunState
from amigo_local.engine.follow import JournalFollower
from amigo_local.engine.journal import JOURNAL_NAME
from amigo_local.engine.run_record import read_run
from amigo_local.presentation.formats import cells
from amigo_local.tui.asking import Reply
from amigo_local.tui.screens.base import AmigoScreen
from amigo_local.tui.screens.confirm import Confirm
from amigo_local.tui.screens.pick_row import PickRow
from amigo_local.tui.widgets.model_rows import ModelRow, overview, short_name
from amigo_local.tui.widgets.verb_dialog import VerbDialog
from amigo_local.tui.widgets.work_view import Layers, WorkView

_WORK = ("pull", "unpack", "register")
"""Runs that are shown here."""


class ModelActions(AmigoScreen):
    """A screen over it says which model is the `current` one, has a WorkView, and can `reload` its rows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pull", "Pull"),
        Binding("u", "unpack", "Unpack"),
        Binding("g", "register", "Tag"),
        Binding("delete", "remove", "Remove", key_display="del"),
        Binding("c", "compare", "Compare"),
        Binding("r", "refine", "Refine"),
        Binding("x", "cancel", "Cancel"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, ModelRow] = {}
        """By ref, as listed last."""
        self.serves_library = False
        """Whether our own library answers to its tags: no Ollama server does."""
        self._work = ""
        """Id of the run that is shown."""
        self._work_live = False
        self._layers = Layers()
        self._journal: JournalFollower | None = None

    @property
    def current(self) -> ModelRow | None:
        """The row under the cursor."""
        raise NotImplementedError

    def reload(self, at: str = "") -> object:
        """Asks for the list anew; the cursor stays on its row, or goes to `at`."""
        raise NotImplementedError

    def called(self, row: ModelRow) -> str:
        return short_name(row.ref, self.session.workspace.artifacts_dir)

    def commands(self) -> Iterable[SystemCommand]:
        row, left = self.current, self.session.saved.compare.left
        if row and left and row.can("compare"):
            yield SystemCommand("Compare on the right", "The chosen one; the left one stays", self._compare_right)

    # -- What can be done

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        row = self.current if self.is_mounted else None
        match action:
            case "unpack" | "register" | "remove" | "compare" | "refine":
                return row is not None and row.can(action)
            case "cancel":
                return self._is_working
            case "page":
                return row is not None
            case _:
                return super().check_action(action, parameters)

    @property
    def _is_working(self) -> bool:
        return bool(self.session.live and self.session.run and self.session.run.verb in _WORK)

    @work(group="dialog", exclusive=True)
    async def action_pull(self) -> None:
        from amigo_local.stages.pull import PullParams

        cut = self._cut_pull()
        params = PullParams(**cut) if cut else PullParams(tag="")
        question = "Pull a tag into Ollama" + (f"; {cut['tag']} goes on where it was cut" if cut else "")
        tags = [row.name for row in self.rows.values() if row.where == "Ollama"]
        asked = await self.app.push_screen_wait(
            VerbDialog(question, "Pull", params, ("tag", "insecure"), {"tag": tags})
        )
        if asked:
            again = self.session.run.run_id if self.session.run and asked == cut else None
            await self._begin("pull", asked, f"pull {asked['tag']}", again)

    def _cut_pull(self) -> Mapping[str, Any] | None:
        """Settings of the pull that was shown here last, if it isn't done."""
        run = self.session.run
        if run is None or self.session.live or run.verb != "pull" or run.exit_code == 0:
            return None
        try:
            params = read_run(self.session.workspace, run.run_id).params
        except InputError:
            return None
        return {"tag": params.get("tag", ""), "insecure": bool(params.get("insecure"))}

    @work(group="dialog", exclusive=True)
    async def action_unpack(self) -> None:
        from amigo_local.stages.unpack import UnpackParams

        if row := self.current:
            params = UnpackParams(ref=row.weights_ref(self.serves_library))
            question = f"Unpack {self.called(row)} into a checkpoint"
            asked = await self.app.push_screen_wait(VerbDialog(question, "Unpack", params, ("dtype", "out")))
            if asked is not None:
                given = {name: value for name, value in asked.items() if value is not None}
                await self._begin("unpack", {"ref": params.ref, **given}, f"unpack {params.ref}")

    @work(group="dialog", exclusive=True)
    async def action_register(self) -> None:
        from amigo_local.stages.register import RegisterParams

        if row := self.current:
            params = RegisterParams(file=row.ref, tag="")
            tags = [row.name for row in self.rows.values() if row.is_tag]
            asked = await self.app.push_screen_wait(
                VerbDialog(
                    f"Register {self.called(row)}", "Register", params, ("tag", "like", "context_length"),
                    {"tag": tags, "like": tags},
                )
            )  # fmt: skip
            if asked:
                given = {name: value for name, value in asked.items() if value is not None}
                title = shlex.join(["register", row.ref, "--tag", asked["tag"]])
                await self._begin("register", {"file": row.ref, **given}, title)

    @work(group="dialog", exclusive=True)
    async def action_remove(self) -> None:
        """First what would go, and what depends on it; then, if that is what is wanted, the removal."""
        row = self.current
        if row is None:
            return
        asked: dict[str, Any] = {"action": "rm", "ref": row.ref}
        reply = await self.session.ask("models", asked)
        if reply.error:
            self.amigo.show_failure(reply.error)
            return
        question = Confirm(f"Remove {self.called(row)}?", "Remove", _consequences(reply))
        if not await self.app.push_screen_wait(question):
            return
        reply = await self.session.ask("models", asked | {"yes": True})
        if reply.error:
            self.amigo.show_failure(reply.error)
        for note in reply.notes:
            self.notify(note.text, markup=False)
        self.reload()

    @work(group="dialog", exclusive=True)
    async def action_compare(self) -> None:
        """This one on the left, the chosen one on the right."""
        row = self.current
        others = [other for other in self.rows.values() if other.can("compare") and other is not row]
        if row is None or not others:
            self.notify("there is no other model to compare it with", severity="warning")
            return
        compare = self.session.saved.compare
        chosen = await self.app.push_screen_wait(
            PickRow(
                f"Compare {self.called(row)} with …",
                overview(others, roomy=False),
                "model",
                compare.right,
                texts={"model": lambda ref: short_name(str(ref), self.session.workspace.artifacts_dir)},
            )
        )
        if chosen:
            other = self.rows[chosen]
            compare.left = row.weights_ref(self.serves_library)
            compare.right = other.weights_ref(self.serves_library)
            self.amigo.action_show_screen("compare")

    def _compare_right(self) -> None:
        if (row := self.current) and row.can("compare"):
            self.session.saved.compare.right = row.weights_ref(self.serves_library)
            self.amigo.action_show_screen("compare")

    def action_refine(self) -> None:
        if row := self.current:
            self.session.saved.choice.model = row.weights_ref(self.serves_library)
            self.amigo.action_show_screen("recipe")

    # -- Runs that change the list

    async def _begin(self, verb: str, params: Mapping[str, Any], title: str, resume: str | None = None) -> None:
        try:
            await self.session.start(verb, params, title, resume=resume)
        except AmigoError as error:
            self.amigo.show_failure(error)

    def action_cancel(self) -> None:
        self.steer("cancel")

    def run_updated(self, state: RunState, records: list[Record]) -> None:
        super().run_updated(state, records)
        self.show_work(state)

    def show_work(self, state: RunState) -> None:
        """Only what is seen to go on is shown, and how it ended."""
        live, view = self.session.live, self.query_one(WorkView)
        if state.verb not in _WORK or (not live and self._work != state.run_id):
            self._work, self._work_live = "", False
            view.show(None, self._layers, False)
            self.refresh_bindings()
            return
        if self._work != state.run_id:
            self._work, self._work_live, self._layers = state.run_id, False, Layers()
            self._journal = JournalFollower(self.session.workspace.runs_dir / state.run_id / JOURNAL_NAME)
        while self._journal and (records := self._journal.poll()):
            for record in records:
                self._layers.apply(record)
        view.show(state, self._layers, live)
        was_live, self._work_live = self._work_live, live
        if was_live != live:
            self.refresh_bindings()
            if was_live:
                self._ended(state)

    def _ended(self, state: RunState) -> None:
        made = state.title.rpartition(" ")[2]
        self.reload(f"ollama:{made}" if ":" in made.rpartition("/")[2] else f"ollama:{made}:latest")


def _consequences(reply: Reply) -> str:
    """The tables of `models rm` as lines."""
    return "\n\n".join(_written(table) for table in reply.tables)


def _written(table: Table) -> str:
    return "\n".join([f"{table.title}:", *("  " + ", ".join(row) for row in cells(table))])
