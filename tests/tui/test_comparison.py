from __future__ import annotations

from random import Random

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import GenerationFinished, Note, TokenGenerated
from amigo_local.domain.generation import Message
from amigo_local.tui.comparison import Comparison
from amigo_local.tui.prompt_set import newest_prompts


def finished(side: int) -> GenerationFinished:
    return GenerationFinished(side, 0, f"m{side}", 5, 7, 0.0, 0.1, 1.0, "stop")


def answer(comparison: Comparison, *texts: str) -> bool:
    for side, text in enumerate(texts):
        comparison.take(TokenGenerated(side, 0, text))
        comparison.take(finished(side))
    return comparison.end()


def test_a_conversation_goes_on_with_each_models_own_turns_until_the_models_change() -> None:
    comparison = Comparison(Random(0))
    params = comparison.begin("one", ["old", "new"], blind=False)
    assert params == {"ref": ["old", "new"], "prompt": "one", "history": [[], []], "together": "auto"}
    assert answer(comparison, "a", "b") and comparison.turns == 1
    history = comparison.begin("two", ["new", "old"], blind=False)["history"]
    assert history == [
        [{"role": "user", "content": "one"}, {"role": "assistant", "content": said}] for said in ("b", "a")
    ]
    assert comparison.begin("three", ["new", "other"], blind=False)["history"] == [[], []]
    assert comparison.begin("three", ["new"], blind=True)["together"] == "no"
    assert not comparison.hidden  # one model is no secret


def test_an_unfinished_turn_is_no_turn_and_cannot_be_voted_on() -> None:
    comparison = Comparison(Random(0))
    comparison.begin("one", ["old", "new"], blind=False)
    assert comparison.take(TokenGenerated(0, 0, "a")) == 0 and comparison.take(Note("x")) is None
    comparison.take(finished(0))
    comparison.take(TokenGenerated(1, 0, "b"))
    assert not comparison.can_vote and not comparison.end() and not comparison.can_vote
    assert comparison.turns == 0 and [side.text for side in comparison.sides] == ["a", "b"]


def test_the_side_that_was_never_asked_is_asked_alone_with_its_own_history() -> None:
    comparison = Comparison(Random(0))
    comparison.begin("one", ["old", "new"], blind=False)
    answer(comparison, "a", "b")
    comparison.begin("two", ["old", "new"], blind=False)
    comparison.take(TokenGenerated(0, 0, "half an ans"))
    rest = comparison.ask_the_rest()
    assert rest is not None and (rest["ref"], rest["together"]) == (["new"], "no")
    assert rest["history"] == [[{"role": "user", "content": "one"}, {"role": "assistant", "content": "b"}]]
    assert comparison.take(TokenGenerated(0, 0, "whole")) == 1
    assert comparison.take(finished(0)) == 1
    assert [side.text for side in comparison.sides] == ["half an ans", "whole"]
    assert comparison.ask_the_rest() is None
    comparison.begin("three", ["old", "new"], blind=False)
    comparison.take(TokenGenerated(1, 0, "both were asked at once"))
    assert comparison.ask_the_rest() is None


def test_blind_sides_are_shuffled_by_the_generator_and_votes_name_the_right_models() -> None:
    orders = set()
    for seed in range(8):
        comparison = Comparison(Random(seed))
        comparison.begin("one", ["old", "new"], blind=True)
        assert comparison.hidden
        order = tuple(side.model for side in comparison.sides)
        answer(comparison, *(f"by {model}" for model in order))
        vote = comparison.choose("second", 1.0)
        assert (vote.chosen_model, vote.rejected_model, vote.blind) == (order[1], order[0], True)
        assert vote.chosen == f"by {order[1]}"
        again = Comparison(Random(seed))
        again.begin("one", ["old", "new"], blind=True)
        assert tuple(side.model for side in again.sides) == order
        orders.add(order)
    assert orders == {("old", "new"), ("new", "old")}


def test_a_vote_has_the_turns_before_and_can_be_taken_back() -> None:
    comparison = Comparison(Random(0))
    comparison.begin("one", ["old", "new"], blind=False)
    answer(comparison, "a", "b")
    comparison.begin("two", ["old", "new"], blind=False)
    answer(comparison, "c", "d")
    assert comparison.can_vote and comparison.take_back(1.0) is None
    vote = comparison.vote = comparison.choose("first", 2.0)
    assert vote.history == (Message("user", "one"), Message("assistant", "a")) and vote.verdict == "better"
    assert not comparison.can_vote
    back = comparison.take_back(3.0)
    assert back is not None and back.withdrawn and back.about == vote.about
    comparison.vote = None
    assert comparison.choose("both_bad", 4.0).verdict == "both_bad"
    comparison.swap()
    assert comparison.choose("first", 5.0).chosen == "d"


def test_answers_that_are_the_same_cannot_be_voted_on() -> None:
    comparison = Comparison(Random(0))
    comparison.begin("one", ["old", "new"], blind=False)
    answer(comparison, "same", "same ")
    with pytest.raises(InputError, match="nothing to learn from"):
        comparison.choose("first", 1.0)


def test_only_the_newest_prompts_are_kept() -> None:
    assert newest_prompts(["a", "bb", "ccc"], 2, 100) == ["bb", "ccc"]
    assert newest_prompts(["a", "bb", "ccc"], 9, 5) == ["bb", "ccc"]
    assert newest_prompts(["a", "x" * 50], 9, 5) == []
