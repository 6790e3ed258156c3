"""Samples of a recipe as the model will see them, before the whole set is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path

from amigo_local.data.funnel import labels_of
from amigo_local.data.pair import Pair
from amigo_local.data.pair_filter import FilterJob, PairFilter
from amigo_local.data.prepare import check_sources
from amigo_local.data.reading import Reading
from amigo_local.data.rendering import BoundaryMoved, Renderer, load_tokenizer
from amigo_local.data.selection import row_of
from amigo_local.data.source_files import file_of
from amigo_local.data.split import spread_over_groups
from amigo_local.domain.data_source import CandidatesSource, DataSource, ReplaySource
from amigo_local.domain.events import Note, SamplePart, SampleShown
from amigo_local.domain.recipe import DataSettings

PAIRS_LOOKED_AT = 200
"""Of each source: enough to spread over modules, and read in a moment."""
_READ_AT_ONCE = 32
_MOST_READ = 4000
"""Pairs of a source, if the filters refuse nearly all."""


def preview(
    settings: DataSettings, checkpoint_dir: Path, count: int, reading_for: Callable[[], Reading]
) -> Iterator[SampleShown]:
    """The first `count` samples, evenly over sources and their modules. One that is longer than the limit is shown
    like the others, and says so. Raises InputError as `prepare` does."""
    check_sources(settings)
    renderer = Renderer(load_tokenizer(checkpoint_dir))
    pair_filter = PairFilter(FilterJob(settings=settings))
    of_sources = [
        _samples(source, settings, count, reading_for(), pair_filter, renderer)
        for source in sorted(settings.sources, key=lambda source: isinstance(source, ReplaySource))
    ]
    turns = (sample for turn in zip_longest(*of_sources) for sample in turn if sample is not None)
    return islice(turns, count)


def _samples(
    source: DataSource,
    settings: DataSettings,
    count: int,
    reading: Reading,
    pair_filter: PairFilter,
    renderer: Renderer,
) -> Iterator[SampleShown]:
    (label,) = labels_of([source])
    if isinstance(source, CandidatesSource | ReplaySource) and not reading.folders:
        reading.emit(Note(f"{label}: made in the run, so there is nothing to show yet"))
        return
    pairs = _good_pairs(source, reading, pair_filter)
    if not pairs:
        reading.emit(Note(f"{label}: none of the samples looked at passes the filters", "warning"))
    for index in islice(spread_over_groups(pairs, settings.seed), count):
        yield _shown(pairs[index], renderer, label, settings.max_length_tokens)


def _good_pairs(source: DataSource, reading: Reading, pair_filter: PairFilter) -> Sequence[Pair]:
    good: list[Pair] = []
    pairs = islice(file_of(source).read(source, reading), _MOST_READ)
    while len(good) < PAIRS_LOOKED_AT and (batch := list(islice(pairs, _READ_AT_ONCE))):
        good += [pair for pair, _ in pair_filter.judge(batch)[0]]
    return good[:PAIRS_LOOKED_AT]


def _shown(pair: Pair, renderer: Renderer, label: str, limit_tokens: int) -> SampleShown:
    (sides,) = renderer.render([(pair.prompt, pair.answers)])
    if isinstance(sides, BoundaryMoved):
        raise sides
    (_, prompt_ids), *answers = row_of(pair, sides).parts.items()
    decode = renderer.tokenizer.decode
    parts = [SamplePart(decode(prompt_ids), len(prompt_ids), trained=False)]
    for name, ids in answers:
        parts.append(SamplePart(decode(ids), len(ids), trained=True, label=name if len(answers) > 1 else ""))
    longest = max(len(side.input_ids) for side in sides)
    return SampleShown(label, pair.name, tuple(parts), longest, limit_tokens)
