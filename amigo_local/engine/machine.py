"""Measures the machine: RAM, disk, GPU, and the caps a person put on them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import msgspec

from amigo_local.domain.machine import Machine
from amigo_local.domain.settings import MachineBudget
from amigo_local.domain.units import MIB, parse_size


def is_wsl() -> bool:
    """Whether this Linux runs inside Windows (WSL 1 or 2)."""
    return "microsoft" in platform.uname().release.lower()


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def measure_machine(home: Path, budget: MachineBudget) -> Machine:
    """What is there now, each figure capped by the budget. Disk is that of `home`."""
    import psutil

    memory = psutil.virtual_memory()
    gpu = _nvidia_gpu()
    cap_ram = parse_size(budget.ram) if budget.ram else None
    cap_disk = parse_size(budget.disk) if budget.disk else None
    machine = Machine(
        platform=f"{platform.system()} {platform.machine()}" + (" (WSL)" if is_wsl() else ""),
        cpu_count=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        ram_total_bytes=_capped(memory.total, cap_ram),
        ram_available_bytes=_capped(memory.available, cap_ram),
        disk_free_bytes=_capped(shutil.disk_usage(existing_parent(home)).free, cap_disk),
        gpu_name=gpu[0] if gpu else None,
        vram_total_bytes=gpu[1] if gpu else None,
        vram_free_bytes=gpu[2] if gpu else None,
    )
    if budget.vram:
        cap = parse_size(budget.vram)
        machine = msgspec.structs.replace(
            machine,
            gpu_name=machine.gpu_name or "planned GPU",
            vram_total_bytes=_capped(machine.vram_total_bytes or cap, cap),
            vram_free_bytes=_capped(machine.vram_free_bytes or cap, cap),
        )
    return machine


def _capped(value: int, cap: int | None) -> int:
    return value if cap is None else min(value, cap)


def _nvidia_gpu() -> tuple[str, int, int] | None:
    """(name, total bytes, free bytes) of the card with the most free memory; None without one."""
    command = shutil.which("nvidia-smi") or ("/usr/lib/wsl/lib/nvidia-smi" if is_wsl() else None)
    if not command:
        return None
    query = [command, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        cards = [line.rsplit(",", 2) for line in output.splitlines() if line.strip()]
        found = [(name.strip(), int(total) * MIB, int(free) * MIB) for name, total, free in cards]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return max(found, key=lambda card: card[2], default=None)
