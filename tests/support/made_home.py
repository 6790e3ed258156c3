"""A home whose artifacts say what made them, beside a real Ollama server."""

from __future__ import annotations

from pathlib import Path

from amigo_local.domain.artifact import Artifact, ArtifactKind
from amigo_local.domain.events import AnyEvent, decode_record
from amigo_local.domain.settings import ProgramSettings
from amigo_local.engine.fingerprint import digest_path, size_of
from amigo_local.engine.run_record import RunRecord, write_run
from amigo_local.engine.workspace import Workspace
from tests.support.command_here import amigo_here
from tests.support.ollama_server import RealOllama
from tests.support.tiny_gguf import write_tiny_llama

TAG = "verbs-refined:latest"


class MadeHome:
    """source tag -> adapter (recipe direct) -> export -> registered with Ollama."""

    def __init__(self, folder: Path, server: RealOllama) -> None:
        self.folder, self.server = folder, server
        self.workspace = Workspace(folder / "home")
        self.workspace.prepare()
        base = write_tiny_llama(folder / "base.gguf", seed=11)
        self.base_digest = digest_path(base)
        self.ask("register", str(base), "--tag", "verbs-source")
        run_folder = self.workspace.runs_dir / "r1"
        run_folder.mkdir()
        asked = {"recipe": ["recipes/direct.yaml"], "model": None}
        write_run(
            self.workspace,
            RunRecord(run_id="r1", verb="run", title="run direct", params=asked, settings=ProgramSettings()),
        )
        adapter = folder / "adapter"
        adapter.mkdir()
        (adapter / "adapter_model.safetensors").write_bytes(b"weights")
        self.adapter = self.commit(
            "train", "adapter", adapter, {"base": self.base_digest}, source="ollama:verbs-source"
        )
        exported = write_tiny_llama(folder / "refined.gguf", seed=12)
        sources = {"base": self.base_digest, "adapter": self.adapter.digest}
        self.export = self.commit("export", "gguf", exported, sources, base="ollama:verbs-source")
        self.ask("register", self.export.path, "--tag", TAG)

    def commit(self, stage: str, kind: ArtifactKind, built: Path, sources: dict[str, str], **params: str) -> Artifact:
        fingerprint = f"made{stage}".ljust(64, "0")
        target = self.workspace.default_path(stage, fingerprint) / built.name
        artifact = Artifact(
            kind=kind,
            path=str(target),
            digest=digest_path(built),
            size_bytes=size_of(built),
            stage=stage,
            fingerprint=fingerprint,
            sources=sources,
            run_id="r1",
            created=1.0,
            params=dict(params),
        )
        self.workspace.commit(artifact, built, target)
        return artifact

    def ask(self, *arguments: str, exit_code: int = 0) -> list[AnyEvent]:
        store = f"ollama.store={self.server.models}"
        done = amigo_here(self.folder / "home", *arguments, "--json", "--set", store, ollama=self.server.url)
        assert done.returncode == exit_code, done.stdout + done.stderr
        return [decode_record(line).event for line in done.stdout.splitlines()]
