"""kill -9 at every event boundary of a real loop: the next run goes on and makes the same model."""

from __future__ import annotations

import copy
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.events import Record, StageFailed, StageFinished, StageSkipped
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.contract import RecipeRequest
from amigo_local.engine.runner import Outcome, Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.stages import load_stage
from amigo_local.stages.quantize import QuantizeParams
from tests.support.command_here import amigo_here, amigo_records_here
from tests.support.command_line import SCRIPT, environment
from tests.support.forked_worker import VARIABLE, forking_workers
from tests.support.tiny_run import write_tiny_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork need a POSIX system")
STAGES = ("tokenizer", "prepare", "quantize", "train", "export", "register", "evaluate")
# Embedded llama.cpp: what is proven here is the engine; Ollama's part is idempotent and tested with it.
SETTINGS = ProgramSettings(ollama=OllamaSettings(use=False))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with forking_workers(tmp_path_factory.mktemp("workers")) as command:
        yield command


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("tiny"))


class Loop:
    """Runs of one recipe on one home, with the records of the last one."""

    def __init__(self, home: Path, recipe: Path, worker: tuple[str, ...]) -> None:
        self.workspace = Workspace(home)
        self.recipe, self.worker = recipe, worker
        self.records: list[Record] = []

    def run(self, verb: str = "run", kill: str = "") -> Outcome:
        self.records = []
        os.environ[VARIABLE] = kill or " "
        runner = Runner(self.workspace, SETTINGS, load_stage, self.records.append, self.worker)
        if verb == "quantize":
            return runner.run(verb, QuantizeParams(ref=str(self.recipe.parent / "tiny.gguf")))
        return runner.run(verb, RecipeRequest(recipe=(str(self.recipe),)))

    def artifacts(self) -> dict[str, Artifact]:
        """Stage -> artifact of the last run, made or found done."""
        found = (r.event.artifact for r in self.records if isinstance(r.event, StageFinished | StageSkipped))
        return {artifact.stage: artifact for artifact in found if artifact}

    def skipped(self) -> list[str]:
        return [r.stage for r in self.records if isinstance(r.event, StageSkipped)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe: Path, worker: tuple[str, ...]) -> Loop:
    """A loop that nothing stopped, with its records."""
    loop = Loop(tmp_path_factory.mktemp("whole"), recipe, worker)
    assert loop.run().exit_code == 0
    assert tuple(loop.artifacts()) == STAGES
    return loop


def boundaries(records: list[Record]) -> Counter[str]:
    """Records that each stage's worker wrote; the runner itself writes `stage_started` and the run's own."""
    own = {"StageStarted", "StageSkipped", "RunStarted", "RunFinished"}
    return Counter(record.stage for record in records if type(record.event).__name__ not in own)


def test_killed_at_every_boundary_the_loop_makes_the_same_model(
    tmp_path: Path, recipe: Path, worker: tuple[str, ...], whole: Loop
) -> None:
    expected, counts = whole.artifacts(), boundaries(whole.records)
    cut = Loop(tmp_path / "cut", recipe, worker)
    kills: Counter[str] = Counter()
    for position, stage in enumerate(STAGES):
        # Killed after its very last record, the first stage was done, and the loop went on to its end. Each other one
        # is made anew from what was made after kills, and what follows holds when it is the same again. A registered
        # file has to be the very one: from the export on, what follows is made anew too.
        redone = STAGES[position : None if stage in ("export", "register", "evaluate") else position + 1]
        for name, artifact in cut.artifacts().items():
            if name in redone:
                cut.workspace.forget(artifact)
        for boundary in itertools.count(1):
            outcome = cut.run(kill=f"{stage} {boundary}")
            assert cut.skipped()[:position] == list(STAGES[:position]), "a finished stage ran again"
            kills[stage] += 1
            if outcome.exit_code == 0:
                assert cut.skipped()[position:] == [s for s in STAGES[position:] if position and s not in redone]
                break  # its last record; a resumed stage has fewer left than a fresh one
            assert outcome.error and "signal 9" in outcome.error.message
    # Each fresh start of a stage that can't resume has as many; one that can has fewer left each time.
    assert all(kills[stage] >= 0.5 * counts[stage] for stage in STAGES), (kills, counts)
    assert cut.run().exit_code == 0
    got = cut.artifacts()
    for stage in ("tokenizer", "prepare", "quantize", "train", "export"):
        assert got[stage].digest == expected[stage].digest, stage
    assert cut.workspace.unfinished() == []


