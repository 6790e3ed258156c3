"""Runs one stage and commits what it made; the same code in a worker and in the calling process."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, StageFinished
from amigo_local.domain.settings import ProgramSettings
from amigo_local.domain.strict import Strict
from amigo_local.engine.contract import Stage, StageContext, StageResult
from amigo_local.engine.fingerprint import digest_path, size_of
from amigo_local.engine.machine import measure_machine
from amigo_local.engine.steering import Steering
from amigo_local.engine.workspace import Workspace, remove


class Job(Strict, frozen=True, kw_only=True):
    """One stage to run: all a worker is told, as one JSON line on its stdin."""

    run_id: str
    stage: str
    params: dict[str, Any]
    settings: ProgramSettings
    home: str
    next_seq: int
    fingerprint: str = ""
    sources: dict[str, str] = {}


def execute(stage: Stage, job: Job, emit: Emit, steering: Steering) -> StageFinished:
    """Builds under `.partial`, fsyncs, renames last. Whatever `run` raises passes through, and the
    build directory stays only for a stage that can resume from it."""
    started = steering.seconds()
    workspace = Workspace(Path(job.home))
    params = msgspec.convert(job.params, stage.params)
    out = output_path(params)
    partial = target = None
    if stage.produces:
        target = out or workspace.default_path(stage.name, job.fingerprint)
        partial = partial_path(target)
        if not stage.resumable:
            remove(partial)
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{partial} can't be created: {error.strerror or error}", "choose another place with --out"
            ) from error
    machine = measure_machine(workspace.root, job.settings.machine)
    context = StageContext(
        workspace, job.settings, machine, job.run_id, emit, partial, steering.stop_asked, steering.seconds
    )
    if stage.run is None:
        raise TypeError(f"{stage.name} is a chain; it has steps, not work")
    try:
        result = stage.run(params, context)
    except BaseException:
        if partial and not stage.resumable:
            remove(partial)
        raise
    artifact = _commit(stage, job, workspace, partial, target, out, result) if partial and target else None
    return StageFinished(
        artifact=artifact,
        elapsed_seconds=steering.seconds() - started,
        peak_rss_bytes=peak_rss_bytes(),
        figures=result.figures,
        peak_vram_bytes=peak_vram_bytes(),
    )


def output_path(params: Strict) -> Path | None:
    """The `out` that a person asked for, absolute; None when the artifact goes into the home."""
    out = getattr(params, "out", None)
    return Path(out).expanduser().absolute() if out else None


def partial_path(target: Path) -> Path:
    """Where `target` is built: beside it, so that the last step is a rename on one file system."""
    return target.with_name(f"{target.name}.partial")


def _commit(
    stage: Stage, job: Job, workspace: Workspace, partial: Path, target: Path, out: Path | None, result: StageResult
) -> Artifact:
    assert stage.produces is not None
    payload = partial / result.payload if result.payload else partial
    # In the home the whole build directory is kept; with --out only what was asked for is placed there.
    built, final = (payload, target) if out else (partial, target / result.payload if result.payload else target)
    artifact = Artifact(
        kind=stage.produces,
        path=str(final),
        digest=digest_path(payload),
        size_bytes=size_of(payload),
        stage=stage.name,
        fingerprint=job.fingerprint,
        sources=job.sources,
        figures=result.figures,
        run_id=job.run_id,
        created=time.time(),
        params=job.params,
    )
    workspace.commit(artifact, built, target)
    remove(partial)
    return artifact


def peak_rss_bytes() -> int:
    """Peak resident memory of this process since its start; 0 where the platform can't tell."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def peak_vram_bytes() -> int | None:
    """Peak of torch's CUDA allocator in this process; None when torch or a card wasn't used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_reserved())
