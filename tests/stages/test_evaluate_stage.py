"""evaluate on a tiny model: sets that show skills, an adapter over the last model, what can't be asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.events import Note, Record, StageFinished
from amigo_local.domain.modelfile import Modelfile
from amigo_local.domain.recipe import EvaluateSettings
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.contract import Params, Stage, StageContext
from amigo_local.engine.machine import measure_machine
from amigo_local.engine.runner import Outcome, Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.evaluation.progress import compare
from amigo_local.evaluation.results import EvaluationResult
from amigo_local.evaluation.sandbox import open_sandbox
from amigo_local.stages._evaluation_requests import context_tokens
from amigo_local.stages._serving import library
from amigo_local.stages.evaluate import EvaluateParams, EvaluateRequest, needs
from tests.support.tiny_gguf import HIDDEN, write_tiny_gemma3, write_tiny_llama
from tests.support.tiny_home import in_this_process

SERVED = ProgramSettings(ollama=OllamaSettings(use=False))
SETTINGS = EvaluateSettings(
    suites=("directness", "context", "debugging", "reasoning"),
    directness_prompts=2,
    skill_prompts=2,
    max_answer_tokens=4,
)


def row(prompt: str, **check: Any) -> dict[str, Any]:
    """As prepare writes it, without the columns that evaluation doesn't read."""
    return {"prompt": prompt, "completion": "x", "completion_start": 20, "check": check or None}


def program(name: str, skill: str, **more: Any) -> dict[str, Any]:
    return {"skill": skill, "entry_point": name, "program": f"assert {name}() == 2\n", **more}


SKILLED = [
    row("Use helper.", skill="context", entry_point="f", names=["helper"]),
    row("Mend this:\n```python\ndef g():\n    return 1\n```", **program("g", "debugging")),
    row("Write h.", **program("h", "writing", hard=True)),
    row("Write k.", **program("k", "writing", hard=False)),
]


def write_set(folder: Path, held_out: list[dict[str, Any]], *trained: str) -> str:
    folder.mkdir()
    (folder / "held_out.jsonl").write_text("".join(json.dumps(each) + "\n" for each in held_out))
    (folder / "train.jsonl").write_text("".join(json.dumps(row(prompt)) + "\n" for prompt in trained))
    return str(folder)


