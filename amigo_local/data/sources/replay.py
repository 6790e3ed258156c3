"""Reads the training samples of sets that `prepare` made, to be trained on again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from amigo_local.data.pair import Pair
from amigo_local.data.preferences import PreferenceRow
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.data.row import TRAIN_FILE, Row, iterate_rows
from amigo_local.domain.data_source import ReplaySource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Progress

AGAIN = "replay of "
_HINT = "give `earlier` in a chain, a folder that `prepare` made, or run:ID"


def read(source: ReplaySource, reading: Reading) -> Iterator[Pair]:
    """Set after set; what is held out of them stays so."""
    for folder in _folders(source, reading):
        yield from _samples(folder, reading)


def _samples(folder: Path, reading: Reading) -> Iterator[Pair]:
    file = _train_file(folder)
    given = 0
    try:
        for row in iterate_rows(file):
            reading.rows += 1
            if reading.rows % 2000 == 0:
                reading.emit(Progress(f"reading {folder.name}", reading.rows, None, "samples"))
            if isinstance(row, PreferenceRow):
                raise InputError(
                    f"{folder} holds pairs of answers, which can't be replayed among single ones",
                    "name a set whose recipe has train.method: sft",
                )
            given += 1
            yield _pair(row)
    except msgspec.MsgspecError as error:
        raise InputError(f"{file}: holds other rows than `prepare` writes: {error}", _HINT) from error
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror or error}", _HINT) from error
    if not given:
        raise InputError(f"{file} is empty", _HINT)


def _pair(row: Row) -> Pair:
    return Pair(
        prompt=row.prompt,
        completion=row.completion,
        source=row.source if row.source.startswith(AGAIN) else f"{AGAIN}{row.source}",
        module=row.module,
        name=row.name,
        license=row.license,
        language=row.language,
        check=row.check,
    )


def _folders(source: ReplaySource, reading: Reading) -> list[Path]:
    """In the order of their names; `earlier` and run:ID may stand for several."""
    names = (source.replay,) if isinstance(source.replay, str) else source.replay
    found: list[Path] = []
    for name in names:
        folders = [path for key, path in reading.folders.items() if key == name or key.startswith(f"{name} ")]
        if not folders and Path(name).expanduser().is_dir():
            folders = [Path(name).expanduser()]
        if not folders:
            raise InputError(f"replay: {name} names no set that is there", _HINT)
        found += (folder for folder in folders if folder not in found)
    return found


def _train_file(folder: Path) -> Path:
    file = folder / TRAIN_FILE
    if not folder.is_dir():
        raise InputError(f"replay: {folder}: no such folder", _HINT)
    if not file.is_file():
        raise InputError(f"{folder} is no set that `prepare` made: it has no {TRAIN_FILE}", _HINT)
    return file


def look(source: ReplaySource, reading: Reading) -> SourceFacts:
    used = f"their training samples again, {source.share:.0%} of this set"
    try:
        files = [_train_file(folder) for folder in _folders(source, reading)]
    except InputError as error:
        return SourceFacts(reachable=False, problem=error.message, fix=error.hint, used=used)
    return SourceFacts(reachable=True, size_bytes=sum(file.stat().st_size for file in files), used=used)
