"""MachinePanel: VRAM, RAM, disk and Ollama as they are now."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from amigo_local.domain.events import MachineMeasured
from amigo_local.domain.units import format_size
from amigo_local.tui.widgets.gauge import Gauge


class MachinePanel(VerticalScroll, can_focus=False):
    DEFAULT_CSS = """
    MachinePanel {
        padding: 0 1; scrollbar-size-vertical: 1;
        Gauge { margin-bottom: 1; }
        .title { color: $text-muted; text-style: bold; }
        #ollama, #runs { height: auto; margin-bottom: 1; }
    }
    """

    def compose(self) -> ComposeResult:
        yield Gauge("VRAM", id="vram")
        yield Gauge("RAM", id="ram")
        yield Gauge("Disk", id="disk")
        yield Static("Ollama", classes="title")
        yield Static("…", id="ollama")
        yield Static("", id="runs")

    def show(self, measured: MachineMeasured) -> None:
        machine = measured.machine
        vram = self.query_one("#vram", Gauge)
        if machine.vram_total_bytes is None or machine.vram_free_bytes is None:
            vram.show_unknown("no NVIDIA card")
        else:
            vram.show(machine.vram_total_bytes - machine.vram_free_bytes, machine.vram_total_bytes)
        ram = machine.ram_total_bytes
        self.query_one("#ram", Gauge).show(ram - machine.ram_available_bytes, ram)
        self.query_one("#disk", Gauge).show_free(machine.disk_free_bytes)
        self.query_one("#ollama", Static).update(_ollama(measured))


def _ollama(measured: MachineMeasured) -> Content:
    server = measured.ollama
    if server is None:
        return Content.from_markup("○ $problem", problem=measured.ollama_problem or "no server answers")
    lines = [Content(f"✓ {server.version}")]
    lines += [Content(f"  {model.name} {format_size(model.size_bytes)}") for model in server.loaded]
    if not server.loaded:
        lines.append(Content("  nothing loaded").stylize("dim"))
    return Content("\n").join(lines)