def write_adapter(folder: Path) -> str:
    """As PEFT saves one that changes the first layer's queries."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    generator = np.random.default_rng(0)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = (generator.normal(size=shape).astype(np.float32) for shape in ((4, HIDDEN), (HIDDEN, 4)))
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    return str(folder)


class Workplace:
    """A tiny model, an adapter of it, two sets, and the records of the newest run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, Workspace(folder / "home")
        self.gguf = str(write_tiny_llama(folder / "tiny.gguf", weight_type="f32"))
        self.adapter = write_adapter(folder / "adapter")
        self.plain = write_set(folder / "plain", [row(f"Write f{number}.") for number in range(4)], "Write other.")
        self.skilled = write_set(folder / "skilled", SKILLED, "Write another.")
        self.records: list[Record] = []

    @property
    def sets(self) -> dict[str, str]:
        return {"stage1": self.plain, "stage2": self.skilled}

    def params(self, **changes: Any) -> EvaluateParams:
        chosen = {"refs": (self.gguf,), "settings": SETTINGS, "dataset": self.plain, "skills": self.sets} | changes
        return EvaluateParams(**chosen)

    def run(self, params: Params) -> Outcome:
        """By the settings of a step, or by what a person asks for."""
        is_step = isinstance(params, EvaluateParams)

        def load(name: str) -> Stage:
            stage = in_this_process(name)
            return dataclasses.replace(stage, steps=None) if is_step else stage

        self.records = []
        return Runner(self.home, SERVED, load, self.records.append).run("evaluate", params)

    def done(self, params: Params) -> tuple[EvaluationResult, Artifact]:
        outcome = self.run(params)
        assert outcome.exit_code == 0, outcome.error
        (made,) = [record.event.artifact for record in self.records if isinstance(record.event, StageFinished)]
        assert made
        return msgspec.json.decode((Path(made.path) / "results.json").read_bytes(), type=EvaluationResult), made

    def refused(self, params: Params) -> str:
        outcome = self.run(params)
        assert outcome.exit_code == 2 and outcome.error and outcome.error.hint
        return outcome.error.message

    @property
    def notes(self) -> list[str]:
        return [record.event.text for record in self.records if isinstance(record.event, Note)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    if not (opened := open_sandbox()).can_run:
        pytest.skip(f"{opened.statement}: {opened.fix}")
    return Workplace(tmp_path_factory.mktemp("evaluate"))


def asked(result: EvaluationResult) -> dict[str, tuple[str, ...]]:
    return {suite.name: suite.prompts for suite in result.suites}


def test_one_model_is_asked_what_each_set_taught(workplace: Workplace) -> None:
    result, made = workplace.done(workplace.params())
    assert asked(result) == {
        "directness": ("Write f0.", "Write f2.", "Write k."),
        "context": ("Use helper.",),
        "debugging": (SKILLED[1]["prompt"],),
        "reasoning": ("Write h.", "Write k."),
    }
    assert result.models == (workplace.gguf,)
    assert sorted(path.name for path in Path(made.path).iterdir()) == ["report.md", "results.json"]
    assert made.figures["debugging.tiny.gguf.fixed_share"] == 0.0
    assert "## Debugging: bugs mended" in (Path(made.path) / "report.md").read_text()


def test_an_adapter_is_laid_over_the_last_model_and_changes_its_answers(workplace: Workplace) -> None:
    params = workplace.params(refs=(workplace.gguf, workplace.gguf), adapter=workplace.adapter)
    result, made = workplace.done(params)
    assert result.labels == ("before", "after")
    assert result.models == (workplace.gguf, f"{workplace.gguf} + adapter")
    before, after = ([answer.text for suite in result.suites for answer in suite.answers[side]] for side in (0, 1))
    assert before != after
    report = (Path(made.path) / "report.md").read_text()
    assert "| after | tiny.gguf + adapter |" in report and f"- adapter: `{workplace.adapter}`" in report
    assert {"adapter", "set stage1", "set stage2"} <= made.sources.keys()
    assert {"context.p_value", "debugging.p_value", "reasoning.p_value"} <= made.figures.keys()

    base, _ = workplace.done(workplace.params(settings=msgspec.structs.replace(SETTINGS, seed=1)))
    alone, _ = workplace.done(workplace.params(adapter=workplace.adapter))
    assert [answer.text for suite in base.suites for answer in suite.answers[0]] == before
    assert [answer.text for suite in alone.suites for answer in suite.answers[0]] == after
    compared = {change.name for change in compare(base, alone)}
    assert compared >= {"directness", "only_code", "writing", "context", "debugging", "reasoning"}


def test_what_another_stage_trains_on_is_not_asked(workplace: Workplace) -> None:
    greedy = write_set(workplace.folder / "greedy", [], "Write f0.", "Use helper.")
    result, _ = workplace.done(workplace.params(skills=workplace.sets | {"stage3": greedy}))
    assert asked(result)["directness"] == ("Write f1.", "Write f2.", "Write k.")
    assert "context" not in asked(result)
    assert "2 held-out requests are left out: another set trains on them" in workplace.notes
    assert any(note.startswith("context is left out") for note in workplace.notes)


def test_a_request_that_fills_the_context_is_left_out_and_told(workplace: Workplace) -> None:
    long = row("Use helper, after much text.", skill="context", entry_point="f", names=["helper"])
    sets = {"long": write_set(workplace.folder / "long", [long | {"completion_start": 509}, SKILLED[0]])}
    result, _ = workplace.done(workplace.params(skills=sets))
    assert asked(result)["context"] == ("Use helper.",)
    assert "1 held-out requests leave no room for an answer in a context of 512: they are left out" in workplace.notes


def test_a_set_by_itself_shows_its_skills_too(workplace: Workplace) -> None:
    settings = msgspec.structs.replace(SETTINGS, suites=("debugging",))
    result, _ = workplace.done(workplace.params(settings=settings, dataset=workplace.skilled, skills={}))
    assert asked(result) == {"debugging": (SKILLED[1]["prompt"],)}


def test_a_person_names_sets_and_adapter(workplace: Workplace) -> None:
    request = EvaluateRequest(
        ref=(workplace.gguf,), suite=("context",), sets=(workplace.skilled,), adapter=workplace.adapter, max_tokens=2
    )
    result, _ = workplace.done(request)
    assert asked(result) == {"context": ("Use helper.",)} and result.models[0].endswith("tiny.gguf + adapter")
    assert result.labels == ("tiny.gguf + adapter",)
    nothing = EvaluateRequest(ref=(workplace.gguf,), suite=("context",))
    assert "has made a dataset yet" in workplace.refused(nothing)


def test_what_is_missing_is_refused_before_work(workplace: Workplace) -> None:
    assert "holds no adapter_config.json" in workplace.refused(workplace.params(adapter=workplace.plain))
    gone = str(workplace.folder / "gone")
    assert "there is no prompt file" in workplace.refused(workplace.params(skills={"gone": gone}))


def test_the_context_grows_with_the_longest_request_and_a_plan_counts_the_skills(workplace: Workplace) -> None:
    assert (context_tokens(20, 512), context_tokens(3600, 512), context_tokens(7000, 512)) == (4096, 5120, 8192)
    runner = Runner(workplace.home, ProgramSettings(ollama=OllamaSettings(use=False)), in_this_process, lambda r: None)
    context = runner.context("evaluate")
    few, many = (workplace.params(settings=msgspec.structs.replace(SETTINGS, skill_prompts=n)) for n in (2, 8))
    without, with_adapter = (needs(workplace.params(adapter=path), context) for path in (None, workplace.adapter))
    assert (
        with_adapter.disk_bytes - without.disk_bytes
        == 2 * (workplace.folder / "adapter" / "adapter_model.safetensors").stat().st_size
    )
    if not context.machine.gpu_name:
        assert needs(many, context).seconds == pytest.approx(needs(few, context).seconds * 26 / 8)


def test_a_file_with_a_vision_tower_is_measured_with_and_without_an_adapter(workplace: Workplace) -> None:
    gguf = str(write_tiny_gemma3(workplace.folder / "library.gguf", weight_type="f32", ollama_style=True))
    base, _ = workplace.done(workplace.params(refs=(gguf,)))
    adapted, _ = workplace.done(workplace.params(refs=(gguf,), adapter=workplace.adapter))
    assert base.backend == adapted.backend and asked(base) == asked(adapted)
    assert adapted.models == (f"{gguf} + adapter",)
    assert not list(workplace.home.cache_dir.glob(".check-*"))


def test_what_no_code_could_be_run_for_is_measured_again_where_it_can(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = workplace.params(settings=msgspec.structs.replace(SETTINGS, seed=7))
    with monkeypatch.context() as poor:
        poor.setenv("PATH", "/nowhere")  # no bubblewrap
        without, _ = workplace.done(params)
    assert "debugging" not in asked(without)
    result, _ = workplace.done(params)
    assert "debugging" in asked(result)


def test_a_tag_that_is_told_to_speak_otherwise_is_measured_again(workplace: Workplace) -> None:
    home = library(StageContext(workplace.home, SERVED, measure_machine(workplace.folder, SERVED.machine), "", print))
    params = workplace.params(
        refs=("ollama:spoken",), settings=msgspec.structs.replace(SETTINGS, suites=("directness",))
    )
    for system in ("Be brief.", "Be long."):
        home.register("spoken", Path(workplace.gguf), Modelfile(system=system))
        result, _ = workplace.done(params)
        assert result.models == ("spoken:latest",)
