"""Builds a training set: sources, filters, rendering, split; writes the rows and says what was left out."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.data.filters import filter_pairs
from amigo_local.data.mined import Mined
from amigo_local.data.pair import Pair
from amigo_local.data.rendering import Rendered, load_tokenizer, render
from amigo_local.data.sources.jsonl import read_jsonl
from amigo_local.data.sources.stdlib import mine_stdlib
from amigo_local.data.split import held_out_groups, spread_over_groups
from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, Emit, Note, Progress, Table
from amigo_local.domain.recipe import DataSettings, DataSource

TRAIN_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"
STATS_FILE = "stats.json"
PREVIEWED_SAMPLES = 3


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of train.jsonl and held_out.jsonl."""

    prompt: str
    completion: str
    source: str
    module: str
    name: str
    license: str
    input_ids: list[int]
    """(sequence,) the whole chat, ending with the token that ends the answer."""
    completion_start: int
    """Labels are -100 before this index and equal to input_ids from it on."""


def prepare(
    settings: DataSettings, checkpoint_dir: Path, out_dir: Path, emit: Emit, evaluation_texts: Sequence[str] = ()
) -> dict[str, Figure]:
    """Writes train.jsonl, held_out.jsonl and stats.json into `out_dir`; returns the figures worth keeping.

    No module has pairs in both files. The same settings, Python and tokenizer give the same bytes.
    Raises InputError when the settings name no source or nothing is left to train on.
    """
    if not settings.sources:
        raise InputError("the recipe names no data source", "add one: data.sources: [{stdlib: all}]")
    tokenizer = load_tokenizer(checkpoint_dir)
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    counts: list[tuple[str, str, int]] = []
    for source in settings.sources:
        mined = _mine(source, emit)
        kept = filter_pairs(mined.pairs, evaluation_texts)
        taken, dropped = _render_rows(kept.pairs, source.limit, settings, tokenizer, emit)
        label = source.jsonl or "standard library"
        for reason, count in [*mined.left_out.items(), *kept.left_out.items(), *dropped.items()]:
            left_out[reason] += count
            counts.append((Path(label).name, f"left out: {reason}", count))
        counts.append((Path(label).name, "taken", len(taken)))
        rows.extend(taken)
    rows, repeated = _without_repeats(rows)
    if repeated:
        counts.append(("all sources", "left out: exact duplicate", repeated))
    held = held_out_groups((_group(row) for row in rows), settings.held_out_fraction, settings.seed)
    train = [row for row in rows if _group(row) not in held]
    held_out = [row for row in rows if _group(row) in held]
    if not train:
        raise InputError(
            f"nothing is left to train on (left out: {dict(left_out)})",
            "widen data.sources, or raise data.max_length_tokens",
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    figures = _figures(train, held_out)
    _write_lines(out_dir / TRAIN_FILE, train)
    _write_lines(out_dir / HELD_OUT_FILE, held_out)
    stats = {"python": platform.python_version(), "figures": figures, "counts": counts, "held_out": sorted(held)}
    _write(out_dir / STATS_FILE, msgspec.json.format(msgspec.json.encode(stats), indent=1) + b"\n")
    _report(train, held_out, counts, tokenizer, settings, emit)
    return figures


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that prepare wrote."""
    decoder = msgspec.json.Decoder(Row)
    with path.open("rb") as file:
        return [decoder.decode(line) for line in file]


def _mine(source: DataSource, emit: Emit) -> Mined:
    if source.jsonl is not None:
        return read_jsonl(Path(source.jsonl).expanduser(), source.prompt, source.completion, emit)
    assert source.stdlib is not None  # DataSource names exactly one
    return mine_stdlib(source.stdlib, emit)


def _render_rows(
    pairs: Sequence[Pair], limit: int | None, settings: DataSettings, tokenizer: Any, emit: Emit
) -> tuple[list[Row], dict[str, int]]:
    """At most `limit` rows evenly spread over modules, in the order of `pairs`; reasons for the others."""
    chosen: dict[int, Row] = {}
    too_long = 0
    wanted = len(pairs) if limit is None else min(limit, len(pairs))
    for index in spread_over_groups(pairs, settings.seed):
        if len(chosen) == wanted:
            break
        if (len(chosen) + too_long) % 100 == 0:
            emit(Progress("rendering with the chat template", len(chosen), wanted, "samples"))
        rendered = render(tokenizer, pairs[index])
        if len(rendered.input_ids) > settings.max_length_tokens:
            too_long += 1
        else:
            chosen[index] = _row(pairs[index], rendered)
    emit(Progress("rendering with the chat template", len(chosen), len(chosen), "samples"))
    reasons = {f"longer than {settings.max_length_tokens} tokens": too_long}
    reasons["over the source's limit"] = len(pairs) - len(chosen) - too_long
    return [chosen[index] for index in sorted(chosen)], {reason: count for reason, count in reasons.items() if count}


def _row(pair: Pair, rendered: Rendered) -> Row:
    return Row(**msgspec.structs.asdict(pair), **msgspec.structs.asdict(rendered))


def _group(row: Row) -> str:
    return Pair(prompt=row.prompt, completion="", source="", module=row.module).group


def _without_repeats(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Two sources may hold the same pair."""
    unique = {(row.prompt, row.completion): row for row in reversed(rows)}
    kept = [row for row in rows if unique[row.prompt, row.completion] is row]
    return kept, len(rows) - len(kept)


def _figures(train: Sequence[Row], held_out: Sequence[Row]) -> dict[str, Figure]:
    lengths = [len(row.input_ids) for row in train]
    return {
        "train_samples": len(train),
        "held_out_samples": len(held_out),
        "train_modules": len({row.module for row in train if row.module}),
        "held_out_modules": len({row.module for row in held_out if row.module}),
        "train_tokens": sum(lengths),
        "trained_tokens": sum(len(row.input_ids) - row.completion_start for row in train),
        "median_length_tokens": int(statistics.median_low(lengths)),
        "longest_tokens": max(lengths),
    }


def _report(
    train: Sequence[Row],
    held_out: Sequence[Row],
    counts: Sequence[tuple[str, str, int]],
    tokenizer: Any,
    settings: DataSettings,
    emit: Emit,
) -> None:
    emit(Table("Samples", (Column("source"), Column("what"), Column("samples", "count")), tuple(counts)))
    emit(_histogram([len(row.input_ids) for row in [*train, *held_out]], settings.max_length_tokens))
    for row in _evenly(train, PREVIEWED_SAMPLES):
        start = row.completion_start
        parts = (("masked", row.input_ids[:start]), ("trained", row.input_ids[start:]))
        preview = tuple((part, len(ids), _shortened(tokenizer.decode(ids))) for part, ids in parts)
        emit(Table(f"Loss mask of {row.name}", (Column("part"), Column("tokens", "count"), Column("text")), preview))
    held_modules = sorted({row.module for row in held_out if row.module})
    kept_away = f" from {len(held_modules)} modules that training never sees" if held_modules else ""
    emit(Note(f"{len(train)} samples to train on, {len(held_out)} held out{kept_away}", "good"))


def _histogram(lengths: Sequence[int], longest: int) -> Table:
    """Doubling bins from 64 tokens up."""
    edges = [0, 64]
    while edges[-1] < longest:
        edges.append(min(edges[-1] * 2, longest))
    rows = tuple(
        (f"{low + 1}–{high}", sum(low < length <= high for length in lengths))
        for low, high in itertools.pairwise(edges)
    )
    return Table("Length in tokens", (Column("tokens"), Column("samples", "count")), rows)


def _shortened(text: str, characters: int = 240) -> str:
    half = characters // 2
    return text if len(text) <= characters else f"{text[:half]} … {text[-half:]}"


def _evenly(rows: Sequence[Row], count: int) -> list[Row]:
    return [rows[index * len(rows) // count] for index in range(count)] if len(rows) >= count else list(rows)


def _write_lines(path: Path, rows: Iterable[Row]) -> None:
    encoder = msgspec.json.Encoder()
    _write(path, b"".join(encoder.encode(row) + b"\n" for row in rows))


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
