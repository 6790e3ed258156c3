"""Votes are kept whatever happens to the program, and the last word on two answers counts."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from amigo_local.data.preferences import Preference
from amigo_local.data.reading import Reading
from amigo_local.data.source_files import file_of
from amigo_local.data.votes import VOTES_FILE, Vote, append_vote, read_votes, taken_back, vote_on
from amigo_local.domain.data_source import VotesSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Note
from amigo_local.domain.generation import Message

MINE = VotesSource(votes="mine")


def vote(prompt: str = "p", chosen: str = "a", rejected: str = "b", **changes: object) -> Vote:
    made = Vote(time=1.5, prompt=prompt, chosen=chosen, rejected=rejected, chosen_model="new", rejected_model="old")
    return msgspec.structs.replace(made, **changes)


def read(home: Path, source: VotesSource = MINE) -> tuple[list[Preference], Reading]:
    reading = Reading(emit=lambda event: None, home=home)
    return list(file_of(source).read(source, reading)), reading  # type: ignore[arg-type]


def test_a_vote_becomes_a_pair(tmp_path: Path) -> None:
    append_vote(tmp_path, vote())
    pairs, reading = read(tmp_path)
    assert pairs == [Preference(prompt="p", completion="a", rejected="b", source="votes", name="new over old, line 1")]
    assert (reading.rows, dict(reading.skipped)) == (1, {})
    assert (tmp_path / VOTES_FILE).read_text() == (
        '{"time":1.5,"prompt":"p","chosen":"a","rejected":"b","chosen_model":"new","rejected_model":"old"}\n'
    )


def test_the_later_vote_on_the_same_answers_wins_and_the_contradiction_is_counted(tmp_path: Path) -> None:
    for each in (vote(), vote(chosen="b", rejected="a"), vote("q"), vote("q"), vote("p", "a", "c")):
        append_vote(tmp_path, each)
    pairs, reading = read(tmp_path)
    assert [(pair.prompt, pair.completion, pair.rejected) for pair in pairs] == [
        ("p", "b", "a"),
        ("q", "a", "b"),
        ("p", "a", "c"),
    ]
    assert dict(reading.skipped) == {"contradicts a later vote": 1, "voted twice": 1}
    assert reading.places == {"contradicts a later vote": ["votes.jsonl:1"], "voted twice": ["votes.jsonl:3"]}


def test_what_is_taken_back_or_says_nothing_is_left_out(tmp_path: Path) -> None:
    append_vote(tmp_path, vote())
    append_vote(tmp_path, vote(withdrawn=True))
    append_vote(tmp_path, vote("q", "same", " same\n"))
    append_vote(tmp_path, vote("r", history=(Message("user", "hi"), Message("assistant", "ho"))))
    append_vote(tmp_path, vote("s", "", "b"))
    append_vote(tmp_path, vote("t"))
    append_vote(tmp_path, vote("t", withdrawn=True))
    append_vote(tmp_path, vote("t", "b", "a"))
    pairs, reading = read(tmp_path)
    assert [(pair.prompt, pair.completion) for pair in pairs] == [("t", "b")]
    assert dict(reading.skipped) == {
        "taken back": 1,
        "both answers are the same": 1,
        "in the middle of a conversation: it depends on what was said before": 1,
        "empty request or answer": 1,
    }


def test_only_a_better_answer_is_trained_on_and_the_other_verdicts_are_counted(tmp_path: Path) -> None:
    for each in (
        vote("a"),
        vote("tied", verdict="tie", blind=True),
        vote("bad", verdict="both_bad"),
        vote("changed"),
        vote("changed", "b", "a", verdict="tie"),
        vote("tied twice", verdict="tie"),
        vote("tied twice", "b", "a", verdict="tie"),
        vote("better after all", verdict="both_bad"),
        vote("better after all", "b", "a"),
    ):
        append_vote(tmp_path, each)
    pairs, reading = read(tmp_path)
    assert [(pair.prompt, pair.completion) for pair in pairs] == [("a", "a"), ("better after all", "b")]
    assert dict(reading.skipped) == {
        "a tie: neither answer is the better one": 3,
        "both answers are bad": 1,
        "contradicts a later vote": 2,
        "voted twice": 1,
    }
    lines = (tmp_path / VOTES_FILE).read_text().splitlines()
    assert lines[0].endswith('"rejected_model":"old"}')
    assert lines[1].endswith('"rejected_model":"old","verdict":"tie","blind":true}')
    facts = file_of(MINE).look(MINE, Reading(emit=lambda event: None, home=tmp_path))
    assert facts.reachable and facts.rows == 9


def test_a_choice_becomes_a_vote() -> None:
    histories = ((Message("user", "left"),), (Message("user", "right"),))

    def chosen(choice: str, **more: object) -> Vote:
        return vote_on("p", ("L", "R"), ("old", "new"), choice, time=2.0, histories=histories, **more)  # type: ignore[arg-type]

    assert chosen("second", blind=True) == Vote(
        time=2.0,
        prompt="p",
        chosen="R",
        rejected="L",
        chosen_model="new",
        rejected_model="old",
        history=histories[1],
        blind=True,
    )
    found = {choice: chosen(choice) for choice in ("first", "second", "tie", "both_bad")}
    assert {c: (v.chosen, v.rejected_model, v.verdict, v.blind) for c, v in found.items()} == {
        "first": ("L", "new", "better", False),
        "second": ("R", "old", "better", False),
        "tie": ("L", "new", "tie", False),
        "both_bad": ("L", "new", "both_bad", False),
    }
    assert len({v.about for v in found.values()}) == 1
    back = taken_back(found["tie"], 3.0)
    assert (back.withdrawn, back.time, back.about) == (True, 3.0, found["tie"].about)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((), "no two whole answers"),
        (("a",), "no two whole answers"),
        (("a", " \n"), "no two whole answers"),
        (("a", "a\n"), "Both answers are the same"),
    ],
)
def test_there_must_be_two_different_answers(answers: tuple[str, ...], message: str) -> None:
    for choice in ("first", "second", "tie", "both_bad"):
        with pytest.raises(InputError, match=message) as refused:
            vote_on("p", answers, ("old", "new"), choice, time=1.0)  # type: ignore[arg-type]
        assert refused.value.hint


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_line_spoils_no_other(tmp_path: Path, cut: int) -> None:
    append_vote(tmp_path, vote("first"))
    append_vote(tmp_path, vote("torn"))
    path = tmp_path / VOTES_FILE
    path.write_bytes(path.read_bytes()[:-cut])
    append_vote(tmp_path, vote("last"))
    pairs, reading = read(tmp_path)
    whole = cut == 1  # only the newline was lost
    assert [pair.prompt for pair in pairs] == ["first", *(["torn"] if whole else []), "last"]
    assert reading.places == ({} if whole else {"line is no vote": ["votes.jsonl:2"]})


def test_corrupt_lines_are_named(tmp_path: Path) -> None:
    append_vote(tmp_path, vote())
    with (tmp_path / VOTES_FILE).open("ab") as file:
        file.write(b'{"prompt": 3}\n\n\xff\xfe\n[]\n')
    votes, corrupt = read_votes(tmp_path / VOTES_FILE)
    assert ([number for number, _ in votes], corrupt) == ([1], [2, 4, 5])
    facts = file_of(MINE).look(MINE, Reading(emit=lambda event: None, home=tmp_path))
    assert facts.reachable and facts.problem == "3 of its lines are no votes, the first is line 2"


def test_without_votes_a_recipe_that_asks_for_mine_goes_on_and_a_named_file_stops(tmp_path: Path) -> None:
    events: list[object] = []
    reading = Reading(emit=events.append, home=tmp_path)
    assert list(file_of(MINE).read(MINE, reading)) == []
    assert [event.text for event in events if isinstance(event, Note)] == ["no votes of yours yet"]
    named = VotesSource(votes=str(tmp_path / "theirs.jsonl"))
    with pytest.raises(InputError, match=r"no votes at .*theirs\.jsonl") as missing:
        read(tmp_path, named)
    assert ":1 or :2" in missing.value.hint
    (tmp_path / "theirs.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="no line is a vote"):
        read(tmp_path, named)
    assert not file_of(named).look(VotesSource(votes="/nowhere/v.jsonl"), reading).reachable


def test_a_home_that_cant_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(InputError, match=r"can't be written to .*votes\.jsonl") as refused:
        append_vote(tmp_path / "home", vote())
    assert "--home" in refused.value.hint
