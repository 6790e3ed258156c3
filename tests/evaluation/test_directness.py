from __future__ import annotations

import pytest

from amigo_local.domain.generation import Answer
from amigo_local.evaluation.directness import Opening, directness_of, is_only_code, opening_of


def answer(text: str, tokens_before_code: int | None = None, tokens: int = 40) -> Answer:
    return Answer(
        text=text,
        prompt_tokens=5,
        answer_tokens=tokens,
        load_seconds=0.0,
        prompt_seconds=0.0,
        answer_seconds=1.0,
        stop_reason="stop",
        tokens_before_code=tokens_before_code,
    )


def test_the_tokens_counted_while_streaming_are_taken() -> None:
    assert opening_of(answer("Sure! Here:\n```python\nx\n```", 5)) == Opening(True, False, 5)
    assert opening_of(answer("\n```python\nx\n```", 1)) == Opening(True, True, 0, True)
    assert opening_of(answer("I can't do that.", None)) == Opening(False, False, None)


def test_without_a_count_the_share_of_characters_stands_in() -> None:
    text = "Sure, here it is:\n\n" + "```python\n" + "x" * 10
    assert len(text) == 39
    assert opening_of(answer(text, None, tokens=39)).tokens_before_code == 19


def test_shares_medians_and_means_of_pinned_answers() -> None:
    found = directness_of(
        [Opening(True, True, 0), Opening(True, False, 10), Opening(True, False, 50), Opening(False, False, None)]
    )
    assert (found.answers, found.with_code.share, found.at_once.share) == (4, 0.75, 0.25)
    assert (found.median_tokens_before_code, found.mean_tokens_before_code) == (10.0, 20.0)
    none = directness_of([Opening(False, False, None)])
    assert (none.median_tokens_before_code, none.mean_tokens_before_code) == (None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\ndef f():\n    return 1\n```", True),
        ("\n```py\nx = 1\n```\n\n", True),
        ("def f():\n    return 1", True),
        ("```python\nx = 1\n```\n\nThis sets x.", False),
        ("Sure:\n```python\nx = 1\n```", False),
        ("```python\nx = 1\n```\n```python\ny = 1\n```", False),
        ("```python\nx = 1\nthe answer was cut", False),
        ("Use the function.", False),
    ],
)
def test_only_code_is_one_whole_block_or_python_and_nothing_besides(text: str, expected: bool) -> None:
    assert is_only_code(text) is expected
