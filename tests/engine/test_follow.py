from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from amigo_local.domain.events import Note, Record, encode_record
from amigo_local.engine.follow import JournalFollower, follow
from amigo_local.engine.journal import JOURNAL_NAME, Journal

WRITER = textwrap.dedent("""
    import os, signal, sys, time
    from pathlib import Path
    from amigo_local.domain.events import Note, Record
    from amigo_local.engine.journal import Journal
    from amigo_local.engine.lock import hold_run
    folder = Path(sys.argv[1])
    with hold_run(folder, "writer"), Journal(folder / "journal.jsonl") as journal:
        print("begun", flush=True)
        for seq in range(300):
            journal.append(Record("run", seq, 0.0, "train", Note(f"{seq} " + "x" * (seq * 37 % 900))))
        os.kill(os.getpid(), signal.SIGKILL)
""")


def line(seq: int, text: str = "a") -> bytes:
    return encode_record(Record("run", seq, 0.0, "train", Note(text))) + b"\n"


def seqs(records: list[Record]) -> list[int]:
    return [record.seq for record in records]


def test_a_journal_that_isnt_there_yet_is_waited_for_and_each_record_comes_once(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_NAME
    follower = JournalFollower(path)
    assert follower.poll() == []
    path.write_bytes(line(0))
    assert seqs(follower.poll()) == [0] and follower.poll() == []
    with path.open("ab") as file:
        file.write(line(1) + line(2))
    assert seqs(follower.poll()) == [1, 2] and follower.poll() == []


def test_a_line_that_is_still_being_written_is_handed_out_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_NAME
    follower, whole = JournalFollower(path), line(0) + line(1, "é" * 40)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert seqs(JournalFollower(path).poll()) == ([0] if cut >= len(line(0)) else [])
    path.write_bytes(whole[:-20])
    assert seqs(follower.poll()) == [0]
    path.write_bytes(whole)
    assert seqs(follower.poll()) == [1]


def test_what_the_repair_of_a_torn_journal_cuts_off_is_neither_handed_out_nor_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_NAME
    path.write_bytes(line(0) + b'{"run_id": "torn", "se\n' + b"\0" * 400)
    follower = JournalFollower(path)
    assert seqs(follower.poll()) == [0]
    with Journal(path) as journal:
        assert journal.repaired_bytes == 423
        journal.append(Record("run", 1, 0.0, "train", Note("after")))
        assert seqs(follower.poll()) == [1]
        journal.append(Record("run", 2, 0.0, "train", Note("x" * 600)))  # now longer than it was before the repair
        assert seqs(follower.poll()) == [2]


def test_a_journal_that_was_written_anew_is_read_on_behind_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_NAME
    path.write_bytes(line(0, "long " * 100) + line(1))
    follower = JournalFollower(path)
    assert seqs(follower.poll()) == [0, 1]
    path.write_bytes(line(0) + line(1) + line(2))
    assert seqs(follower.poll()) == [2]


def test_a_poll_reads_no_more_than_it_may_and_lines_longer_than_that_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_NAME
    path.write_bytes(b"".join(line(seq, "x" * 5000 if seq == 3 else "x") for seq in range(10)))
    follower = JournalFollower(path)
    polls: list[list[int]] = []
    while records := follower.poll(limit_bytes=300):
        polls.append(seqs(records))
    assert [seq for found in polls for seq in found] == list(range(10)) and len(polls) > 3
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"no record\n" * 1000 + line(4))
    assert seqs(JournalFollower(rubbish).poll(limit_bytes=300)) == [4]


def test_following_a_run_ends_with_its_owner_and_misses_nothing(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout and writer.stdout.readline() == "begun\n"
    try:
        assert seqs(list(follow(tmp_path, after_seq=9, poll_seconds=0.001))) == list(range(10, 300))
    finally:
        writer.kill()
        writer.wait()
