from __future__ import annotations

import random
import re
import subprocess
import sys
from itertools import chain

import pytest

from amigo_local.data.word_grams import CHUNK_CHARACTERS, chunks, words_of

WORD = re.compile(r"\w+")
ODD_TEXTS = [
    "",
    "a",
    "b a  ab\x00ba_9",
    "Ünï_1 x-y İstanbul ß\u0301 q\ud800z",
    " ",
    "ΑΣ Σ ΑΣΑ ² ½ ٣ 中文 字 a\u0300b",
    "e\N{COMBINING ACUTE ACCENT} \U0001f600 \U00020000x",
    "x" * 70_000 + " y",
]


def split(text: str) -> list[str]:
    """What a word is, said by the regular expression."""
    return WORD.findall(text.lower())


@pytest.mark.parametrize("texts", [ODD_TEXTS, ODD_TEXTS[:3], ODD_TEXTS[:1], []])
def test_words_are_what_the_regular_expression_finds(texts: list[str]) -> None:
    words = words_of(texts)
    expected = [split(text) for text in texts]
    assert [int(n) for n in words.starts] == [sum(map(len, expected[:place])) for place in range(len(texts) + 1)]
    number_of: dict[str, int] = {}
    for number, word in zip(words.hashes.tolist(), chain.from_iterable(expected), strict=True):
        assert number_of.setdefault(word, number) == number
    assert len(set(number_of.values())) == len(number_of)


def test_every_character_of_unicode_is_judged_as_by_the_regular_expression() -> None:
    text = " ".join(f"{chr(code)}x" for code in range(0, 0x30000))
    assert len(words_of([text]).hashes) == len(split(text))


@pytest.mark.parametrize("length", [1, 5, 13])
def test_runs_are_equal_where_their_words_are(length: int) -> None:
    draw = random.Random(length)
    texts = [" ".join(draw.choice("abcd") for _ in range(draw.randrange(30))) for _ in range(200)]
    words = words_of(texts)
    starts = words.run_starts(length)
    expected = [
        (index, tuple(each[place : place + length]))
        for index, each in enumerate(map(split, texts))
        for place in range(len(each) - length + 1)
    ]
    assert words.text_of(starts).tolist() == [index for index, _ in expected]
    number_of: dict[tuple[str, ...], int] = {}
    for number, (_, run) in zip(words.runs(starts, length).tolist(), expected, strict=True):
        assert number_of.setdefault(run, number) == number
    assert len(set(number_of.values())) == len(number_of) > 3


def test_numbers_do_not_depend_on_neighbours_or_process() -> None:
    """The shipped index holds them."""
    alone = words_of(["Words make ½ a run."])
    among = words_of(["more and more", "words MAKE\n½, a run", ""])
    assert among.hashes[3:].tolist() == alone.hashes.tolist()
    starts = among.run_starts(5)
    assert among.runs(starts, 5).tolist() == alone.runs(alone.run_starts(5), 5).tolist()
    code = (
        "from amigo_local.data.word_grams import words_of; w = words_of(['words make ½ a run']); "
        "print(w.runs(w.run_starts(5), 5)[0])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) == int(alone.runs(alone.run_starts(5), 5)[0]) == 3898311814240970410


def test_chunks_hold_every_text_once_and_a_long_one_alone() -> None:
    half = CHUNK_CHARACTERS // 2
    assert list(chunks([half, half, 1, 5 * half, 0, half])) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)]
    assert list(chunks([])) == []
    assert list(chunks([0, 0])) == [slice(0, 2)]
