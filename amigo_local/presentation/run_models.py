"""Which models a run of a loop began and ended with, and which of its stages evaluates."""

from __future__ import annotations

from amigo_local.domain.run_state import RunState, StageState


def models_of(run: RunState) -> list[str]:
    """Base and refined model of a loop, as far as it has come; empty for a run of something else."""
    made = [stage.artifact for stage in run.stages if stage.artifact]
    for artifact in reversed(made):
        refs = artifact.params.get("refs")
        if artifact.kind == "report" and isinstance(refs, list) and len(refs) == 2:
            return [str(ref) for ref in refs]
    base = [str(each.params["ref"]) for each in made if each.kind in ("tokenizer", "nf4") and each.params.get("ref")]
    tags = [each.figures.get("tag") for each in made if each.kind == "registration"]
    return base[:1] + [f"ollama:{tag}" for tag in tags[-1:] if tag]


def evaluation_in(run: RunState) -> StageState | None:
    """The evaluation that goes on in a run, else its last one."""
    found = [stage for stage in run.stages if stage.stage == "evaluate"]
    return next((stage for stage in found if stage.status == "running"), found[-1] if found else None)
