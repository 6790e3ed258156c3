"""A chain of recipes with the real runner: the order of its steps, lineage, what it measures, and what stops it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.events import Record, StageFinished, StageSkipped, Table
from amigo_local.domain.recipe import Recipe
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.contract import ChainRequest
from amigo_local.engine.runner import Outcome, Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.evaluation.results import EvaluationResult
from amigo_local.serving.tag_name import parse_tag_name
from amigo_local.stages._refinement import Refinement
from amigo_local.stages._serving import library
from tests.support.threads import one_thread
from tests.support.tiny_home import in_this_process
from tests.support.tiny_run import write_tiny_run

STEPS = {
    "tokenizer": "tokenizer",
    "one prepare": "prepare",
    "two prepare": "prepare",
    "quantize": "quantize",
    "base evaluate": "evaluate",
    "one train": "train",
    "one evaluate": "evaluate",
    "two train": "train",
    "two evaluate": "evaluate",
    "two export": "export",
    "two register": "register",
    "evaluate": "evaluate",
}
"""Recipe and step, in order -> the stage."""


class ChainHome:
    """A home, two recipes, and the records of the newest run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = write_tiny_run(folder).read_text()
        (folder / "one.yaml").write_text(text.replace("name: tiny", "name: one"))
        rows = [
            {"prompt": f"Multiply by {i}.", "completion": f"```python\ndef times(x):\n    return x * {i}\n```"}
            for i in range(24)
        ]
        (folder / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources = "[{jsonl: more.jsonl}, {replay: earlier, share: 0.25}]"
        two = text.replace("name: tiny", "name: two").replace("[{jsonl: pairs.jsonl}]", sources)
        (folder / "two.yaml").write_text(two)
        self.workspace = Workspace(folder / "home")
        self.records: list[Record] = []

    def runner(self) -> Runner:
        settings = ProgramSettings(ollama=OllamaSettings(use=False))
        return Runner(self.workspace, settings, in_this_process, self.records.append)

    def run(self, *recipes: str, verb: str = "run", export_each: bool = False, sets: tuple[str, ...] = ()) -> Outcome:
        self.records = []
        paths = tuple(str(self.folder / f"{name}.yaml") for name in recipes)
        request = ChainRequest(recipe=paths, overrides=sets, export_each=export_each)
        return self.runner().run(verb, request)

    def made(self) -> list[Artifact]:
        events = (record.event for record in self.records)
        return [event.artifact for event in events if isinstance(event, StageFinished) and event.artifact]

    def skipped(self) -> int:
        return sum(isinstance(record.event, StageSkipped) for record in self.records)

    def tables(self, title: str) -> list[Table]:
        events = (record.event for record in self.records)
        return [event for event in events if isinstance(event, Table) and event.title.startswith(title)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChainHome]:
    with one_thread():
        yield ChainHome(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def made(home: ChainHome) -> tuple[dict[str, Artifact], list[Record]]:
    """What the chain has made, and what it said."""
    outcome = home.run("one", "two")
    assert outcome.exit_code == 0, outcome.error
    artifacts = home.made()
    assert [artifact.stage for artifact in artifacts] == list(STEPS.values())
    return dict(zip(STEPS, artifacts, strict=True)), home.records


def result_of(artifact: Artifact) -> EvaluationResult:
    return msgspec.json.decode((Path(artifact.path) / "results.json").read_bytes(), type=EvaluationResult)


Made = tuple[dict[str, Artifact], list[Record]]


def test_every_set_is_prepared_before_anything_is_trained_and_one_model_is_exported(made: Made) -> None:
    artifacts = made[0]
    assert artifacts["one train"].params["dataset"] == artifacts["one prepare"].path
    assert artifacts["two train"].params["dataset"] == artifacts["two prepare"].path
    assert [artifacts[f"{name} evaluate"].params["skills"] for name in ("base", "one", "two")] == [
        {name: artifacts[f"{name} prepare"].path for name in ("one", "two")}
    ] * 3


def test_each_stage_goes_on_from_the_adapter_before_it(made: Made) -> None:
    artifacts = made[0]
    first, second = artifacts["one train"], artifacts["two train"]
    assert "start_adapter" not in first.sources
    assert second.sources["start_adapter"] == first.digest
    assert second.sources["dataset"] == artifacts["two prepare"].digest
    assert artifacts["two export"].params["adapter"] == second.path
    (lineage,) = [r.event for r in made[1] if isinstance(r.event, Table) and r.event.title == "Lineage"]
    assert [row[0] for row in lineage.rows] == ["one", "two"]
    assert lineage.rows[1][2] == lineage.rows[0][1] == first.digest.removeprefix("sha256:")[:12]


def test_a_later_set_holds_samples_of_the_earlier_one_and_none_that_it_held_out(made: Made) -> None:
    def prompts(name: str, file: str) -> list[str]:
        lines = (Path(made[0][name].path) / file).read_text().splitlines()
        return [json.loads(line)["prompt"] for line in lines]

    replayed = [text for text in prompts("two prepare", "train.jsonl") if text.startswith("Write a function that adds")]
    both = [*prompts("two prepare", "train.jsonl"), *prompts("two prepare", "held_out.jsonl")]
    again = [text for text in both if text.startswith("Write a function that adds")]
    assert replayed and len(again) / len(both) == pytest.approx(0.25, abs=0.02)
    assert set(again) <= set(prompts("one prepare", "train.jsonl"))


def test_the_base_and_each_stage_are_asked_the_same_and_the_adapter_answers(made: Made) -> None:
    base, one, two = (result_of(made[0][f"{name} evaluate"]) for name in ("base", "one", "two"))
    assert base.suites[0].prompts == one.suites[0].prompts == two.suites[0].prompts
    assert base.backend == one.backend and "embedded" in base.backend
    assert made[0]["two evaluate"].params["adapter"] == made[0]["two train"].path
    assert made[0]["base evaluate"].params["adapter"] is None


def test_the_table_after_the_last_stage_has_a_row_for_each(home: ChainHome, made: Made) -> None:
    tables = [r.event for r in made[1] if isinstance(r.event, Table) and r.event.columns[0].name == "stage"]
    progress = [table for table in tables if table.title != "Lineage"]
    assert [[row[0] for row in table.rows] for table in progress] == [["base"], ["base", "one"], ["base", "one", "two"]]


def test_a_second_run_does_nothing_again(home: ChainHome, made: Made) -> None:
    assert home.run("one", "two").exit_code == 0
    assert home.made() == [] and home.skipped() == len(STEPS)


def test_a_chain_that_was_cut_goes_on_with_the_stage_that_is_missing(home: ChainHome, made: Made) -> None:
    home.workspace.forget(made[0]["two train"])
    assert home.run("one", "two").exit_code == 0
    (again,) = home.made()  # what follows was made from the same bytes
    assert (again.stage, again.digest) == ("train", made[0]["two train"].digest)


def test_export_each_registers_a_model_after_every_stage(home: ChainHome, made: Made) -> None:
    assert home.run("one", "two", export_each=True).exit_code == 0
    assert [artifact.stage for artifact in home.made()] == ["export", "register"]
    tags = {entry.tag for entry in library(home.runner().context("run")).entries()}
    assert {"tiny-refined-one:latest", "tiny-refined:latest"} <= tags


def test_a_gate_stops_the_chain_with_its_evidence_and_keeps_what_is_done(home: ChainHome, made: Made) -> None:
    outcome = home.run("one", "two", sets=("gate={directness: +101pt}",))
    assert outcome.exit_code == 1 and outcome.error is not None
    assert outcome.error.message.startswith("the gate of one stops the chain: directness")
    assert "report.md" in outcome.error.hint
    assert home.made() == [] and home.skipped() == list(STEPS).index("one evaluate") + 1


def test_a_metric_that_is_not_known_or_not_measured_is_no_gate(home: ChainHome, made: Made) -> None:
    error = home.run("one", "two", sets=("gate={directnes: +1pt}",)).error
    assert error is not None and "directness" in error.message + error.hint
    assert home.made() == [] and home.skipped() == 0  # before anything
    error = home.run("one", "two", sets=("gate={humaneval: -5pt}",)).error
    assert error is not None and "humaneval, and no recipe of the chain measures it" in error.message
    assert home.made() == [] and home.skipped() == 0


def test_a_gate_on_what_the_base_cannot_show_stops_before_anything_is_trained(home: ChainHome, made: Made) -> None:
    gate = ("gate={debugging: -5pt}", "evaluate.suites=[directness, debugging]", "train.seed=9")
    error = home.run("one", "two", sets=gate).error
    assert error is not None and error.message.endswith("asks for debugging, which can't be measured here")
    assert [artifact.stage for artifact in home.made()] == ["evaluate"]


def test_dora_in_a_chain_is_refused_before_anything_and_may_be_prepared(home: ChainHome, made: Made) -> None:
    error = home.run("one", "two", sets=("train.lora.use_dora=true",)).error
    assert error is not None and "can't apply DoRA" in error.message
    assert home.made() == [] and home.skipped() == 0
    assert home.run("one", "two", verb="prepare", sets=("train.lora.use_dora=true",)).exit_code == 0


def test_models_of_stages_get_tags_of_their_own(home: ChainHome) -> None:
    def tags(*names: str) -> list[str]:
        recipes = tuple(Recipe(name=name) for name in names)
        refinement = Refinement(recipes, "", None, None, None, "", {}, None, "gemma3-coder:12b", True)  # type: ignore[arg-type]
        return [refinement._stage_tag(recipe) for recipe in recipes]

    assert tags("stage1_nl_to_code", "stage2_context") == ["gemma3-coder:12b-stage1", "gemma3-coder:12b-stage2"]
    assert tags("my_first", "my_second") == ["gemma3-coder:12b-my_first", "gemma3-coder:12b-my_second"]
    assert tags("first: requests") == ["gemma3-coder:12b-first-requests"]
    for tag in tags("stage1_a", "my_b", "my_c", "x: y"):
        assert parse_tag_name(tag).model == "gemma3-coder"


def test_train_and_prepare_do_every_recipe_up_to_there(home: ChainHome, made: Made) -> None:
    assert home.run("one", "two", verb="train").exit_code == 0
    assert home.skipped() == 6  # tokenizer, two sets, quantize, two adapters
    assert home.run("one", "two", verb="prepare").exit_code == 0
    assert home.skipped() == 3


def test_a_recipe_alone_says_that_there_is_nothing_to_replay(home: ChainHome, made: Made) -> None:
    assert home.run("two", verb="prepare").exit_code == 0
    notes = [getattr(record.event, "text", "") for record in home.records]
    assert any("no earlier stage to replay" in note for note in notes)


def test_a_recipe_alone_says_that_its_gate_stops_nothing(home: ChainHome, made: Made) -> None:
    assert home.run("one", sets=("gate={directness: +101pt}",)).exit_code == 0
    notes = [getattr(record.event, "text", "") for record in home.records]
    assert sum("a recipe that runs alone isn't stopped" in note for note in notes) == 1


def test_a_plan_of_a_chain_names_each_step_and_what_is_done(home: ChainHome, made: Made) -> None:
    assert home.run("one", "two", verb="run").exit_code == 0
    from amigo_local.stages.plan import PlanParams, make_plan

    request = PlanParams(recipe=(str(home.folder / "one.yaml"), str(home.folder / "two.yaml")))
    plan, refusal = make_plan(request, home.runner().context("plan"))
    assert refusal is None
    assert [f"{stage.of} {stage.stage}".strip() for stage in plan.stages] == list(STEPS)
    assert {stage.status for stage in plan.stages} == {"done"}
    fresh = msgspec.structs.replace(request, overrides=("train.seed=5",))
    plan, _ = make_plan(fresh, home.runner().context("plan"))
    assert [stage.status for stage in plan.stages[:5]] == ["done"] * 5
    assert {stage.status for stage in plan.stages[5:]} == {"to do"} and plan.memory is not None
