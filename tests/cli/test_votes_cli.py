"""A conversation with two models takes votes; nothing else about `chat` changes. Real models, tiny ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from amigo_local.cli.conversation import converse
from amigo_local.data.votes import VOTES_FILE, Vote, read_votes
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import GenerationFinished, Record, TokenGenerated
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.runner import Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.stages.chat import ChatParams
from tests.support.tiny_gguf import write_tiny_llama
from tests.support.tiny_home import in_this_process


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return tuple(str(write_tiny_llama(folder / f"{name}.gguf", seed=seed)) for seed, name in enumerate(("old", "new")))


class Typed(io.StringIO):
    """What a person types on a terminal."""

    def isatty(self) -> bool:
        return True


class Talk:
    def __init__(
        self, home: Path, refs: tuple[str, ...], typed: str, patch: pytest.MonkeyPatch, prompts: Path | None = None
    ) -> None:
        self.answers: list[dict[int, str]] = []
        self._current: dict[int, str] = {}
        patch.setattr("sys.stdin", Typed(typed))
        settings = ProgramSettings(ollama=OllamaSettings(use=False))
        runner = Runner(Workspace(home), settings, in_this_process, self._hear)
        clock: Iterator[float] = iter(range(100, 200))
        told = str(prompts) if prompts else None
        params = ChatParams(ref=refs, max_tokens=6, context_length=256, prompts=told)
        self.code = converse(runner, params, lambda: next(clock))
        path = home / VOTES_FILE
        self.votes: list[Vote] = [vote for _, vote in read_votes(path)[0]] if path.is_file() else []

    def _hear(self, record: Record) -> None:
        if isinstance(record.event, TokenGenerated):
            side = record.event.side
            if side == 0 and 1 in self._current:
                self._current = {}
            if not self._current:
                self.answers.append(self._current)
            self._current[side] = self._current.get(side, "") + record.event.text
        elif isinstance(record.event, GenerationFinished) and record.event.side == 1:
            self._current = {}


def test_votes_are_written_as_the_models_answered(
    tmp_path: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Talk(tmp_path, models, "add two numbers\n:2\nand three\n:1\n:0\n\n", monkeypatch)
    assert talk.code == 0
    first, second = talk.answers
    assert [(vote.time, vote.chosen_model, vote.rejected_model, vote.withdrawn) for vote in talk.votes] == [
        (100, models[1], models[0], False),
        (101, models[0], models[1], False),
        (102, models[0], models[1], True),
    ]
    assert (talk.votes[0].prompt, talk.votes[0].chosen, talk.votes[0].rejected) == (
        "add two numbers",
        first[1],
        first[0],
    )
    assert (talk.votes[1].prompt, talk.votes[1].chosen) == ("and three", second[0])
    assert talk.votes[0].history == ()
    assert [message.content for message in talk.votes[1].history] == ["add two numbers", first[0]]
    shown = capsys.readouterr()
    assert shown.err.count("Which is better?") == 1
    assert f"Voted for {models[1]}, in {tmp_path / VOTES_FILE}." in shown.err
    assert "The vote is taken back." in shown.err
    assert ":1" not in shown.out


def test_a_tie_and_two_bad_answers_are_kept_and_taken_back(
    tmp_path: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Talk(tmp_path, models, "add two numbers\n:=\n:x\n:0\n\n", monkeypatch)
    assert [(vote.verdict, vote.withdrawn, vote.chosen_model) for vote in talk.votes] == [
        ("tie", False, models[0]),
        ("both_bad", False, models[0]),
        ("both_bad", True, models[0]),
    ]
    told = capsys.readouterr().err
    path = tmp_path / VOTES_FILE
    assert f"Both are as good: kept in {path}, not trained on." in told
    assert f"Both are bad: kept in {path}, not trained on." in told
    assert "The vote is taken back." in told


def test_there_must_be_something_to_vote_on(
    tmp_path: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Talk(tmp_path, models, ":1\n:0\n\n", monkeypatch).votes == []
    assert capsys.readouterr().err.count("There are no two whole answers to vote on.") == 2
    talk = Talk(tmp_path, (models[0], models[0]), "hello\n:1\n:0\n\n", monkeypatch)
    assert talk.votes == []
    told = capsys.readouterr().err
    assert "Both answers are the same" in told and "No vote was given." in told


def test_the_prompts_of_a_file_are_asked_one_by_one_each_on_its_own(
    tmp_path: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (prompts := tmp_path / "set.txt").write_text("add two numbers\n---\nand\nthree\n")
    talk = Talk(tmp_path, models, "\n:1\n\n:=\nwhy?\n:2\n\n", monkeypatch, prompts)
    assert (talk.code, len(talk.answers)) == (0, 3)
    assert [(vote.prompt, len(vote.history)) for vote in talk.votes] == [
        ("add two numbers", 0),
        ("and\nthree", 0),
        ("why?", 2),
    ]
    told = capsys.readouterr().err
    assert "2 prompts: an empty line asks the next" in told
    assert "> and\nthree\n" in told


def test_on_a_pipe_all_prompts_of_a_file_are_asked(
    tmp_path: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (prompts := tmp_path / "set.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    monkeypatch.setattr(Typed, "isatty", lambda self: False)
    talk = Talk(tmp_path, models, "", monkeypatch, prompts)
    assert (talk.code, len(talk.answers)) == (0, 2)
    with pytest.raises(InputError, match="there is no prompt file"):
        Talk(tmp_path, models, "", monkeypatch, tmp_path / "absent.txt")


def test_with_one_model_it_is_something_to_ask(
    tmp_path: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Talk(tmp_path, models[:1], ":1\n\n", monkeypatch)
    assert (len(talk.answers), talk.votes) == (1, [])
    assert "Which is better?" not in capsys.readouterr().err


def test_a_vote_that_cant_be_written_doesnt_end_the_conversation(
    tmp_path: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / VOTES_FILE).mkdir()
    talk = Talk(tmp_path, models, "hello\n:1\nagain\n\n", monkeypatch)
    assert (talk.code, len(talk.answers)) == (0, 2)
    told = capsys.readouterr().err
    assert "the vote can't be written" in told and "--home DIR" in told
