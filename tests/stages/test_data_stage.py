"""The verb `data`: what a recipe's sources are, and samples as the model will read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amigo_local.domain.events import AnyEvent, Note, Record, SampleShown, StageFailed, Table
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.runner import Outcome, Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.presentation.sample import LEARNT, READ, sample_lines, sample_text
from amigo_local.stages.data import DataParams
from tests.support.tiny_home import in_this_process
from tests.support.tiny_run import write_tiny_run


class DataHome:
    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe = folder, write_tiny_run(folder)
        self.events: list[AnyEvent] = []

    def run(self, action: str, *recipes: str, sets: tuple[str, ...] = (), count: int = 5) -> Outcome:
        self.events = []

        def listen(record: Record) -> None:
            self.events.append(record.event)

        settings = ProgramSettings(ollama=OllamaSettings(use=False))
        runner = Runner(Workspace(self.folder / "home"), settings, in_this_process, listen)
        paths = recipes or (str(self.recipe),)
        return runner.run("data", DataParams(action=action, recipe=paths, overrides=sets, count=count))

    def rows(self) -> list[tuple[object, ...]]:
        (table,) = [event for event in self.events if isinstance(event, Table)]
        return [tuple(row) for row in table.rows]

    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]

    def samples(self) -> list[SampleShown]:
        return [event for event in self.events if isinstance(event, SampleShown)]


@pytest.fixture
def home(tmp_path: Path) -> DataHome:
    return DataHome(tmp_path)


def refused(outcome: Outcome) -> StageFailed:
    assert outcome.exit_code == 2 and outcome.error is not None and outcome.error.hint
    return outcome.error


def test_check_says_what_each_source_holds_and_becomes(home: DataHome) -> None:
    sources = "data.sources=[{jsonl: %s}, {stdlib: [bisect, heapq]}, {replay: earlier}]" % (home.folder / "pairs.jsonl")
    assert home.run("check", sets=(sources,)).exit_code == 0
    size = (home.folder / "pairs.jsonl").stat().st_size
    assert home.rows()[0] == ("tiny", "jsonl …/pairs.jsonl", "yes", None, 24, size)
    assert home.rows()[1][1:4] == ("stdlib bisect, heapq", "yes", "PSF-2.0")
    assert home.rows()[2][1:3] == ("replay earlier", "no")  # it isn't in a chain, which is said
    assert any("no earlier stage here" in note for note in home.notes())
    assert any("prompt → request, completion → answer; columns: prompt, completion" in note for note in home.notes())
    assert not (home.folder / "home").exists()  # it only looks


def test_a_source_that_is_missing_is_refused_after_all_are_listed(home: DataHome) -> None:
    error = refused(home.run("check", sets=("data.sources=[{jsonl: gone.jsonl}, {stdlib: [bisect]}]",)))
    assert "tiny can't be prepared: jsonl …/gone.jsonl" in error.message
    assert [row[2] for row in home.rows()] == ["no", "yes"]


def test_a_hub_that_cannot_be_reached_stops_only_what_needs_it(home: DataHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read once a process
    source = "{hub: bigcode/commitpackft, files: data/python/data.jsonl, mapping: commits%s}"
    error = refused(home.run("check", sets=(f"data.sources=[{source % ''}]",)))
    assert "hub bigcode/commitpackft" in error.message
    assert home.rows()[0][1:4] == ("hub bigcode/commitpackft", "no", "MIT")
    both = f"data.sources=[{source % ', optional: true'}, {{stdlib: [bisect]}}]"
    assert home.run("check", sets=(both,)).exit_code == 0
    assert home.rows()[0][2] == "no, optional"
    assert home.notes()[-1] == "it can be prepared, without hub bigcode/commitpackft"


def test_check_takes_a_whole_chain(home: DataHome) -> None:
    other = home.folder / "other.yaml"
    other.write_text(home.recipe.read_text().replace("name: tiny", "name: other"))
    assert home.run("check", str(home.recipe), str(other)).exit_code == 0
    assert [row[0] for row in home.rows()] == ["tiny", "other"]
    again = ("data.sources=[{stdlib: [bisect]}, {replay: earlier}]",)
    assert home.run("check", str(home.recipe), str(other), sets=again).exit_code == 0
    assert [row[2] for row in home.rows()] == ["yes", "no", "yes", "made in the run"]
    assert any("again from tiny" in note for note in home.notes())


@pytest.mark.parametrize(
    ("replayed", "says"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("run:20990101-000000-none", "there is no run 20990101-000000-none"),
        ("[earlier, nowhere]", "nowhere: no such folder"),
    ],
)
def test_a_replay_of_what_isnt_there_is_refused(home: DataHome, replayed: str, says: str) -> None:
    error = refused(home.run("check", sets=(f"data.sources=[{{stdlib: [bisect]}}, {{replay: {replayed}}}]",)))
    assert says in error.message


def test_sources_that_dont_fit_the_method_are_refused(home: DataHome) -> None:
    assert "train.method is dpo" in refused(home.run("check", sets=("train.method=dpo",))).message
    mixed = "data.sources=[{stdlib: [bisect]}, {votes: mine}]"
    assert "pairs of answers" in refused(home.run("check", sets=(mixed,))).message


def test_votes_that_are_none_are_refused(home: DataHome) -> None:
    (home.folder / "votes.jsonl").write_text("garbage\n{}\n")
    error = refused(home.run("check", sets=(f"data.sources=[{{votes: {home.folder / 'votes.jsonl'}}}]",)))
    assert "no line of it is a vote" in error.message and "the first is line 1" in error.message


def test_preview_shows_samples_as_the_model_reads_them(home: DataHome) -> None:
    assert home.run("preview", count=3).exit_code == 0
    samples = home.samples()
    assert len(samples) == 3
    for sample in samples:
        read, learnt = sample.parts
        assert not read.trained and "Write a function that adds" in read.text and "assistant" in read.text
        assert learnt.trained and "def add(x):" in learnt.text and "Write" not in learnt.text
        assert sample.length_tokens == read.tokens + learnt.tokens and not sample.is_too_long
    assert not (home.folder / "home").exists()


def test_preview_marks_what_is_too_long(home: DataHome) -> None:
    long = {"prompt": "Write all of it.", "completion": "```python\n" + "x = 1\n" * 400 + "```"}
    (home.folder / "pairs.jsonl").write_text(json.dumps(long) + "\n")
    assert home.run("preview").exit_code == 0
    (sample,) = home.samples()
    assert sample.is_too_long and sample.limit_tokens == 256
    lines = list(sample_lines(sample))
    assert lines[0].endswith(f"{sample.length_tokens:,} tokens, more than 256: left out (data.max_length_tokens)")


def test_a_sample_on_a_pipe_and_in_colour_has_the_same_lines(home: DataHome) -> None:
    home.run("preview", count=1)
    (sample,) = home.samples()
    lines = list(sample_lines(sample))
    assert f"{LEARNT}[learnt, {sample.parts[1].tokens} tokens]" in lines
    assert any(line.startswith(f"{LEARNT}def add(x):") for line in lines)
    assert not any(line.startswith(LEARNT) and "Write a function" in line for line in lines)
    assert any(line.startswith(READ) and "Write a function" in line for line in lines)
    text = sample_text(sample)
    assert text.plain.strip().splitlines() == lines
    assert {str(span.style) for span in text.spans} >= {"green", "dim"}


def test_preview_needs_a_model(home: DataHome) -> None:
    text = home.recipe.read_text()
    home.recipe.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("model:")))
    assert "names no model" in refused(home.run("preview")).message
    assert home.run("check").exit_code == 0
