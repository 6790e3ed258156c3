"""What a model writes can't steer a terminal, and honest text is shown as it is."""

from __future__ import annotations

import random
import unicodedata

import pytest
from rich.cells import cell_len

from amigo_local.presentation.visible_text import visible, without_controls


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b[Hgone", "␛[2J␛[Hgone"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x1b]52;c;cm0gLXJm\x1b\\", "␛]52;c;cm0gLXJm␛\\"),
        ("\x9b31mred\x9c", "\\x9b31mred\\x9c"),
        ("safe\rrm -rf", "saferm -rf"),
        ("a\r\nb", "a\nb"),
        ("\x00\x08\x0c\x7f", "␀␈␌␡"),
        ("access\u202e\u2066 // admin\u2069", "access\\u202e\\u2066 // admin\\u2069"),
        ("a\ud83d", "a\ufffd"),
        ("line\u2028line", "line\\u2028line"),
        ("def f():\n\treturn 'né 東京 👩‍💻 שלום'\n", "def f():\n\treturn 'né 東京 👩‍💻 שלום'\n"),
        ("[bold]no markup[/] \\x1b", "[bold]no markup[/] \\x1b"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_pieces_may_be_cut_anywhere() -> None:
    randomness = random.Random(6)
    text = "ok \x1b[31;1mred\x1b[0m \x1b]8;;http://x\x1b\\ \u202ex\r\n\x9bK\x07"
    for _ in range(200):
        at = randomness.randrange(len(text) + 1)
        assert visible(text[:at]) + visible(text[at:]) == visible(text)


def test_no_character_that_steers_passes() -> None:
    passed = [chr(code) for code in range(0x10000) if visible(chr(code)) == chr(code)]
    steering = {c for c in passed if unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in BIDI}
    assert steering == {"\n", "\t"}
    assert len(passed) == 0x10000 - (31 - 2 + 1 + 1 + 32) - 2048 - 7 - 4
    visible("".join(map(chr, range(0x10000)))).encode()


BIDI = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def test_a_line_that_is_laid_out_keeps_its_width_and_loses_every_control() -> None:
    line = "".join(map(chr, range(0x250))) + "\u2028\u202e\u2066\ud83d語é"
    kept = without_controls(line)
    assert cell_len(kept) == cell_len(line) and kept.endswith("\ufffd語é")
    assert [
        char for char in kept if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in "\u202e\u2066"
    ] == []
