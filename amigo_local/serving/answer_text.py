"""AnswerText: from tokens' bytes to text that may be shown, up to the first stop."""

from __future__ import annotations

import codecs

from amigo_local.domain.code_start import CodeStart


class AnswerText:
    """Fed one token's bytes at a time.

    Text is held back while it ends inside a character or may be the beginning of a stop, which is
    never part of an answer.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.text = ""
        """All that was let out so far."""
        self.stopped = False
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._code = CodeStart()

    def feed(self, piece: bytes) -> str:
        """The text that can be shown now; sets `stopped` when a stop is complete."""
        decoded = self._decoder.decode(piece)
        self._code.feed(decoded)
        self._held += decoded
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._let_out(min(found), drop_rest=True)
        return self._let_out(len(self._held) - self._beginning_of_a_stop())

    def finish(self) -> str:
        """What was held back, when the answer ends without a stop."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        return self._let_out(len(self._held))

    @property
    def tokens_before_code(self) -> int | None:
        """Tokens that ended before the first code of the finished answer; None when it has none."""
        at = self._code.finish()
        return None if at is None or at >= len(self.text) else self._code.pieces_before_code

    def _beginning_of_a_stop(self) -> int:
        """Length of the longest end of the held text that is the beginning of a stop."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _let_out(self, size: int, drop_rest: bool = False) -> str:
        out, self._held = self._held[:size], "" if drop_rest else self._held[size:]
        self.text += out
        return out
