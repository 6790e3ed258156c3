"""Pairs and preferences from a JSON-lines file whose columns the recipe declares."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from amigo_local.data.mined import Mined
from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, Progress


def read_jsonl(
    path: Path, prompt_column: str, completion_column: str, emit: Emit, *, rejected_column: str | None = None
) -> Mined:
    """One pair for each row whose columns are non-empty text; the others are counted.

    With a `rejected_column` they are Preferences. Optional columns `module` and `license` are taken
    over, so that rows which belong together stay on one side of the split. Raises InputError for a
    missing file, a line that is no JSON object, a missing column, or when no row at all could be mapped.
    """
    wanted = [column for column in (prompt_column, completion_column, rejected_column) if column is not None]
    settings = "prompt and completion" if rejected_column is None else "prompt, chosen and rejected"
    pairs: list[Pair] = []
    reasons: Counter[str] = Counter()
    columns: dict[str, None] = {}
    for number, row in _rows(path):
        columns.update(dict.fromkeys(row))
        if number == 1:
            _check_columns(path, wanted, list(row), settings)
        if number % 5000 == 0:
            emit(Progress(f"reading {path.name}", number, None, "rows"))
        texts = [value.strip() for column in wanted if isinstance(value := row.get(column), str)]
        if len(texts) < len(wanted):
            reasons["column isn't text"] += 1
        elif not all(texts):
            reasons["empty prompt or completion"] += 1
        else:
            pairs.append(_pair(texts, row, path.name, number))
    if not pairs:
        found = ", ".join(columns) or "none"
        raise InputError(
            f"{path}: no row has text in all of {', '.join(map(repr, wanted))} (columns found: {found})",
            f"name the columns in the source's {settings}",
        )
    emit(Progress(f"reading {path.name}", len(pairs), len(pairs), "rows"))
    return Mined(pairs=tuple(pairs), left_out=dict(reasons))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    decoder = msgspec.json.Decoder(dict[str, object])
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, decoder.decode(line)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file", "give the path of a JSON-lines file as the source's jsonl") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})", "check the path and its permissions") from error
    except msgspec.DecodeError as error:
        raise InputError(f"{path}:{number}: not one JSON object ({error})", "write one JSON object per line") from error


def _pair(texts: Sequence[str], row: dict[str, object], source: str, number: int) -> Pair:
    prompt, completion, *rejected = texts
    origin = {"source": source, "module": _text(row, "module"), "license": _text(row, "license")}
    if rejected:
        return Preference(prompt=prompt, completion=completion, rejected=rejected[0], name=f"line {number}", **origin)
    return Pair(prompt=prompt, completion=completion, name=f"line {number}", **origin)


def _check_columns(path: Path, wanted: Sequence[str], found: list[str], settings: str) -> None:
    for column in wanted:
        if column not in found:
            close = difflib.get_close_matches(column, found, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(
                f"{path}: no column {column!r} (columns found: {', '.join(found) or 'none'})",
                f"{hint}name the columns in the source's {settings}",
            )


def _text(row: dict[str, object], column: str) -> str:
    value = row.get(column)
    return value if isinstance(value, str) else ""
