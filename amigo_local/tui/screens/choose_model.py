"""choose_model: asks a person for one of the models that can talk."""

from __future__ import annotations

from amigo_local.tui.screens.base import AmigoScreen
from amigo_local.tui.screens.pick_row import PickRow
from amigo_local.tui.widgets.model_rows import model_rows, overview, short_name


async def choose_model(screen: AmigoScreen, question: str, at: str) -> str:
    """REF; empty when it was left, or when there is none. `at` is where the cursor begins. Called from a worker."""
    session = screen.session
    reply = await session.ask("models")
    if reply.error:
        screen.amigo.show_failure(reply.error)
        return ""
    rows = [row for table in reply.tables for row in model_rows(table) if row.can("compare")]
    if not rows:
        screen.notify("there is no model yet: pull one on the Models screen (2)", severity="warning")
        return ""
    folder = session.workspace.artifacts_dir
    dialog = PickRow(
        question, overview(rows, roomy=False), "model", at, texts={"model": lambda ref: short_name(str(ref), folder)}
    )
    chosen = await screen.app.push_screen_wait(dialog)
    serves_library = bool(reply.notes) or not session.settings.ollama.use
    return next((row.weights_ref(serves_library) for row in rows if row.ref == chosen), "")
