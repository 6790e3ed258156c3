"""Follows a run's journal while its owner writes it, from whatever process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from amigo_local.domain.events import Record, decode_record
from amigo_local.engine.journal import JOURNAL_NAME
from amigo_local.engine.lock import is_alive

POLL_BYTES = 1 << 18
POLL_SECONDS = 0.1


class JournalFollower:
    """Hands out each record of a journal once, in order. The file may not be there yet, may end in a line that is
    still being written, and may be cut behind its last whole record, as Journal does when a run is taken up again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        """Behind the last record that was handed out."""
        self._last_seq = -1

    def poll(self, limit_bytes: int = POLL_BYTES) -> list[Record]:
        """New whole records, of about so many bytes at most; empty when there are none now. Never waits."""
        while True:
            data = self._read(limit_bytes)
            found, position = self._take(data)
            if found or len(data) < limit_bytes or not data.endswith(b"\n"):
                return found
            self._offset = position  # nothing but rubbish, or what was handed out before

    def _read(self, limit_bytes: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0  # another file than before: what is known already is told apart by its seq
                file.seek(self._offset)
                data = file.read(limit_bytes)
                if len(data) == limit_bytes and not data.endswith(b"\n"):
                    data += file.readline()
                return data
        except FileNotFoundError:
            return b""

    def _take(self, data: bytes) -> tuple[list[Record], int]:
        """What is new in it, and where its last whole line ends."""
        found: list[Record] = []
        position = self._offset
        for line in data.split(b"\n")[:-1]:  # what follows the last newline is still being written
            position += len(line) + 1
            try:
                record = decode_record(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue  # at the end of the file it may still be cut off, and something else be written there
            self._offset = position
            if record.seq > self._last_seq:
                self._last_seq = record.seq
                found.append(record)
        return found, position


def follow(
    run_folder: Path,
    after_seq: int = -1,
    poll_seconds: float = POLL_SECONDS,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[Record]:
    """Every record behind `after_seq`, as they come; ends when the run isn't alive and everything was read.
    `wait` (seconds) may raise to end it."""
    follower = JournalFollower(run_folder / JOURNAL_NAME)
    while True:
        alive = is_alive(run_folder)  # before reading: what it wrote before its end is read
        records = follower.poll()
        yield from (record for record in records if record.seq > after_seq)
        if not records:
            if not alive:
                return
            wait(poll_seconds)
