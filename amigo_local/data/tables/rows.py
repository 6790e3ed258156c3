"""Rows of a table one by one, in bounded memory; what can't be read comes as the reason why not."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Collection, Iterator
from importlib import import_module
from typing import Any, BinaryIO

import msgspec

from amigo_local.data.tables.table import Table
from amigo_local.domain.errors import InputError

Row = dict[str, object]
Numbered = tuple[int, Row | str]
"""Its number from 1 (the line, where there are lines), and the row, or why it can't be read."""

NOT_JSON, NOT_OBJECT, TOO_LONG, NOT_UTF8 = "not JSON", "not a JSON object", "a line over 64 MB", "not UTF-8"
LARGEST_JSON_BYTES = 512_000_000
"""A list of objects is read whole; over this it would crowd out everything else."""
_LONGEST_LINE = 64_000_000  # a file without line ends must not fill the memory
_HEAD_BYTES = 1 << 20
_BATCH_ROWS = 1024
_BOM = b"\xef\xbb\xbf"


def rows_of(table: Table, columns: Collection[str] | None = None) -> Iterator[Numbered]:
    """Every row in order. Of a Parquet file only `columns` are read, None: all.

    Raises InputError for a file that can't be opened, isn't what its ending says, or breaks off.
    """
    with table.open() as file:
        if table.kind == "parquet":
            yield from _parquet_rows(file, table, columns)
            return
        try:
            with _unpacked(file, table) as content:
                yield from _json_rows(content, table) if table.kind == "json" else _lines(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{table.shown}: isn't a whole gzip file ({error})", "fetch or pack it anew") from error
        except OSError as error:
            raise InputError(
                f"{table.shown}: can't be read ({error.strerror or error})", "check the disk and the file"
            ) from error


def first_rows(table: Table, count: int, patience: int = 1000) -> tuple[list[Row], Numbered | None]:
    """The first rows that can be read, with all columns, and the first that can't be. Gives up after `patience` of
    those. Of a JSON list only its head is read."""
    good: list[Row] = []
    bad: Numbered | None = None
    numbered = _head_rows(table) if table.kind == "json" else rows_of(table)
    for looked, (number, row) in enumerate(numbered, start=1):
        if isinstance(row, str):
            bad = bad or (number, row)
        else:
            good.append(row)
        if len(good) >= count or (not good and looked >= patience):
            break
    return good, bad


def _unpacked(file: BinaryIO, table: Table) -> Any:
    return gzip.open(file, "rb") if table.is_compressed else file


def _lines(file: BinaryIO) -> Iterator[Numbered]:
    decode = msgspec.json.Decoder(Row).decode
    readline, number = file.readline, 0
    while line := readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, TOO_LONG
            continue
        try:
            yield number, decode(line.removeprefix(_BOM) if number == 1 else line)
        except msgspec.ValidationError:
            yield number, NOT_OBJECT
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if line.strip():
                yield number, NOT_JSON


def _json_rows(file: BinaryIO, table: Table) -> Iterator[Numbered]:
    """A list of objects; also JSON lines, which many files named .json hold."""
    head = file.read(_HEAD_BYTES)
    if not head.removeprefix(_BOM).lstrip().startswith(b"["):
        file.seek(0)
        yield from _lines(file)
        return
    content = head + file.read(LARGEST_JSON_BYTES + 1 - len(head))
    if len(content) > LARGEST_JSON_BYTES:
        raise InputError(
            f"{table.shown}: a JSON list over {LARGEST_JSON_BYTES // 1_000_000} MB, which would have to be held whole",
            "write it as JSON lines: jq -c '.[]' FILE.json > FILE.jsonl, and name that as the source's jsonl",
        )
    content = content.removeprefix(_BOM)
    try:
        items = msgspec.json.decode(content, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{table.shown}:{_bad_line(content)}: no JSON list ({error})",
            "mend it there, or write one object a line (.jsonl): of those, a bad one alone is left out",
        ) from error
    decode = msgspec.json.Decoder(Row).decode
    at, line = 0, 1
    for item in items:
        raw = bytes(item)
        begin = content.index(raw, at)
        line += content.count(b"\n", at, begin)
        try:
            yield line, decode(raw)
        except msgspec.ValidationError:
            yield line, NOT_OBJECT
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            yield line, NOT_JSON
        at = begin + len(raw)
        line += raw.count(b"\n")


def _bad_line(content: bytes) -> int:
    """The standard library's decoder says where; msgspec's only by byte, and not always."""
    try:
        json.loads(content)
    except json.JSONDecodeError as error:
        return error.lineno
    except (UnicodeDecodeError, RecursionError):
        pass
    return 1


def _head_rows(table: Table) -> Iterator[Numbered]:
    """Of a list as many as its first megabyte holds."""
    with table.open() as file, _unpacked(file, table) as content:
        try:
            head = content.read(_HEAD_BYTES)
        except (EOFError, zlib.error, OSError) as error:
            raise InputError(f"{table.shown}: can't be read ({error})", "fetch or pack it anew") from error
    text = head.removeprefix(_BOM).decode("utf-8", "ignore").lstrip()
    if not text.startswith("["):
        yield from rows_of(table)
        return
    decoder, at, number, found = json.JSONDecoder(), 1, 0, False
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,")) if text[at : at + 1] in " \t\r\n," else 0
        try:
            item, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):  # its end, the head's end, or no JSON
            break
        number, found = number + 1, True
        yield number, item if isinstance(item, dict) else NOT_OBJECT
    if not found:
        yield from rows_of(table)  # one row over a megabyte, an empty list, or an error that is told there


def _parquet_rows(file: BinaryIO, table: Table, columns: Collection[str] | None) -> Iterator[Numbered]:
    parquet = open_parquet(file, table)
    wanted = None if columns is None else [name for name in parquet.schema_arrow.names if name in columns]
    number = 0
    batches = parquet.iter_batches(batch_size=_BATCH_ROWS, columns=wanted)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise InputError(f"{table.shown}: damaged after row {number} ({error})", "fetch it anew") from error
        if batch is None:
            return
        for row in _python_rows(batch):
            number += 1
            yield number, row


def _python_rows(batch: Any) -> Iterator[Row | str]:
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass  # before the first of them came: which row it is shows one by one
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError:
            yield NOT_UTF8


def open_parquet(file: BinaryIO, table: Table) -> Any:
    """pyarrow's ParquetFile over pages, so that a row group of any size is never held whole."""
    try:
        parquet = import_module("pyarrow.parquet")  # it ships no types
    except ImportError as error:
        raise InputError(f"{table.shown}: Parquet needs pyarrow", "pip install 'amigo-local[train]'") from error
    try:
        return parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{table.shown}: isn't a whole Parquet file ({error})", "check or fetch it anew") from error
