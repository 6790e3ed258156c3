"""Reads the person's own votes as pairs of answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.data.votes import VOTES_FILE, Vote, read_votes
from amigo_local.domain.data_source import VotesSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Note

MINE = "mine"
_HOW = "amigo-local chat OLD NEW, and :1 or :2 after the answers"


def read(source: VotesSource, reading: Reading) -> Iterator[Pair]:
    """In the order in which they were first voted on. The home folder's own may be empty: a recipe that asks for them
    also serves who has none yet."""
    path = _path(source, reading)
    if source.votes == MINE and not path.exists():
        reading.emit(Note("no votes of yours yet", fix=_HOW))
        return
    votes, corrupt = read_votes(path)
    reading.rows += len(votes) + len(corrupt)
    for number in corrupt:
        reading.skip("line is no vote", f"{path.name}:{number}")
    given = 0
    for number, vote in _last_words(votes, path, reading):
        reason = _unusable(vote)
        if reason:
            reading.skip(reason, f"{path.name}:{number}")
            continue
        given += 1
        yield Preference(
            prompt=vote.prompt,
            completion=vote.chosen,
            rejected=vote.rejected,
            source="votes",
            name=f"{vote.chosen_model} over {vote.rejected_model}, line {number}",
        )
    if not given:
        if source.votes == MINE:
            reading.emit(Note(f"no vote of {len(votes)} can be trained on", fix=_HOW))
            return
        raise InputError(f"{path}: no line is a vote that can be trained on", _HOW)


def _last_words(votes: list[tuple[int, Vote]], path: Path, reading: Reading) -> Iterator[tuple[int, Vote]]:
    """The last vote on each two answers, with its line."""
    latest: dict[tuple[str, frozenset[str]], tuple[int, Vote]] = {}
    for number, vote in votes:
        earlier = latest.get(vote.about)
        if earlier is not None and not vote.withdrawn and not earlier[1].withdrawn:
            same = vote.says_the_same(earlier[1])
            reading.skip("voted twice" if same else "contradicts a later vote", f"{path.name}:{earlier[0]}")
        latest[vote.about] = number, vote
    yield from latest.values()


def _unusable(vote: Vote) -> str:
    if vote.withdrawn:
        return "taken back"
    if vote.verdict == "tie":
        return "a tie: neither answer is the better one"
    if vote.verdict == "both_bad":
        return "both answers are bad"
    if vote.history:
        return "in the middle of a conversation: it depends on what was said before"
    if vote.chosen.strip() == vote.rejected.strip():
        return "both answers are the same"
    if not vote.prompt.strip() or not vote.chosen.strip():
        return "empty request or answer"
    return ""


def _path(source: VotesSource, reading: Reading) -> Path:
    if source.votes != MINE:
        return Path(source.votes).expanduser()
    if reading.home is None:
        raise InputError("votes: mine, and there is no home folder to look in", "give the path of a votes.jsonl")
    return reading.home / VOTES_FILE


def look(source: VotesSource, reading: Reading) -> SourceFacts:
    used = "the better answer → chosen, the other → rejected"
    try:
        path = _path(source, reading)
        if source.votes == MINE and not path.exists():
            return SourceFacts(reachable=True, rows=0, problem="no votes yet", fix=_HOW, used=used)
        votes, corrupt = read_votes(path)
    except InputError as error:
        return SourceFacts(reachable=False, problem=error.message, fix=error.hint, used=used)
    usable = sum(not _unusable(vote) for _, vote in votes)
    problem = f"{len(corrupt)} of its lines are no votes, the first is line {corrupt[0]}" if corrupt else ""
    if not usable:
        problem = "; ".join(filter(None, ["no line of it is a vote that can be trained on", problem]))
    return SourceFacts(
        reachable=bool(usable) or source.votes == MINE,
        rows=len(votes),
        size_bytes=path.stat().st_size,
        problem=problem,
        fix=_HOW if not usable else "",
        used=used,
    )
