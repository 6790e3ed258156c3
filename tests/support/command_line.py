"""Runs the real `amigo-local` as a person would: a process of its own, with its streams and exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from amigo_local.domain.events import AnyEvent, Record, decode_record

SCRIPT = Path(sys.executable).with_name("amigo-local")


def environment(home: Path, ollama: str | None = None) -> dict[str, str]:
    """Without a server unless one is named: port 9 is `discard`, where nothing answers."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "AMIGO_"))}
    return kept | {
        "AMIGO_HOME": str(home),
        "OLLAMA_HOST": ollama or "127.0.0.1:9",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
        "HF_HUB_OFFLINE": "1",
    }


def amigo(home: Path, *arguments: str, ollama: str | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """One command to its end; its streams are pipes, so it writes plain lines."""
    done = subprocess.run(
        [str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        env=environment(home, ollama),
        timeout=300,
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def amigo_records(home: Path, *arguments: str, ollama: str | None = None) -> tuple[int, list[Record]]:
    """Exit code and records of a command with --json; every line of stdout must be one."""
    done = amigo(home, *arguments, "--json", ollama=ollama)
    return done.returncode, [decode_record(line) for line in done.stdout.splitlines()]


def events(records: list[Record], kind: type[AnyEvent]) -> list[AnyEvent]:
    return [record.event for record in records if isinstance(record.event, kind)]
