"""`amigo-local tui --web` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tests.support.command_line import SCRIPT, environment


class Served:
    """On a free port."""

    def __init__(self, home: Path, *arguments: str, ollama: str | None = None) -> None:
        self.process = subprocess.Popen(
            [str(SCRIPT), "tui", "--web", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(home, ollama),
            start_new_session=True,
        )
        assert self.process.stderr
        line = self.process.stderr.readline()
        assert line.startswith("amigo-local is at http://"), line + self.process.stderr.read()
        self.url = line.split()[3].rstrip(";")
        self.port = urlsplit(self.url).port

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> int:
        """As Ctrl-C does, which reaches the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(20)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
