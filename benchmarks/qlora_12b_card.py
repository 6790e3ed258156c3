"""What nvidia-smi says about the card; nothing here makes a CUDA context."""

from __future__ import annotations

import shutil
import subprocess

import msgspec

from amigo_local.engine.machine import is_wsl
from amigo_local.stages._gpu_handoff import GpuMemory, read_nvidia_smi

# Names of `nvidia-smi --help-query-gpu`.
_FIELDS = (
    *("name", "driver_version", "memory.total", "power.limit"),
    *("pcie.link.gen.max", "pcie.link.width.max", "pcie.link.gen.current", "pcie.link.width.current"),
)


class CardAbout(msgspec.Struct, frozen=True, kw_only=True):
    """Of the first card."""

    cards: int
    """How many there are."""
    name: str
    driver: str
    memory: str
    power_limit: str
    link_at_most: str
    """`PCIe 4.0 x8`: what card and slot agree on."""
    link_now: str
    """An idle card runs at a lower generation."""


def about_card() -> CardAbout | None:
    """None without nvidia-smi, or where it fails."""
    command = shutil.which("nvidia-smi") or ("/usr/lib/wsl/lib/nvidia-smi" if is_wsl() else None)
    if command is None:
        return None
    query = [command, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_about(output)


def card_memory() -> GpuMemory | None:
    """None where there is no card, and where there are several: the driver's difference is then no process's own."""
    about = about_card()
    return read_nvidia_smi() if about is not None and about.cards == 1 else None


def parse_about(output: str) -> CardAbout | None:
    """A line a card, its fields in the order of _FIELDS; fields that a card lacks are `[N/A]`."""
    lines = [line for line in output.splitlines() if line.strip()]
    fields = [field.strip() for field in lines[0].split(",")] if lines else []
    if len(fields) != len(_FIELDS):
        return None
    name, driver, memory, power, most, most_width, now, now_width = fields
    return CardAbout(
        cards=len(lines),
        name=name,
        driver=driver,
        memory=memory,
        power_limit=power,
        link_at_most=f"PCIe {most}.0 x{most_width}",
        link_now=f"PCIe {now}.0 x{now_width}",
    )
