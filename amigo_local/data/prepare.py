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
from amigo_local.data.preferences import Preference, PreferenceRow, render_preference
from amigo_local.data.rendering import load_tokenizer, render
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

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.completion,)

    @property
    def parts(self) -> dict[str, list[int]]:
        """Token ids of the prompt, then those of each answer."""
        return {"masked": self.input_ids[: self.completion_start], "trained": self.input_ids[self.completion_start :]}


AnyRow = Row | PreferenceRow
"""All rows of one data set are of one kind."""


def prepare(
    settings: DataSettings, checkpoint_dir: Path, out_dir: Path, emit: Emit, evaluation_texts: Sequence[str] = ()
) -> dict[str, Figure]:
    """Writes train.jsonl, held_out.jsonl and stats.json into `out_dir`; returns the figures worth keeping.

    No module has pairs in both files. The same settings, Python and tokenizer give the same bytes.
    Raises InputError when the settings name no source or nothing is left to train on.
    """
    if not settings.sources:
        raise InputError("the recipe names no data source", "add one: data.sources: [{stdlib: all}]")
    if len({source.preferences for source in settings.sources}) > 1:
        raise InputError(
            "data.sources mixes pairs of answers (chosen, rejected) with single ones (completion)",
            "give those of one kind: preferences for train.method: dpo, completions for sft",
        )
    tokenizer = load_tokenizer(checkpoint_dir)
    rows: list[AnyRow] = []
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


def read_rows(path: Path) -> list[AnyRow]:
    """The rows of a file that prepare wrote; of preferences, `completion` and `input_ids` are the chosen side."""
    with path.open("rb") as file:
        lines = file.readlines()
    of_preferences = bool(lines) and "rejected_ids" in msgspec.json.decode(lines[0], type=dict[str, msgspec.Raw])
    decoder: msgspec.json.Decoder[AnyRow] = msgspec.json.Decoder(PreferenceRow if of_preferences else Row)
    return [decoder.decode(line) for line in lines]


def _mine(source: DataSource, emit: Emit) -> Mined:
    if source.jsonl is not None:
        answer = source.chosen or source.completion
        return read_jsonl(Path(source.jsonl).expanduser(), source.prompt, answer, emit, rejected_column=source.rejected)
    assert source.stdlib is not None  # DataSource names exactly one
    return mine_stdlib(source.stdlib, emit)


def _render_rows(
    pairs: Sequence[Pair], limit: int | None, settings: DataSettings, tokenizer: Any, emit: Emit
) -> tuple[list[AnyRow], dict[str, int]]:
    """At most `limit` rows evenly spread over modules, in the order of `pairs`; reasons for the others."""
    chosen: dict[int, AnyRow] = {}
    reasons: Counter[str] = Counter()
    wanted = len(pairs) if limit is None else min(limit, len(pairs))
    for index in spread_over_groups(pairs, settings.seed):
        if len(chosen) == wanted:
            break
        if (len(chosen) + reasons.total()) % 100 == 0:
            emit(Progress("rendering with the chat template", len(chosen), wanted, "samples"))
        row = _row(pairs[index], tokenizer)
        if max(_lengths(row)) > settings.max_length_tokens:
            reasons[f"longer than {settings.max_length_tokens} tokens"] += 1
        elif isinstance(row, PreferenceRow) and row.chosen_ids == row.rejected_ids:
            reasons["chosen and rejected are the same"] += 1
        else:
            chosen[index] = row
    emit(Progress("rendering with the chat template", len(chosen), len(chosen), "samples"))
    reasons["over the source's limit"] = len(pairs) - len(chosen) - reasons.total()
    return [chosen[index] for index in sorted(chosen)], {reason: count for reason, count in reasons.items() if count}


def _row(pair: Pair, tokenizer: Any) -> AnyRow:
    if isinstance(pair, Preference):
        return render_preference(tokenizer, pair)
    return Row(**msgspec.structs.asdict(pair), **msgspec.structs.asdict(render(tokenizer, pair)))


def _lengths(row: AnyRow) -> list[int]:
    """In tokens, of each chat that is trained on: one, or of preferences two."""
    prompt, *answers = map(len, row.parts.values())
    return [prompt + answer for answer in answers]


def _group(row: AnyRow) -> str:
    return Pair(prompt=row.prompt, completion="", source="", module=row.module).group


def _without_repeats(rows: Sequence[AnyRow]) -> tuple[list[AnyRow], int]:
    """Two sources may hold the same pair."""
    unique = {(row.prompt, row.answers): row for row in reversed(rows)}
    kept = [row for row in rows if unique[row.prompt, row.answers] is row]
    return kept, len(rows) - len(kept)


def _figures(train: Sequence[AnyRow], held_out: Sequence[AnyRow]) -> dict[str, Figure]:
    lengths = [length for row in train for length in _lengths(row)]
    return {
        "train_samples": len(train),
        "held_out_samples": len(held_out),
        "train_modules": len({row.module for row in train if row.module}),
        "held_out_modules": len({row.module for row in held_out if row.module}),
        "train_tokens": sum(lengths),
        "trained_tokens": sum(len(ids) for row in train for ids in list(row.parts.values())[1:]),
        "median_length_tokens": int(statistics.median_low(lengths)),
        "longest_tokens": max(lengths),
    }


def _report(
    train: Sequence[AnyRow],
    held_out: Sequence[AnyRow],
    counts: Sequence[tuple[str, str, int]],
    tokenizer: Any,
    settings: DataSettings,
    emit: Emit,
) -> None:
    emit(Table("Samples", (Column("source"), Column("what"), Column("samples", "count")), tuple(counts)))
    lengths = [length for row in [*train, *held_out] for length in _lengths(row)]
    emit(_histogram(lengths, settings.max_length_tokens))
    for row in _evenly(train, PREVIEWED_SAMPLES):
        preview = tuple((part, len(ids), _shortened(tokenizer.decode(ids))) for part, ids in row.parts.items())
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


def _evenly(rows: Sequence[AnyRow], count: int) -> list[AnyRow]:
    return [rows[index * len(rows) // count] for index in range(count)] if len(rows) >= count else list(rows)


def _write_lines(path: Path, rows: Iterable[AnyRow]) -> None:
    encoder = msgspec.json.Encoder()
    _write(path, b"".join(encoder.encode(row) + b"\n" for row in rows))


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
