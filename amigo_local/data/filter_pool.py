"""Filters in worker processes: batches of pairs go in, kept records and counts of the others come out, in order."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from amigo_local.data.pair import Pair
from amigo_local.data.pair_filter import Filtered, FilterJob, KeptPreference, PairFilter
from amigo_local.data.preferences import Preference
from amigo_local.domain.errors import AmigoError

if TYPE_CHECKING:
    pass


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


class FilterPool:
    """A PairFilter here, and from so many pairs on others in processes of their own."""

    def __init__(self, job: FilterJob, pace: Pace) -> None:
        self._job, self._pace = job, pace
        self._encoded_job = msgspec.msgpack.encode(job)
        self._here: PairFilter | None = None
        self._pool: ProcessPoolExecutor | None = None
        self._processes = pace.processes or _cores()
        self._given = 0

    def __enter__(self) -> FilterPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

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
                waiting.append(self._started().submit(_filter_there, self._encoded_job, encode(batch)))
                if len(waiting) > self._processes + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise AmigoError(
                "a process that filters samples was ended from outside, most likely for lack of memory",
                "close other programs and run again: it goes on from where it was",
            ) from error

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            import multiprocessing

            # Started afresh rather than forked: this process may have threads and a GPU by now.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._processes, context, _live_with_parent)
        return self._pool


@lru_cache(maxsize=1)
def _there(job: bytes) -> tuple[PairFilter, msgspec.msgpack.Decoder[Any]]:
    """A worker's filter, which is slow to make."""
    decoded = msgspec.msgpack.decode(job, type=FilterJob)
    pair_type = Preference if decoded.kept_type is KeptPreference else Pair
    return PairFilter(decoded), msgspec.msgpack.Decoder(list[pair_type])  # type: ignore[valid-type]


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _live_with_parent() -> None:
    """A parent that is killed can't end its workers, and they would wait for work for ever. One that is interrupted
    from the keyboard ends them in its own time."""
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _filter_there(job: bytes, batch: bytes) -> Filtered:
    pair_filter, decoder = _there(job)
    return pair_filter.filtered(decoder.decode(batch))
