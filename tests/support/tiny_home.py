"""The loop on a tiny model with the real runner, each stage in this process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.events import Note, Record, StageFailed, StageFinished, StageSkipped
from amigo_local.domain.settings import MachineBudget, OllamaSettings, ProgramSettings
from amigo_local.engine.contract import RecipeRequest, Stage
from amigo_local.engine.runner import Outcome, Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.stages import load_stage
from tests.support.tiny_run import write_tiny_run

LOOP = ["tokenizer", "prepare", "quantize", "train", "export", "register", "evaluate"]


def in_this_process(name: str) -> Stage:
    """A worker takes seconds to start; what it runs is the same."""
    return dataclasses.replace(load_stage(name), place="here")


class Home:
    """One home, and the records of the newest run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe = folder, write_tiny_run(folder)
        self.gguf = folder / "tiny.gguf"
        self.machine = MachineBudget()
        self.workspace = Workspace(folder / "home")
        self.records: list[Record] = []

    def runner(self) -> Runner:
        settings = ProgramSettings(ollama=OllamaSettings(use=False), machine=self.machine)
        return Runner(self.workspace, settings, in_this_process, self.records.append)

    def run(self, *overrides: str, verb: str = "run") -> Outcome:
        self.records = []
        return self.runner().run(verb, RecipeRequest(recipe=(str(self.recipe),), overrides=overrides))

    def done(self, *overrides: str, verb: str = "run") -> dict[str, Artifact]:
        """Stage -> artifact, made or found, of a run that must succeed."""
        outcome = self.run(*overrides, verb=verb)
        assert outcome.exit_code == 0, outcome.error
        found = (r.event.artifact for r in self.records if isinstance(r.event, StageFinished | StageSkipped))
        return {artifact.stage: artifact for artifact in found if artifact}

    def refused(self, *overrides: str, verb: str = "train", exit_code: int = 2) -> StageFailed:
        outcome = self.run(*overrides, verb=verb)
        assert outcome.error is not None and outcome.exit_code == exit_code, outcome
        assert outcome.error.hint and not outcome.error.message.startswith(("ValueError", "RuntimeError"))
        return outcome.error

    def made(self) -> list[str]:
        return [r.stage for r in self.records if isinstance(r.event, StageFinished)]

    def skipped(self) -> list[str]:
        return [r.stage for r in self.records if isinstance(r.event, StageSkipped)]

    def notes(self) -> list[str]:
        return [r.event.text for r in self.records if isinstance(r.event, Note)]
