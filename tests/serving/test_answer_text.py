from __future__ import annotations

import random

import pytest

from amigo_local.serving.answer_text import AnswerText


def run(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], AnswerText]:
    answer, shown = AnswerText(stops), []
    for piece in pieces:
        shown.append(answer.feed(piece))
        if answer.stopped:
            break
    shown.append(answer.finish())
    assert "".join(shown) == answer.text
    return shown, answer


def test_a_character_of_several_tokens_is_shown_whole() -> None:
    flag = "🇪🇸é".encode()
    shown, answer = run([bytes([byte]) for byte in flag])
    assert answer.text == "🇪🇸é"
    assert shown == ["", "", "", "🇪", "", "", "", "🇸", "", "é", ""]


def test_an_unfinished_character_at_the_end_is_marked() -> None:
    assert run([b"a", "é".encode()[:1]])[1].text == "a\ufffd"
    assert run([b"\xff", b"b"])[1].text == "\ufffdb"


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "stopped"),
    [
        ([b"one <|im", b"_end|> two"], ("<|im_end|>",), "one ", True),
        ([b"one <|im", b"_start"], ("<|im_end|>",), "one <|im_start", False),
        ([b"a\n", b"\nb"], ("\n\n",), "a", True),
        ([b"aab"], ("ab",), "a", True),
        ([b"xyz"], ("z", "y"), "x", True),
        ([b"abc"], ("",), "abc", False),
        ([b"<", b"<", b"<", b"end"], ("<<end",), "<", True),
    ],
)
def test_stops_end_the_answer_and_are_no_part_of_it(
    pieces: list[bytes], stops: tuple[str, ...], text: str, stopped: bool
) -> None:
    _, answer = run(pieces, stops)
    assert (answer.text, answer.stopped) == (text, stopped)


def test_how_tokens_cut_the_text_changes_nothing() -> None:
    randomness = random.Random(3)
    text = "Hëllo 🙂 <|im_end<|im_end|> never shown"
    data = text.encode()
    for _ in range(200):
        cuts = sorted(randomness.sample(range(1, len(data)), 9))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        _, answer = run(pieces, ("<|im_end|>",))
        assert answer.text == "Hëllo 🙂 <|im_end"


def test_tokens_before_code() -> None:
    assert run([b"Sure", b":", b"\n", b"```", b"py"])[1].tokens_before_code == 3
    assert run([b"```", b"py"])[1].tokens_before_code == 0
    assert run([b"no ", b"code"])[1].tokens_before_code is None
    assert run([b"two ", b"words", b"```"], ("```",))[1].tokens_before_code is None  # the fence was a stop
