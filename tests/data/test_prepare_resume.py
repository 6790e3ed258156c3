"""prepare, killed with SIGKILL at many moments: the same call goes on, and gives the bytes of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from amigo_local.data.filter_pool import Pace
from amigo_local.data.prepare import prepare
from amigo_local.data.reading import Reading
from amigo_local.domain.data_source import JsonlSource
from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import AnyEvent, Progress
from amigo_local.domain.recipe import DataSettings

FILES = ("train.jsonl", "held_out.jsonl", "stats.json")
SLOW = Pace(batch_pairs=25, inline_pairs=10**9, save_every_batches=2, render_rows=20)
POOLED = Pace(batch_pairs=25, inline_pairs=50, save_every_batches=2, render_rows=20, processes=2)
Answer = Callable[..., int]


def write_sources(folder: Path) -> DataSettings:
    """Two tables with everything in them that is left out somewhere, one of them limited."""
    folder.mkdir(parents=True)
    for name, rows in (("first", 260), ("second", 180)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for n in range(rows):
                words = " ".join(f"w{(n * 7 + k) % 97}" for k in range(12 + n % 40))
                answer = {0: "```python\nx = = 1\n```", 1: "mail someone@gmail.com", 2: words * 9}.get(n % 11, words)
                row = {"prompt": f"question {n // 2 if n % 9 == 0 else n} of {words}", "completion": answer}
                file.write(json.dumps(row | {"module": f"m{n % 37}"}) + "\n")
    sources = (
        JsonlSource(jsonl=str(folder / "first.jsonl")),
        JsonlSource(jsonl=str(folder / "second.jsonl"), limit=60),
    )
    return DataSettings(sources=sources, held_out_fraction=0.3, max_length_tokens=700, near_duplicates=0.9)


def quiet() -> Reading:
    return Reading(emit=lambda event: None)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    return write_sources(tmp_path_factory.mktemp("given") / "tables")


@pytest.fixture(scope="module")
def whole(given: DataSettings, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    folder = tmp_path_factory.mktemp("whole")
    prepare(given, checkpoint, folder, quiet, lambda event: None, pace=SLOW)
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def attempt(given: DataSettings, checkpoint: Path) -> Iterator[Answer]:
    """Runs prepare in a process of its own that dies at its n-th event, or at its n-th fsync; the exit status.

    One process imports everything, and forks those that die."""
    command = [sys.executable, "-m", "tests.data.test_prepare_resume"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin and server.stdout

    def run(folder: Path, pace: Pace, *, events: int = 0, syncs: int = 0) -> int:
        assert server.stdin and server.stdout
        request = [msgspec.to_builtins(given), str(checkpoint), str(folder), msgspec.to_builtins(pace), events, syncs]
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    yield run
    server.stdin.close()
    server.wait(timeout=20)


@pytest.mark.parametrize(("what", "numbers"), [("events", (3, 9, 15, 21, 27)), ("syncs", (1, 5, 6, 9, 13, 18, 22))])
def test_killed_again_and_again_it_gives_the_same_bytes(
    what: str, numbers: tuple[int, ...], attempt: Answer, whole: dict[str, bytes], tmp_path: Path
) -> None:
    killed = 0
    for number in numbers:
        status = attempt(tmp_path, SLOW, **{what: number})
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
    assert killed >= 3
    assert attempt(tmp_path, SLOW) == 0
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_a_killed_run_goes_on_where_it_was(attempt: Answer, tmp_path: Path) -> None:
    assert attempt(tmp_path, SLOW, events=14) == -signal.SIGKILL
    state = json.loads((tmp_path / "building" / "state.json").read_bytes())
    assert (state["source"], state["consumed"]) == (1, 50)  # 11 batches of the first, 2 of the second, then death
    assert state["funnels"][0]["read"] == 260


def test_a_killed_run_leaves_no_process_behind(attempt: Answer, whole: dict[str, bytes], tmp_path: Path) -> None:
    assert attempt(tmp_path, POOLED, events=6) == -signal.SIGKILL
    left = [psutil.Process(int(pid)) for pid in (tmp_path / "pids").read_text().split() if psutil.pid_exists(int(pid))]
    assert (tmp_path / "pids").read_text().split()
    assert not psutil.wait_procs(left, timeout=10)[1]
    (tmp_path / "pids").unlink()
    assert attempt(tmp_path, SLOW) == 0
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == whole


def test_processes_filter_as_one_does(
    given: DataSettings, checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    prepare(given, checkpoint, tmp_path, quiet, lambda event: None, pace=POOLED)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == whole


def test_batches_of_long_samples_are_smaller_and_give_the_same(
    given: DataSettings, checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    longest: list[int] = []

    def look(event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.label.startswith("filtering"):
            longest.append(int(event.done))

    prepare(given, checkpoint, tmp_path, quiet, look, pace=msgspec.structs.replace(SLOW, batch_characters=1500))
    assert len(longest) > 60  # where 18 batches of 25 would do
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == whole


def test_a_worker_that_is_ended_from_outside_is_told_and_gone_on_after(
    given: DataSettings, checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    def kill_workers(event: AnyEvent) -> None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # gone by now
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()

    with pytest.raises(AmigoError, match="ended from outside") as error:
        prepare(given, checkpoint, tmp_path, quiet, kill_workers, pace=POOLED)
    assert "goes on from where it was" in error.value.hint
    prepare(given, checkpoint, tmp_path, quiet, lambda event: None, pace=SLOW)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == whole


def test_other_settings_begin_anew(given: DataSettings, checkpoint: Path, tmp_path: Path) -> None:
    impossible = msgspec.structs.replace(given, max_length_tokens=2)
    with pytest.raises(InputError, match="nothing is left to train on"):
        prepare(impossible, checkpoint, tmp_path / "set", quiet, lambda event: None)
    prepare(given, checkpoint, tmp_path / "set", quiet, lambda event: None)
    prepare(given, checkpoint, tmp_path / "fresh", quiet, lambda event: None)
    for name in FILES:
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_a_state_file_that_is_no_state_begins_anew(
    given: DataSettings, checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "building").mkdir()
    (tmp_path / "building" / "state.json").write_bytes(b"\x00" * 200)
    (tmp_path / "building" / "kept").write_bytes(b"half a record")
    prepare(given, checkpoint, tmp_path, quiet, lambda event: None, pace=SLOW)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == whole


def _serve() -> None:
    """Forks a process for each request on stdin, and answers with its exit status."""
    import transformers.models.auto.tokenization_auto  # noqa: F401  # once, for all forks

    for line in sys.stdin:
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        else:
            _run(*json.loads(line))
            os._exit(0)


def _run(settings: Any, checkpoint: str, folder: str, pace: Any, events: int, syncs: int) -> None:
    left = {"events": events, "syncs": syncs}

    def count(what: str) -> None:
        left[what] -= 1
        if left[what] == 0:
            children = psutil.Process().children(recursive=True)
            if children:
                (Path(folder) / "pids").write_text(" ".join(str(child.pid) for child in children))
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    def fsync(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        count("syncs")
        real(descriptor)

    os.fsync = fsync
    prepare(
        msgspec.convert(settings, DataSettings),
        Path(checkpoint),
        Path(folder),
        quiet,
        lambda event: count("events"),
        pace=msgspec.convert(pace, Pace),
    )


if __name__ == "__main__":
    _serve()
