"""macOS and native Windows must import, chat, inspect, export and register: nothing POSIX-only may be needed for it."""

from __future__ import annotations

import subprocess
import sys

# What CPython on Windows doesn't have.
MISSING = ["fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"]

SCRIPT = f"""
import importlib, pkgutil, sys
# Libraries have builds of their own for each platform: only our modules meet the bare ground.
import gguf, httpx, llama_cpp, numpy, ollama, psutil, safetensors, tempfile, tokenizers, tqdm
for name in {MISSING}:
    sys.modules[name] = None
import amigo_local
from amigo_local.cli import conversation, live, plain, verb
from amigo_local.stages import load_stage, stage_names
for name in stage_names():
    load_stage(name)
for room in ("domain", "engine", "serving", "weights", "weights.architectures", "evaluation"):
    package = importlib.import_module(f"amigo_local.{{room}}")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in ("torch_model", "harness"):  # trains or runs generated code: Linux
            importlib.import_module(f"amigo_local.{{room}}.{{module.name}}")
print("imported")
"""


def test_what_must_work_everywhere_imports_without_posix_modules() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout.strip() == "imported", done.stderr[-2000:]
