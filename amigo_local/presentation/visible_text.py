"""visible: text that a model or a file wrote, made safe to show on a terminal."""

from __future__ import annotations

import re

# C0 but newline and tab, DEL, C1, line and paragraph separators, overrides and isolates of the writing direction
# (Unicode UAX 9; "Trojan Source", CVE-2021-42574), halves of characters.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_OR_WHITE = re.compile(_UNSAFE.pattern.replace("[", r"[\t\n", 1))
_PICTURES = 0x2400  # Unicode's block Control Pictures: ␀ stands for 0, ␛ for escape
_DELETE, _DELETE_PICTURE = 0x7F, "\u2421"


def visible(text: str) -> str:
    """Every character that would steer a terminal is replaced by one that shows it; carriage returns are dropped.

    Nothing else changes, and each character is judged alone: pieces of a stream may be cut anywhere, also inside an
    escape sequence.
    """
    return _UNSAFE.sub(_shown, text)


def without_controls(line: str) -> str:
    """The same for a line that is laid out already, whose width stays: controls, which take no cell, are left out, and
    half a character becomes a sign of one cell."""
    return _UNSAFE_OR_WHITE.sub(lambda found: "\ufffd" if "\ud800" <= found[0] <= "\udfff" else "", line)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code == ord("\r"):
        return ""
    if code < ord(" "):
        return chr(_PICTURES + code)
    if code == _DELETE:
        return _DELETE_PICTURE
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
