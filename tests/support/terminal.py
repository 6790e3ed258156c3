"""A real terminal: a command in tmux, typed to by keys and read from its screen."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

MISSING = "needs tmux for a real terminal: apt install tmux"
POLL_SECONDS = 0.03
# Stays open after the command's end: what it left can be read, and cat echoes what is typed if the terminal is sane.
_SCRIPT = """
trap : INT
sh -c 'echo $$ > pid.partial; mv pid.partial "$0"; cd "$1"; shift; exec "$@"' {folder}/pid {directory} {command}
echo $? > exit.partial; mv exit.partial exit
exec cat
"""
_CONFIGURATION = """
set -g default-terminal xterm-256color
set -g status off
set -s escape-time 0
set -g history-limit 0
"""


class Terminal:
    """Context manager; nothing of the caller's tmux, home or configuration is touched."""

    def __init__(self, command: Sequence[str], size: tuple[int, int], env: Mapping[str, str] | None = None) -> None:
        if not shutil.which("tmux"):
            pytest.skip(MISSING)
        self._folder = Path(tempfile.mkdtemp(prefix="terminal-"))
        (self._folder / "tmux.conf").write_text(_CONFIGURATION)
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("TMUX")},
            **(env or {}),
            "HOME": str(self._folder),
            "TMUX_TMPDIR": str(self._folder),
            "COLORTERM": "truecolor",
            "LANG": "C.UTF-8",
        }
        # Of the terminal, not of whoever starts it.
        for name in ("COLUMNS", "LINES"):
            self._environment.pop(name, None)
        width, height = size
        script = _SCRIPT.format(
            folder=self._folder, directory=shlex.quote(str(Path.cwd())), command=shlex.join(command)
        )
        start = ("new-session", "-d", "-x", str(width), "-y", str(height), "-c", str(self._folder), script)
        self._tmux(*start)
        self.pid = int(self._wait_for_file("pid", 10))
        """Of the command itself."""

    def _tmux(self, *arguments: str, stdin: str | None = None) -> str:
        command = ["tmux", "-L", "test", "-f", str(self._folder / "tmux.conf"), "-u", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self._environment, input=stdin, timeout=20, check=False
        )
        if done.returncode:
            raise RuntimeError(f"tmux {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    # -- Typing

    def keys(self, *names: str) -> None:
        """tmux's names: Enter, Escape, Up, Tab, C-q, F1, x."""
        self._tmux("send-keys", *names)

    def text(self, text: str) -> None:
        """As typed, one key after the other."""
        self._tmux("send-keys", "-l", "--", text)

    def paste(self, text: str) -> None:
        """As a terminal pastes: bracketed, when the program asked for that."""
        self._tmux("load-buffer", "-", stdin=text)
        self._tmux("paste-buffer", "-p")

    # -- Looking

    def screen(self) -> list[str]:
        """Its lines, as many as it is high, without the spaces at their ends."""
        return [line.rstrip() for line in self._tmux("capture-pane", "-p").splitlines()]

    def wait_for(self, wanted: str | re.Pattern[str], seconds: float = 10) -> str:
        """The screen that shows it. Raises AssertionError with the last screen when none does in time."""
        pattern = re.compile(re.escape(wanted)) if isinstance(wanted, str) else wanted
        lines = self.wait_until(lambda lines: bool(pattern.search("\n".join(lines))), seconds, f"{pattern.pattern!r}")
        return "\n".join(lines)

    def wait_until(
        self, holds: Callable[[list[str]], bool], seconds: float = 10, what: str = "what was waited for"
    ) -> list[str]:
        """The first screen of which that holds."""
        deadline = time.monotonic() + seconds
        while not holds(lines := self.screen()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} was not shown in {seconds:g} s; the screen:\n" + "\n".join(lines))
            time.sleep(POLL_SECONDS)
        return lines

    def exit_code(self, seconds: float = 10) -> int:
        """Waits for the end of the command."""
        return int(self._wait_for_file("exit", seconds))

    def _wait_for_file(self, name: str, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while not (self._folder / name).exists():
            if time.monotonic() > deadline:
                raise AssertionError(f"no {name} after {seconds:g} s; the screen:\n" + "\n".join(self.screen()))
            time.sleep(POLL_SECONDS)
        return (self._folder / name).read_text()

    # -- What happens to terminals

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def kill(self) -> None:
        """SIGKILL for the program."""
        os.kill(self.pid, signal.SIGKILL)

    def close_window(self) -> None:
        """What a click on the window's X does: the terminal is gone, and the program is told by SIGHUP."""
        self._tmux("kill-pane")

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._tmux("kill-server")
        with contextlib.suppress(ProcessLookupError):  # a program that outlived its terminal
            os.kill(self.pid, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
