"""Log-probabilities of both answers of each pair under the policy as it stood when the stage began."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from amigo_local.domain.events import Emit, Progress

LABEL = "scoring pairs with the reference"
SECONDS_BETWEEN_PROGRESS = 1.0
_VALUES = struct.Struct("<Iff")
_CHECK = struct.Struct("<I")

Logps = tuple[float, float]
"""Of the chosen and of the rejected answer: log-probabilities summed over the answer's tokens, f32 in TRL."""


class ReferenceFile:
    """`path`: one line that says what the values belong to, then records of (pair u32, chosen f32, rejected f32,
    crc32 of those). It grows as `path.partial`; a kill costs the record it cuts, a power failure those not yet on disk.
    """

    def __init__(self, path: Path, fingerprint: dict[str, object]) -> None:
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        self._head = msgspec.json.encode(fingerprint, order="sorted") + b"\n"
        self.found = self._read(self._path) | self._read(self._partial)
        """What is on disk for this fingerprint, by pair."""

    def _read(self, path: Path) -> dict[int, Logps]:
        """Nothing where there is no such file, or one of something else."""
        values: dict[int, Logps] = {}
        content = path.read_bytes() if path.is_file() else b""
        if not content.startswith(self._head):
            return values
        size = _VALUES.size + _CHECK.size
        for start in range(len(self._head), len(content) - size + 1, size):
            record, check = content[start : start + _VALUES.size], content[start + _VALUES.size : start + size]
            if _CHECK.unpack(check)[0] != zlib.crc32(record):
                break
            pair, chosen, rejected = _VALUES.unpack(record)
            values[pair] = (chosen, rejected)
        return values

    def extend(self, values: Iterable[dict[int, Logps]]) -> None:
        """Writes each group as it comes, and the whole under its final name at the end."""
        aside = self._partial.with_name(self._partial.name + ".new")
        aside.write_bytes(self._head + b"".join(map(_record, self.found, self.found.values())))
        aside.replace(self._partial)
        with self._partial.open("ab") as file:
            for group in values:
                file.write(b"".join(map(_record, group, group.values())))
                file.flush()
                self.found.update(group)
            os.fsync(file.fileno())
        self._partial.replace(self._path)


def _record(pair: int, logps: Logps) -> bytes:
    record = _VALUES.pack(pair, *logps)
    return record + _CHECK.pack(zlib.crc32(record))


def reference_logps(
    file: ReferenceFile,
    steps: Sequence[Sequence[int]],
    compute: Callable[[Sequence[int], Callable[[int], None]], dict[int, Logps]],
    emit: Emit,
    clock: Callable[[], float] = time.monotonic,
) -> dict[int, Logps]:
    """Of every pair in `steps`, from the file or else by `compute(pairs of one step, told)`, which calls
    `told(how many are done)` now and then.

    The steps are training's own, in its order: a pair is computed in the company that it is first trained in, so
    that rounding is the same and a policy that hasn't moved has margins of exactly 0. `compute` must run before a
    checkpoint is loaded into the model; what it gives is then the start adapter's, on a resume too.
    """
    wanted = {pair for step in steps for pair in step}

    def missing() -> Iterator[dict[int, Logps]]:
        last = clock()

        def told(done: int) -> None:
            nonlocal last
            if clock() - last >= SECONDS_BETWEEN_PROGRESS:
                last = clock()
                emit(Progress(LABEL, min(len(file.found) + done, len(wanted)), len(wanted), "pairs"))

        for step in steps:
            if not set(step) <= file.found.keys():
                # The first value stays: a pair of a later epoch may be in other company.
                yield {pair: logps for pair, logps in compute(step, told).items() if pair not in file.found}

    if not wanted <= file.found.keys():
        file.extend(missing())
    return file.found
