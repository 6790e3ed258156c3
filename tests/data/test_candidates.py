"""The model's answers become training samples: counted, named, the same every time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from amigo_local.data.candidate_problems import choose_problems
from amigo_local.data.candidates import CANDIDATES_FILE, Candidate, CandidateAnswer
from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference
from amigo_local.data.reading import Reading
from amigo_local.data.source_files import file_of
from amigo_local.data.sources.candidates import asked_of, key_of
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.data_source import CandidatesSource, HubSource, StdlibSource
from amigo_local.domain.errors import InputError

SOURCE = CandidatesSource(candidates=(StdlibSource(stdlib="all"),), problems=10)
GOOD, BAD = "def f(x):\n    return x", "def f(x):\n    return -x"


def block(code: str) -> str:
    return f"```python\n{code}\n```"


def candidate(number: int, *passed: bool | None) -> Candidate:
    check = AnswerCheck(skill="writing", entry_point="f", program="assert f(1) == 1")
    problem = Pair(prompt=f"Write f, {number}.", completion="", source="stdlib", name=f"f{number}", check=check)
    answers = tuple(
        CandidateAnswer(
            text=f"Here it is, as you asked:\n\n{block(GOOD if ok else BAD)}",
            code=GOOD if ok else BAD,
            tokens=9,
            asked_directly=False,
            passed=ok,
            reason=None if ok is None else "passed" if ok else "failed",
        )
        for ok in passed
    )
    return Candidate(problem=problem, answers=answers)


def reading(folder: Path, *candidates: Candidate, source: CandidatesSource = SOURCE) -> Reading:
    folder.mkdir(exist_ok=True)
    (folder / CANDIDATES_FILE).write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in candidates))
    return Reading(emit=lambda event: None, folders={key_of(source): folder})


def test_single_answers_are_read_and_what_gives_none_is_counted(tmp_path: Path) -> None:
    given = reading(tmp_path, candidate(1, True, False), candidate(2, False), candidate(3, None))
    pairs = list(file_of(SOURCE).read(SOURCE, given))
    assert [(pair.name, pair.completion) for pair in pairs] == [("f1", block(GOOD))]
    assert (given.rows, dict(given.skipped)) == (
        3,
        {"no answer passes, and the source has none": 1, "no answer could be run": 1},
    )
    assert given.places["no answer could be run"] == ["f3"]


def test_pairs_are_read_kind_by_kind_and_dropped_ones_are_counted(tmp_path: Path) -> None:
    source = msgspec.structs.replace(SOURCE, pairs=("direct", "correct"))
    given = reading(tmp_path, candidate(1, True, False), candidate(2, True, True), source=source)
    pairs = list(file_of(source).read(source, given))
    assert all(isinstance(pair, Preference) for pair in pairs)
    assert [pair.name for pair in pairs] == ["direct: f1", "correct: f1", "direct: f2"]
    assert dict(given.skipped) == {"correct: no answer fails": 1}
    assert source.preferences and not SOURCE.preferences


def test_no_pair_at_all_says_what_ate_them(tmp_path: Path) -> None:
    source = msgspec.structs.replace(SOURCE, pairs=("correct",))
    given = reading(tmp_path, candidate(1, True), candidate(2, True), source=source)
    with pytest.raises(
        InputError, match=r"to 2 problems gave no pairs \(correct\) \(2 times: correct: no answer fails"
    ):
        list(file_of(source).read(source, given))


def test_the_key_is_of_what_is_asked_and_not_of_what_is_made_of_it() -> None:
    same = msgspec.structs.replace(SOURCE, pairs=("direct",), hard_below=0.1, limit=3)
    assert key_of(same) == key_of(SOURCE) == key_of(asked_of(same)) == "candidates 640624f469f8fcb4"
    for change in ({"samples": 5}, {"seed": 1}, {"temperature": 0.5}, {"max_answer_tokens": 9}, {"problems": 11}):
        assert key_of(msgspec.structs.replace(SOURCE, **change)) != key_of(SOURCE)


def test_the_key_does_not_depend_on_the_order_of_a_mapping() -> None:
    wheres = [{"a": ("1",), "b": ("2",)}, {"b": ("2",), "a": ("1",)}]
    keys = {key_of(CandidatesSource(candidates=(HubSource(hub="o/n", files="*", where=where),))) for where in wheres}
    assert len(keys) == 1


def test_candidates_that_werent_asked_for_or_are_torn_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hasn't been asked") as absent:
        list(file_of(SOURCE).read(SOURCE, Reading(emit=lambda event: None)))
    assert absent.value.hint.startswith("amigo-local ")
    given = reading(tmp_path, candidate(1, True))
    (tmp_path / CANDIDATES_FILE).open("ab").write(b'{"problem": 1}\n')
    with pytest.raises(InputError, match=rf"{CANDIDATES_FILE}:2: no candidate"):
        list(file_of(SOURCE).read(SOURCE, given))
    (tmp_path / CANDIDATES_FILE).unlink()
    with pytest.raises(InputError, match="can't be read: No such file"):
        list(file_of(SOURCE).read(SOURCE, given))


def test_looking_says_how_many_there_are_or_that_the_run_makes_them(tmp_path: Path) -> None:
    facts = file_of(SOURCE).look(SOURCE, Reading(emit=lambda event: None))
    assert not facts.reachable and facts.used == "the model is asked in the run: 10 problems, 5 answers each → answers"
    facts = file_of(SOURCE).look(SOURCE, reading(tmp_path, candidate(1, True), candidate(2, True)))
    assert facts.reachable and facts.rows == 2


def problems(source: str, count: int, modules: int) -> list[Pair]:
    return [
        Pair(prompt=f"{source} {n}", completion="c", source=source, module=f"m{n % modules}", name=f"{n}")
        for n in range(count)
    ]


def test_problems_are_taken_from_each_source_in_turn_and_spread_over_modules() -> None:
    many, few = problems("many", 400, 10), problems("few", 3, 3)
    chosen = choose_problems([(many, None), (few, None)], 13, seed=0)
    assert [pair.source for pair in chosen[:6]] == ["many", "few"] * 3
    assert sorted(pair.module for pair in chosen if pair.source == "many") == sorted(f"m{n}" for n in range(10))
    assert chosen == choose_problems([(many, None), (few, None)], 13, seed=0)
    assert chosen != choose_problems([(many, None), (few, None)], 13, seed=1)


def test_limits_hold_and_the_same_request_is_asked_once() -> None:
    chosen = choose_problems([(problems("a", 9, 3), 2), (problems("a", 9, 3), 4)], 100, seed=0)
    assert len(chosen) == len({pair.prompt for pair in chosen}) <= 6
    assert len(choose_problems([(problems("a", 9, 3), None)], 100, seed=0)) == 9


def test_of_a_preference_the_request_and_the_better_answer_are_taken() -> None:
    given = Preference(prompt="p", completion="good", rejected="bad", source="s")
    assert choose_problems([([given], None)], 1, seed=0) == (Pair(prompt="p", completion="good", source="s"),)
