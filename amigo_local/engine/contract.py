"""What a stage is to the engine: a name, typed params, digests of its inputs, and `run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from amigo_local.domain.artifact import Artifact, ArtifactKind, Figure
from amigo_local.domain.events import Emit, Note, Progress
from amigo_local.domain.machine import Machine
from amigo_local.domain.plan import Needs
from amigo_local.domain.settings import ProgramSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.strict import Strict
from amigo_local.engine.run_record import RunRecord
from amigo_local.engine.workspace import Workspace

Params = Strict
"""Base of every stage's settings: frozen, unknown fields forbidden. Each field is annotated with
`option(...)` or `argument(...)`; CLI options and forms are generated from that."""


def option(description: str, hidden: bool = False) -> Meta:
    """A setting given by name: `--like TAG`."""
    return Meta(description=description, extra={"hidden": hidden})


def argument(description: str) -> Meta:
    """A setting given by position: `pull TAG`."""
    return Meta(description=description, extra={"argument": True})


class RecipeRequest(Strict, frozen=True, kw_only=True):
    """What a person gives to a verb that works from a recipe."""

    recipe: Annotated[
        tuple[str, ...], argument("Path of a recipe, or the name of a shipped one; several make a chain.")
    ]
    model: Annotated[str | None, option("REF of the model, instead of the recipe's model.source.")] = None
    overrides: Annotated[tuple[str, ...], option("key.path=value", hidden=True)] = ()


class ChainRequest(RecipeRequest, frozen=True, kw_only=True):
    """The same for a whole loop."""

    export_each: Annotated[
        bool, option("Export and register the model after each stage of a chain, not only after the last.")
    ] = False
    next: Annotated[bool, option("Only the next step that isn't done.")] = False


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
    stop_asked: Callable[[], bool] = lambda: False
    """Whether to end with Cancelled at the next point that nothing is lost at."""
    clock: Callable[[], float] = time.monotonic
    """Seconds of work: it stands still while the run is paused."""

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
    of: str = ""
    """Name of the recipe that it belongs to, in a chain of several."""


Chain = Generator[Step, Any, None]
"""Yields steps and receives the newest artifact, so that a whole loop reads as one story."""


@dataclass(frozen=True)
class Stage:
    """One verb: `run` is its unit of work as a step; `steps` is the chain that asking for it by
    name starts, where that is more than the one step."""

    name: str
    summary: str
    params: type[Params]
    """Settings of the step."""
    run: Callable[[Any, StageContext], StageResult] | None = None
    steps: Callable[[Any, StageContext], Chain] | None = None
    request: type[Params] | None = None
    """Settings that a person gives, where they differ from the step's; `steps` receives them."""
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
    outlook: Callable[[Any, ModelShape, StageContext], Needs] | None = None
    """The same from a model's dimensions alone, for a plan with one that isn't here."""
    again: Callable[[Any, Workspace], RunRecord | None] | None = None
    """An earlier run that these params ask to go on with, in the place of this stage."""
    follows: Callable[[Any, Workspace], str | None] | None = None
    """Id of a run whose records these params ask to see, in the place of this stage's."""
    one_step: Callable[[Any], bool] | None = None
    """Whether these params ask for no more of `steps` than the next one that isn't done."""
    still_holds: Callable[[Any, Artifact, StageContext], bool] | None = None
    """Whether a committed artifact is still there in the world (a tag may have been removed)."""
    locks: bool = True
    """Whether running it changes the home folder: then two at once are refused."""
    journals: bool | None = None
    """Whether it is journalled; None: when it locks."""

    @property
    def asked(self) -> type[Params]:
        """What a face asks a person for."""
        return self.request or self.params

    @property
    def is_journalled(self) -> bool:
        """Whether it makes a run, which can be watched, paused, left alone and gone on with."""
        return self.locks if self.journals is None else self.journals


LoadStage = Callable[[str], Stage]
