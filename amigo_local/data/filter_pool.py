"""Filters in worker processes: batches of pairs go in, kept records and counts of the others come out, in order."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from amigo_local.data.pair import Pair
from amigo_local.data.pair_filter import Filtered, FilterJob, KeptPreference, PairFilter
from amigo_local.data.preferences import Preference
from amigo_local.domain.errors import AmigoError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How work is cut into pieces. The result doesn't depend on it."""

    batch_pairs: int = 2000
    batch_characters: int = 4 << 20
    """Of long pairs a batch has fewer: a token takes ten times the memory of its characters while it is rendered."""
    inline_pairs: int = 5000
    """So many pairs are filtered in this process before others are started: half a second of work."""
    save_every_batches: int = 10
    render_rows: int = 512
    processes: int | None = None
    """None: one for each core that this process may use."""


STEADY = Pace()


class _Ended(Exception):
    """A worker is gone."""


class _Worker:
    """A process with a pipe of its own, so that its end is seen at once, also in the middle of an answer: a pool of
    concurrent.futures waits for the rest for ever (CPython 3.11, process.py: wait_result_broken_or_wakeup)."""

    def __init__(self, job: bytes) -> None:
        import multiprocessing

        # Started afresh rather than forked: this process may have threads and a GPU by now.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        try:
            self._process.start()
        except BrokenPipeError as error:  # while it was told what to run
            raise _Ended from error
        finally:
            theirs.close()

    def filtered(self, batch: bytes) -> Filtered:
        """Raises what the filters raise there, and _Ended."""
        try:
            self._pipe.send_bytes(batch)
            answer: Filtered | Exception = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _Ended from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """It has nothing to put in order. Whoever waits for its answer is told that it ended."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        self._pipe.close()


class FilterPool:
    """A PairFilter here, and from so many pairs on others in processes of their own."""

    def __init__(self, job: FilterJob, pace: Pace) -> None:
        self._job, self._pace = job, pace
        self._here: PairFilter | None = None
        self._workers: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        """One for each worker, which waits for it."""
        self._processes = pace.processes or _cores()
        self._given = 0

    def __enter__(self) -> FilterPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def run(self, batches: Iterable[Sequence[Pair]]) -> Iterator[Filtered]:
        """One answer for each batch, in their order; only a few batches are read ahead."""
        encode = msgspec.msgpack.Encoder().encode
        waiting: deque[Future[Filtered]] = deque()
        try:
            for batch in batches:
                self._given += len(batch)
                if self._given <= self._pace.inline_pairs:
                    self._here = self._here or PairFilter(self._job)
                    yield self._here.filtered(batch)
                    continue
                waiting.append(self._started().submit(self._filtered_there, encode(batch)))
                if len(waiting) > self._processes + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except _Ended as error:
            raise AmigoError(
                "a process that filters samples was ended from outside, most likely for lack of memory",
                "close other programs and run again: it goes on from where it was",
            ) from error

    def _started(self) -> ThreadPoolExecutor:
        if self._threads is None:
            job = msgspec.msgpack.encode(self._job)
            for _ in range(self._processes):
                self._workers.append(_Worker(job))
                self._idle.put(self._workers[-1])
            self._threads = ThreadPoolExecutor(self._processes)
        return self._threads

    def _filtered_there(self, batch: bytes) -> Filtered:
        worker = self._idle.get()
        try:
            return worker.filtered(batch)
        finally:
            self._idle.put(worker)


def _serve(pipe: Connection, encoded: bytes) -> None:
    """A worker's life: it ends when its owner closes the pipe, or dies. The keyboard interrupts the owner alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = msgspec.msgpack.decode(encoded, type=FilterJob)
    pair_filter = PairFilter(job)
    pair_type = Preference if job.kept_type is KeptPreference else Pair
    decoder = msgspec.msgpack.Decoder(list[pair_type])  # type: ignore[valid-type]  # known when it runs
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            batch = pipe.recv_bytes()
            try:
                answer: Filtered | Exception = pair_filter.filtered(decoder.decode(batch))
            except Exception as error:  # noqa: BLE001 -- raised again by the owner, who reports it
                answer = error
            pipe.send(answer)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
