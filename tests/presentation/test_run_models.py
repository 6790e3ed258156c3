from __future__ import annotations

from amigo_local.domain.artifact import Artifact, ArtifactKind, Figure
from amigo_local.domain.events import AnyEvent, Record, StageFinished, StageStarted
from amigo_local.domain.run_state import RunState
from amigo_local.presentation.run_models import models_of


def test_a_loop_gives_its_base_and_its_refined_model() -> None:
    def made(stage: str, kind: ArtifactKind, figures: dict[str, Figure], **params: object) -> list[AnyEvent]:
        artifact = Artifact(kind, "/x", "sha256:x", 1, stage, "f", figures=figures, params=params)
        return [StageStarted(stage, stage), StageFinished(artifact, 1.0, 1, figures)]

    run, seq = RunState(), 0
    found: list[list[str]] = []
    for events in (
        made("tokenizer", "tokenizer", {}, ref="ollama:base:1b"),
        made("register", "registration", {"tag": "refined:1b"}, file="/x.gguf", tag="refined"),
        made("evaluate", "report", {}, refs=["/base.gguf", "ollama:refined:1b"]),
    ):
        for event in events:
            run.apply(Record("r", seq := seq + 1, 0.0, "loop", event))
        found.append(models_of(run))
    assert found == [
        ["ollama:base:1b"], ["ollama:base:1b", "ollama:refined:1b"], ["/base.gguf", "ollama:refined:1b"]
    ]  # fmt: skip
