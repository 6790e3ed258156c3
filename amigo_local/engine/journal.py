"""The journal of a run: one Record a line, appended and flushed, its torn last line repaired."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from amigo_local.domain.events import Progress, Record, TokenGenerated, decode_record, encode_record

JOURNAL_NAME = "journal.jsonl"


class Journal:
    """Append-only. Opening it cuts off a last line that a crash left unfinished."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.repaired_bytes = repair(path) if path.exists() else 0
        self.next_seq = max((record.seq for record in read_journal(path)), default=-1) + 1 if path.exists() else 0
        self._file = path.open("ab")

    def append(self, record: Record) -> None:
        """Written and flushed at once; fsynced too unless it is only progress or a piece of text."""
        self._file.write(encode_record(record) + b"\n")
        self._file.flush()
        if not isinstance(record.event, Progress | TokenGenerated):
            os.fsync(self._file.fileno())
        self.next_seq = max(self.next_seq, record.seq + 1)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def repair(path: Path) -> int:
    """Cuts everything after the last whole record; returns how many bytes went."""
    data = path.read_bytes()
    end = len(data)
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        line = data[start:end]
        if line.endswith(b"\n") and _decodes(line):
            break
        end = start
    if end < len(data):
        with path.open("rb+") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return len(data) - end


def _decodes(line: bytes) -> bool:
    try:
        decode_record(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


def read_journal(path: Path) -> Iterator[Record]:
    """Records of a journal, in order; lines that don't decode are passed over."""
    with path.open("rb") as file:
        for line in file:
            if _decodes(line):
                yield decode_record(line)
