"""The card changes hands: Ollama lets go of it, its memory is seen to be free, and training takes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from amigo_local.domain.events import Emit, Note
from amigo_local.domain.machine import Machine
from amigo_local.domain.units import MIB, format_size
from amigo_local.engine.machine import is_wsl

if TYPE_CHECKING:
    from amigo_local.serving.ollama_server import OllamaServer

WAIT_SECONDS = 30.0
"""For VRAM to come back; Ollama itself gives up on it after 5 s (server/sched.go: waitForVRAMRecovery)."""
FREED_SHARE = 0.75
"""Of what Ollama says that its models held, which is an estimate; the share that Ollama waits for, too."""


class GpuProcess(msgspec.Struct, frozen=True):
    pid: int
    name: str
    used_bytes: int | None
    """None where the driver doesn't tell (Windows, WSL)."""


class GpuMemory(msgspec.Struct, frozen=True):
    """Of all cards together."""

    free_bytes: int
    total_bytes: int
    processes: tuple[GpuProcess, ...] = ()


ReadGpu = Callable[[], GpuMemory | None]
"""None where there is no card to read."""


def handed_over(machine: Machine, server: OllamaServer | None) -> Machine:
    """The machine as it will be once the server has let go of the card."""
    free, total = machine.vram_free_bytes, machine.vram_total_bytes
    if free is None or total is None or server is None:
        return machine
    held = sum(model.size_vram_bytes for model in server.loaded())
    return msgspec.structs.replace(machine, vram_free_bytes=min(total, free + held))


def hand_over_gpu(
    server: OllamaServer | None,
    emit: Emit,
    *,
    read_gpu: ReadGpu,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Unloads what the server has loaded and waits until the driver says that the memory is free.

    Measure the machine again afterwards: what was free before is no longer true. The tags stay as they are, and the
    next request loads them again. What else holds the card is told, not touched. Raises InputError when a model can't
    be unloaded.
    """
    before = read_gpu()
    held = sum(model.size_vram_bytes for model in server.unload_all(emit)) if server is not None else 0
    now = read_gpu() if held else before
    if before is None or now is None:
        return
    deadline = clock() + WAIT_SECONDS
    while now.free_bytes - before.free_bytes < FREED_SHARE * held and clock() < deadline:
        sleep(0.1)
        now = read_gpu() or now
    if held:
        came_back = now.free_bytes - before.free_bytes
        text = f"{format_size(max(0, came_back))} of VRAM came back"
        if came_back >= FREED_SHARE * held:
            emit(Note(f"{text}: {format_size(now.free_bytes)} of {format_size(now.total_bytes)} are free", "good"))
        else:
            fix = "ollama ps shows whether something has loaded a model again; ollama stop MODEL"
            emit(Note(f"{text} in {WAIT_SECONDS:.0f} s, of {format_size(held)} that Ollama held", "warning", fix))
    _name_others(now, emit)


def _name_others(gpu: GpuMemory, emit: Emit) -> None:
    others = sorted((p for p in gpu.processes if p.pid != os.getpid()), key=lambda p: -(p.used_bytes or 0))
    if not others:
        return
    named = (f"{p.name} (pid {p.pid}{f', {format_size(p.used_bytes)}' if p.used_bytes else ''})" for p in others)
    emit(Note(f"the card is also used by {', '.join(named)}", "info", "close them if the plan lacks VRAM"))


def read_nvidia_smi() -> GpuMemory | None:
    """Two calls of nvidia-smi; None without one, or when it fails."""
    command = shutil.which("nvidia-smi") or ("/usr/lib/wsl/lib/nvidia-smi" if is_wsl() else None)
    if command is None:
        return None

    def ask(query: str) -> str:
        return subprocess.run(
            [command, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10, check=True
        ).stdout

    try:
        return parse_nvidia_smi(
            ask("--query-gpu=memory.total,memory.free"), ask("--query-compute-apps=pid,used_memory,process_name")
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def parse_nvidia_smi(cards: str, apps: str) -> GpuMemory:
    """`total, free` in MiB a line; `pid, MiB or [N/A], name` a line. Raises ValueError for anything else."""
    sizes = [tuple(int(field) for field in line.split(",")) for line in cards.splitlines() if line.strip()]
    if not sizes:
        raise ValueError("nvidia-smi lists no card")
    processes = []
    for line in apps.splitlines():
        pid, _, rest = line.partition(",")
        if not pid.strip().isdigit():
            continue  # empty, or "No running processes found"
        used, _, name = rest.partition(",")
        known = used.strip().isdigit()  # else "[N/A]" or "[Insufficient Permissions]"
        processes.append(GpuProcess(int(pid), name.strip(), int(used) * MIB if known else None))
    return GpuMemory(
        free_bytes=MIB * sum(free for _, free in sizes),
        total_bytes=MIB * sum(total for total, _ in sizes),
        processes=tuple(processes),
    )
