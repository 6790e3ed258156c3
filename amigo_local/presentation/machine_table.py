"""What is free, served and running now, as a table."""

from __future__ import annotations

import time

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Column, MachineMeasured, Table
from amigo_local.domain.units import format_size


def machine_table(event: MachineMeasured) -> Table:
    """Rows of what and how much."""
    machine = event.machine
    rows: list[tuple[Figure, ...]] = []
    if machine.vram_free_bytes is not None and machine.vram_total_bytes is not None:
        name = f" ({machine.gpu_name})" if machine.gpu_name else ""
        rows.append(("VRAM", _of(machine.vram_free_bytes, machine.vram_total_bytes) + name))
    rows.append(("RAM", _of(machine.ram_available_bytes, machine.ram_total_bytes)))
    rows.append(("disk", f"{format_size(machine.disk_free_bytes)} free"))
    if event.ollama:
        rows.append(("Ollama", f"{event.ollama.version} at {event.ollama.url}"))
        for model in event.ollama.loaded:
            vram = f", {format_size(model.size_vram_bytes)} of it VRAM" if model.size_vram_bytes else ""
            rows.append(("  loaded", f"{model.name}: {format_size(model.size_bytes)}{vram}"))
    else:
        rows.append(("Ollama", event.ollama_problem))
    for run in event.running:
        since = time.strftime("%H:%M:%S", time.localtime(run.since))
        state = "paused" if run.paused else "running"
        rows.append((state, f"{run.run_id}: {run.title}, since {since}"))
    return Table("Now", (Column("what"), Column("found")), tuple(rows))


def _of(free: int, total: int) -> str:
    return f"{format_size(free)} free of {format_size(total)}"
