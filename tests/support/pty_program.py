"""A program on a pseudo-terminal, with the time at which each piece of its output came."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence

import psutil


class PtyProgram:
    """Context manager. Times are of time.perf_counter."""

    def __init__(self, command: Sequence[str], size: tuple[int, int], env: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        width, height = size
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        known = {**env, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        known = {name: value for name, value in known.items() if name not in ("COLUMNS", "LINES")}
        self._output, self._arrived = "", threading.Condition()
        self._pieces: list[tuple[int, float]] = []
        """How long the output was after each read, and when."""
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=known, start_new_session=True, close_fds=True
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        decode = getincrementaldecoder("utf-8")("replace").decode
        while True:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:
                return  # its last process is gone
            came = time.perf_counter()
            with self._arrived:
                self._output += decode(data)
                self._pieces.append((len(self._output), came))
                self._arrived.notify_all()

    def mark(self) -> int:
        """Of now; what is looked for later came after it."""
        with self._arrived:
            return len(self._output)

    def since(self, mark: int) -> str:
        """All that came after it, sequences that steer the terminal included."""
        with self._arrived:
            return self._output[mark:]

    def write(self, text: str | bytes) -> float:
        """Returns when it was written."""
        written = time.perf_counter()
        os.write(self._master, text.encode() if isinstance(text, str) else text)
        return written

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, wanted: str, after: int = 0, seconds: float = 20) -> float:
        """When the text had come whole, in one style. Raises AssertionError when it doesn't come in time."""
        deadline = time.perf_counter() + seconds
        with self._arrived:
            while (place := self._output.find(wanted, after)) < 0:
                after = max(after, len(self._output) - len(wanted))
                left = deadline - time.perf_counter()
                if left <= 0 or not self._arrived.wait(left):
                    raise AssertionError(f"{wanted!r} did not come in {seconds:g} s: …{self._output[-600:]!r}")
            end = place + len(wanted)
            return next(came for length, came in self._pieces if length >= end)

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self._process.pid).memory_info().rss)

    @property
    def cpu_seconds(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def wait(self, seconds: float = 20) -> int:
        return self._process.wait(seconds)

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5)
        os.close(self._master)

    def __enter__(self) -> PtyProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
