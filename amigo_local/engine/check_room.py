"""Refuses a stage, before anything is written, where memory or disk can't hold what it makes."""

from __future__ import annotations

from amigo_local.domain.errors import InputError
from amigo_local.domain.plan import Needs
from amigo_local.domain.units import format_size
from amigo_local.engine.contract import Params, Stage, StageContext
from amigo_local.engine.execute import output_path
from amigo_local.engine.machine import measure_machine


def check_room(stage: Stage, params: Params, needs: Needs, context: StageContext) -> None:
    """Refuses, before anything is written, what memory or disk can't hold, or would be overwritten."""
    out = output_path(params)
    if out and out.exists():
        raise InputError(f"{out} already exists", "give another --out, or remove it first")
    if needs.ram_bytes > context.machine.ram_total_bytes:
        raise InputError(
            f"RAM: {stage.name} needs {format_size(needs.ram_bytes)}, there are"
            f" {format_size(context.machine.ram_total_bytes)}",
            "use a machine with more memory, or a smaller model",
        )
    machine = measure_machine(out.parent, context.settings.machine) if out else context.machine
    if needs.disk_bytes > machine.disk_free_bytes:
        place = out.parent if out else context.workspace.root
        raise InputError(
            f"the disk of {place} is too small: {stage.name} needs {format_size(needs.disk_bytes)}"
            f" ({needs.disk_bytes} bytes), {format_size(machine.disk_free_bytes)}"
            f" ({machine.disk_free_bytes} bytes) are free",
            "free some space (`amigo-local runs clean`), or use another disk with --home DIR",
        )
