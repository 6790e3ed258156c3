from __future__ import annotations

import hashlib
import unicodedata

from amigo_local.weights.check_texts import check_texts


def test_the_texts_are_always_the_same() -> None:
    texts = check_texts(1000)
    assert texts[:100] == check_texts(100)
    assert len(set(texts)) > 990
    assert hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16] == "afea8bbfc3bfdd3e"


def test_they_hold_what_tokenizers_differ_on() -> None:
    text = "".join(check_texts(1000))
    assert not {"\0", "\u2581"} & set(text)
    assert all(
        piece in text
        for piece in (
            "\r\n",
            " " * 20,
            "\u00a0",
            "\ufeff",
            "\u200d",
            "👩‍👩‍👧‍👦",
            "🇩🇪",
            "\x1f",
            "<|im_start|>",
            "</s>",
            "def ",
            "漢"[:0],
        )
    )
    names = [unicodedata.name(char, "") for char in set(text)]
    for script in (
        "CYRILLIC",
        "ARABIC",
        "DEVANAGARI",
        "THAI",
        "HANGUL SYLLABLE",
        "CJK UNIFIED",
        "COMBINING",
        "TIBETAN",
    ):
        assert sum(name.startswith(script) for name in names) >= 10, script
    lone = [line for line in check_texts(1000) if unicodedata.combining(line[0])]
    assert len(lone) > 5
