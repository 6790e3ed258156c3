from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.ollama_server import OllamaServer
from tests.support.command_line import SCRIPT, amigo, environment
from tests.support.ollama_runtime import OllamaRuntime
from tests.support.ollama_server import RealOllama
from tests.support.registry import RealRegistry
from tests.support.tiny_gguf import write_tiny_llama


def test_ctrl_c_in_a_pull_is_130_and_the_same_command_finishes_it(
    tmp_path: Path, ollama_runtime: OllamaRuntime, ollama_server: RealOllama, ollama_registry: RealRegistry
) -> None:
    gguf = write_tiny_llama(tmp_path / "pulled.gguf", seed=31, chat_template=None)
    server = OllamaServer(ollama_server.host)
    tag = f"{ollama_registry.prefix}/cut-by-hand:v1"
    server.create(tag, gguf, Modelfile(), lambda event: None)
    server.client.push(tag, insecure=True)
    with RealOllama(ollama_runtime, tmp_path / "other") as other:
        ollama_registry.blobs.rate = 700_000.0
        try:
            command = [str(SCRIPT), "pull", tag, "--insecure"]
            cut = subprocess.Popen(
                command,
                env=environment(tmp_path / "home", other.url),
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            assert cut.stderr
            while "%" not in (line := cut.stderr.readline()):
                assert line, "the pull ended before it could be cut"
            cut.send_signal(signal.SIGINT)
            rest = cut.stderr.read()
            assert cut.wait(timeout=60) == 130 and "cancelled" in rest and "Traceback" not in rest
        finally:
            ollama_registry.blobs.rate = 0
        again = amigo(tmp_path / "home", "pull", tag, "--insecure", ollama=other.url)
        assert again.returncode == 0 and "is there" in again.stderr
        assert OllamaServer(other.host).has(tag)
