from __future__ import annotations

from pathlib import Path

import pytest

from amigo_local.domain.events import Note, Record, encode_record
from amigo_local.engine.journal import Journal, read_journal


def record(seq: int) -> Record:
    return Record("run", seq, 1.5, "train", Note(f"event {seq}"))


def write(path: Path, count: int) -> None:
    with Journal(path) as journal:
        for seq in range(journal.next_seq, count):
            journal.append(record(seq))


@pytest.mark.parametrize("cut", range(1, len(encode_record(record(2))) + 1))
def test_a_last_line_torn_at_any_byte_is_cut_off_and_the_rest_kept(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 3)
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path) as journal:
        assert [r.seq for r in read_journal(path)] == [0, 1]
        assert journal.next_seq == 2
        journal.append(record(2))
    assert [r.seq for r in read_journal(path)] == [0, 1, 2]


def test_garbage_behind_the_last_record_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\x00" * 700 + b"\n{\n")
    with Journal(path) as journal:
        assert journal.repaired_bytes == 703
    assert path.read_bytes() == whole


def test_an_empty_or_wholly_torn_journal_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"run_id":"r')
    with Journal(path) as journal:
        assert journal.next_seq == 0
    assert path.read_bytes() == b""
