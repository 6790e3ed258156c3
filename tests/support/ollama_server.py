"""A private Ollama server for tests: its own port, models folder, home and key, stopped for sure."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.support.ollama_runtime import OllamaRuntime

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealOllama:
    """Context manager around `ollama serve`.

    With `die_with_parent` the kernel ends the server when the thread that started it ends, so that
    even a killed test session leaves nothing behind.
    """

    def __init__(
        self,
        runtime: OllamaRuntime,
        folder: Path,
        *,
        models: Path | None = None,
        environment: Mapping[str, str] | None = None,
        port: int = 0,
        die_with_parent: bool = True,
    ) -> None:
        self.runtime = runtime
        self.port = port or free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        self.models = models or folder / "models"
        self.log = folder / f"serve-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._home = folder / "home"
        self._die_with_parent = die_with_parent
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
        self._environment |= {"OLLAMA_HOST": self.host, "OLLAMA_MODELS": str(self.models), "HOME": str(self._home)}
        if runtime.from_wheels:  # OLLAMA_NUM_GPU=0 overrides every num_gpu; without it the llama runner dies
            libraries = str(runtime.binary.parent)
            self._environment |= {"LD_LIBRARY_PATH": libraries, "OLLAMA_NUM_GPU": "0", "OLLAMA_STUB_THREADS": "1"}
        self._environment |= environment or {}

    def start(self, timeout_seconds: float = 60) -> RealOllama:
        for folder in (self.models, self._home, self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.runtime.binary, "serve"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_end_with_parent if self._die_with_parent and sys.platform == "linux" else None,
            )
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ollama serve ended at once; {self.log} ends:\n{self.log_tail()}")
            if self._answers():
                return self
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"ollama serve did not answer at {self.url}; {self.log} ends:\n{self.log_tail()}")

    def _answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.url}/api/version", timeout=2) as reply:
                return "version" in json.load(reply)
        except (OSError, ValueError):
            return False

    def command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs Ollama's own command line against this server."""
        binary = self.runtime.binary
        return subprocess.run([binary, *arguments], env=self._environment, capture_output=True, text=True, timeout=60)

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """SIGKILL for the server and its runners: what a crash or a power cut leaves."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        self.kill()

    def __enter__(self) -> RealOllama:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _end_with_parent() -> None:
    """Runs in the child, between fork and exec."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
