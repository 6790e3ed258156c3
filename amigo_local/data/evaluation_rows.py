"""Evaluation rows: the problems in a file that must not be trained on, whatever set's layout it has."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.errors import InputError

# What identifies or sorts a problem rather than being part of it.
_NO_TEXT = frozenset(
    {"task_id", "id", "entry_point", "source_file", "bug_type", "failure_symptoms", "url", "language", "category"}
    | {"level", "difficulty", "license", "canary", "test_setup", "import", "test_imports"}
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .json list or .jsonl file, also .gz; a plain .txt is one problem a line.

    Raises InputError when the file is missing, isn't what its name says, or holds no text.
    """
    hint = "data.evaluation_sets names files of problems: .json, .jsonl (also .gz), or .txt with one a line"
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
        rows = _decoded(content, kind)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})", hint) from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: isn't a whole gzip file ({error})", hint) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}", hint) from error
    if not any(fields_of(row) for row in rows):
        columns = ", ".join(sorted({key for row in rows[:20] for key in row})) or "none"
        raise InputError(f"{path}: no text in its {len(rows)} rows (columns found: {columns})", hint)
    return rows


def _decoded(content: bytes, kind: str) -> list[dict[str, Any]]:
    if kind == ".txt":
        return [{"prompt": line} for line in content.decode("utf-8").splitlines() if line.strip()]
    if kind == ".json":
        return msgspec.json.decode(content, type=list[dict[str, Any]])
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                rows.append(msgspec.json.decode(line, type=dict[str, Any]))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise msgspec.DecodeError(f"line {number}: {error}") from error
    return rows


def fields_of(row: Mapping[str, object]) -> list[tuple[str, str]]:
    """(column, text) of all that is part of the problem; texts in lists (assertions, choices) come one by one."""
    found: list[tuple[str, str]] = []
    for column, value in row.items():
        if column.lower() in _NO_TEXT:
            continue
        if isinstance(value, str):
            found.append((column, value))
        elif isinstance(value, Sequence):
            found.extend((column, each) for each in value if isinstance(each, str))
        elif isinstance(value, Mapping):
            found.extend(fields_of(value))
    return found
