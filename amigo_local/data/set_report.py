"""What `prepare` tells a person about a finished set: counts, lengths, and samples with their loss mask."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from amigo_local.data.funnel import Counts, SourceFunnel, counts_table, places_table
from amigo_local.data.row import row_decoder
from amigo_local.data.set_files import DividedRows
from amigo_local.domain.events import AnyEvent, Column, Note, Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREVIEWED_SAMPLES = 3


def report(
    divided: DividedRows,
    funnels: Sequence[SourceFunnel],
    counts: Counts,
    held_out_modules: int,
    longest: int,
    tokenizer: Any,
) -> Iterator[AnyEvent]:
    import numpy as np

    yield counts_table(counts)
    if table := places_table(funnels):
        yield table
    yield histogram(divided.lengths(np.concatenate([divided.train, divided.held_out])), longest)
    decode = row_decoder(bool(divided.entries["rejected_tokens"].any())).decode
    for line in divided.lines(_evenly(divided.train, PREVIEWED_SAMPLES)):
        row = decode(line)
        preview = tuple((part, len(ids), _shortened(tokenizer.decode(ids))) for part, ids in row.parts.items())
        yield Table(f"Loss mask of {row.name}", (Column("part"), Column("tokens", "count"), Column("text")), preview)
    for funnel in funnels:
        if funnel.read and not funnel.taken:
            yield Note(f"nothing of {funnel.label} is in the set", "warning", "see in the counts what left it out")
    kept_away = f" from {held_out_modules} modules that training never sees" if held_out_modules else ""
    yield Note(f"{len(divided.train)} samples to train on, {len(divided.held_out)} held out{kept_away}", "good")


def histogram(lengths: NDArray[np.int64], longest: int) -> Table:
    """Doubling bins from 64 tokens up."""
    edges = [0, 64]
    while edges[-1] < longest:
        edges.append(min(edges[-1] * 2, longest))
    rows = tuple(
        (f"{low + 1}–{high}", int(((lengths > low) & (lengths <= high)).sum()))
        for low, high in itertools.pairwise(edges)
    )
    return Table("Length in tokens", (Column("tokens"), Column("samples", "count")), rows)


def difficulty_table(counts: Sequence[tuple[str, str, int]]) -> Table:
    columns = (Column("source"), Column("problems"), Column("samples", "count"))
    return Table("Difficulty", columns, tuple(counts))


def _shortened(text: str, characters: int = 240) -> str:
    half = characters // 2
    return text if len(text) <= characters else f"{text[:half]} … {text[-half:]}"


def _evenly(numbers: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    return numbers[[index * len(numbers) // count for index in range(count)]] if len(numbers) >= count else numbers
