"""What a stage is to the engine: a name, typed params, digests of its inputs, and `run`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from amigo_local.domain.artifact import Artifact, ArtifactKind, Figure
from amigo_local.domain.events import Emit, Note, Progress
from amigo_local.domain.machine import Machine
from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import Strict
from amigo_local.domain.settings import ProgramSettings
from amigo_local.engine.workspace import Workspace

Params = Strict
"""Base of every stage's settings: frozen, unknown fields forbidden. Each field carries
`Annotated[..., Meta(description=...)]`; `extra_json_schema={"argument": True}` makes it positional."""


@dataclass(frozen=True)
class StageContext:
    """What a stage may use besides its params."""

    workspace: Workspace
    settings: ProgramSettings
    machine: Machine
    run_id: str
    emit: Emit
    partial: Path | None = None
    """Directory to build in; renamed when the stage succeeds. None for stages without an artifact."""

    def progress(self, label: str, done: float, total: float | None, unit: str) -> None:
        self.emit(Progress(label, done, total, unit))

    def note(self, text: str, level: Literal["info", "good", "warning", "problem"] = "info", fix: str = "") -> None:
        self.emit(Note(text, level, fix))

    def build_dir(self) -> Path:
        """The directory to build in. Only stages that produce an artifact have one."""
        if self.partial is None:
            raise RuntimeError("this stage produces no artifact, so it has nowhere to build")
        return self.partial


@dataclass(frozen=True)
class StageResult:
    """`figures` are stored with the artifact; `payload` is the file or directory under the build
    directory that is the artifact (None: the whole directory)."""

    figures: dict[str, Figure] = field(default_factory=dict)
    payload: str | None = None


@dataclass(frozen=True)
class Step:
    """One stage of a chain, with its settings."""

    stage: str
    params: Params


Chain = Generator[Step, Any, None]
"""Yields steps, receives each one's artifact (None where it has none): a whole loop reads top to bottom as one story."""


@dataclass(frozen=True)
class Stage:
    """One verb. Either `run` (a unit of work) or `steps` (a chain of other stages)."""

    name: str
    summary: str
    params: type[Params]
    run: Callable[[Any, StageContext], StageResult] | None = None
    steps: Callable[[Any, StageContext], Chain] | None = None
    produces: ArtifactKind | None = None
    version: int = 1
    """Raise it when the same inputs would give another artifact; old ones are then made anew."""
    place: Literal["worker", "here"] = "worker"
    """`here`: light, reads only, runs in the calling process."""
    resumable: bool = False
    """Keeps its build directory when it is cut, and goes on from there."""
    inputs: Callable[[Any, StageContext], dict[str, str]] | None = None
    """Digests of what goes in, by name; part of the fingerprint."""
    needs: Callable[[Any, StageContext], Needs] | None = None
    """Predicted peaks, checked against the machine before the stage starts."""
    still_holds: Callable[[Any, Artifact, StageContext], bool] | None = None
    """Whether a committed artifact is still there in the world (a tag may have been removed)."""
    locks: bool = True
    """Whether running it changes the home folder: then it is journalled, and two at once refused."""


LoadStage = Callable[[str], Stage]