def test_training_killed_at_every_boundary_resumes_to_the_same_adapter(whole: Loop) -> None:
    loop = copy.copy(whole)
    expected = loop.artifacts()
    for boundary in range(1, boundaries(loop.records)["train"]):
        loop.workspace.forget(expected["train"])
        assert loop.run(kill=f"train {boundary}").exit_code == 1
        assert loop.workspace.unfinished() != []
        assert loop.run().exit_code == 0
        got = loop.artifacts()
        assert got["train"].digest == expected["train"].digest, f"killed after event {boundary}"
        # The same adapter again: what follows from it is still done.
        assert {"export", "register", "evaluate"} <= set(loop.skipped())


def test_a_store_whose_maker_is_killed_in_the_middle_of_any_layer_goes_on_to_the_same_bytes(
    tmp_path: Path, recipe: Path, worker: tuple[str, ...]
) -> None:
    """With every record let through: ten of what is checked first, a note where it goes on, and seven of each layer."""
    loop = Loop(tmp_path, recipe, worker)
    assert loop.run("quantize").exit_code == 0
    expected = loop.artifacts()["quantize"]
    loop.workspace.forget(expected)
    found: list[int] = []
    while loop.run("quantize", kill="quantize 22 every").exit_code == 1:
        (partial,) = loop.workspace.unfinished()
        assert partial.name.startswith("quantize-")
        found.append(len((partial / "layers.jsonl").read_bytes().splitlines()) - 1)
        assert len(found) < 6, "it starts over each time"
    assert found == [1, 2, 3], "layers that were on the disk at each kill"
    assert loop.artifacts()["quantize"].digest == expected.digest
    assert loop.workspace.unfinished() == []


def test_the_death_of_the_program_itself_ends_its_worker_and_loses_nothing(tmp_path: Path, recipe: Path) -> None:
    command = [str(SCRIPT), "prepare", str(recipe), "--set", "ollama.use=false"]
    first = subprocess.Popen(
        command, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert first.stderr
    while not first.stderr.readline().startswith("prepare: "):
        assert first.poll() is None
    while not (workers := psutil.Process(first.pid).children(recursive=True)):  # it says so before it starts one
        assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stderr.close()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert workers and not alive, "a worker outlived its owner"
    assert "cut: amigo-local runs resume" in amigo_here(tmp_path, "runs", "ls").stdout
    code, events = amigo_records_here(tmp_path, "runs", "resume")
    assert code == 0
    assert [(e.stage, type(e.event).__name__) for e in events if isinstance(e.event, StageSkipped | StageFinished)] == [
        ("tokenizer", "StageSkipped"),
        ("prepare", "StageFinished"),
    ]
    runs = list((tmp_path / "runs").iterdir())
    assert len(runs) == 1, "resume goes on in the same run"


def test_a_stage_that_fails_says_why_and_leaves_no_build_directory(
    tmp_path: Path, recipe: Path, worker: tuple[str, ...]
) -> None:
    loop = Loop(tmp_path, recipe, worker)
    assert loop.run(kill="tokenizer 1").exit_code == 1
    failed = [r.event for r in loop.records if isinstance(r.event, StageFailed)]
    assert len(failed) == 1 and "run the same command again" in failed[0].hint


def test_cancel_reaches_a_worker_and_the_next_run_goes_on(tmp_path: Path, recipe: Path) -> None:
    workspace = Workspace(tmp_path)
    records: list[Record] = []
    runner: Runner

    def on_record(record: Record) -> None:
        records.append(record)
        if record.stage == "unpack" and type(record.event).__name__ == "Progress":
            runner.cancel()

    runner = Runner(workspace, SETTINGS, load_stage, on_record)
    started = time.monotonic()
    assert runner.run("unpack", load_stage("unpack").params(ref=str(recipe.parent / "tiny.gguf"))).exit_code == 130
    assert time.monotonic() - started < 15
    assert type(records[-2].event).__name__ == "StageCancelled"
    assert workspace.unfinished() == []
