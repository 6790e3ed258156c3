"""The second half of `prepare`: which of the gathered samples are taken, each rendered, within limits and shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from amigo_local.data.filter_pool import Pace
from amigo_local.data.funnel import NEAR, NO_BOUNDARY, OVER_LIMIT, SAME_ANSWERS, SourceFunnel, place_of
from amigo_local.data.gathering import SIGNATURES_FILE, Building, decode_kept
from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference, PreferenceRow
from amigo_local.data.reading import NAMED_SKIPS
from amigo_local.data.rendering import BoundaryMoved, Rendered, Renderer
from amigo_local.data.row import AnyRow, Row
from amigo_local.data.split import spread_order
from amigo_local.data.spool import Fields, Spool, write_whole
from amigo_local.domain.data_source import DataSource, ReplaySource
from amigo_local.domain.events import Emit, Progress
from amigo_local.domain.recipe import DataSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROW_FIELDS: Fields = (
    ("length", "u4"),
    ("number", "u4"),
    ("prompt_tokens", "u4"),
    ("answer_tokens", "u4"),
    ("rejected_tokens", "u4"),
    ("group", "u8"),
    ("in_module", "u1"),
    ("replayed", "u1"),
)
"""Of a rendered row; `number` is its place among the gathered, rejected_tokens 0 where there is one answer."""
_NEAR_FILE = "near"


class Refusal(NamedTuple):
    """Why a sample can't be trained on."""

    reason: str
    moved: BoundaryMoved | None = None


class Selection:
    """Chooses and renders, source after source; what is rendered lies in a spool of its own."""

    def __init__(
        self, building: Building, settings: DataSettings, gathered: Spool, renderer: Renderer, pace: Pace
    ) -> None:
        self._building, self._settings, self._renderer, self._pace = building, settings, renderer, pace
        self._entries = gathered.entries()
        self._reader = gathered.reader(self._entries)
        self._near = self._near_duplicates()
        self._encode = msgspec.json.Encoder().encode
        self.spool = Spool(building.folder / "rendered", ROW_FIELDS)
        self.spool.cut(building.position.rendered)
        self.moved: BoundaryMoved | None = None
        """Of the first sample whose loss mask couldn't be placed."""

    def _near_duplicates(self) -> NDArray[np.bool_]:
        """(gathered,) True for samples that are left out; found once, then kept in a file."""
        import numpy as np

        building, threshold = self._building, self._settings.near_duplicates
        if threshold is None:
            return np.zeros(len(self._entries), np.bool_)
        path = building.folder / _NEAR_FILE
        if not building.position.compared:
            from amigo_local.data.near_duplicates import near_duplicates

            near = near_duplicates(building.folder / SIGNATURES_FILE, threshold)
            write_whole(path, [near.astype(np.bool_).tobytes()])
            for index, funnel in enumerate(building.position.funnels):
                numbers = np.flatnonzero(near & (self._entries["source"] == index))
                if len(numbers):
                    first = self._reader.read(numbers[:NAMED_SKIPS])
                    places = [place_of(decode_kept(record, self._settings).pair) for record in first]
                    funnel.drop(NEAR, len(numbers), places)
            building.position.compared = True
            building.save()
        return np.fromfile(path, np.bool_)

    def take_all(self, emit: Emit) -> None:
        order = order_of_choice(self._settings.sources)
        position = self._building.position
        while position.chosen < len(order):
            self._take(order[position.chosen], emit)
            position.chosen, position.tried = position.chosen + 1, 0
            self.save()

    def _take(self, index: int, emit: Emit) -> None:
        """The rows of a source, evenly spread over modules when there are more than it may give; a sample that can't
        be trained on makes room for the next."""
        position = self._building.position
        source, funnel = self._settings.sources[index], position.funnels[index]
        numbers = self._numbers(index)
        wanted = self._wanted(source, len(numbers))
        if wanted < len(numbers):
            chosen = self._entries[numbers]
            numbers = numbers[spread_order(chosen["group"], chosen["place"])]
        batches = 0
        while position.tried < len(numbers) and funnel.taken < wanted:
            self._render(self._next(numbers[position.tried :], wanted - funnel.taken), source, funnel, wanted)
            emit(Progress("rendering with the chat template", funnel.taken, wanted, "samples"))
            batches += 1
            if batches % self._pace.save_every_batches == 0:
                self.save()
        if position.tried < len(numbers):
            funnel.drop(OVER_LIMIT, len(numbers) - position.tried)

    def _next(self, numbers: NDArray[np.intp], lacking: int) -> NDArray[np.intp]:
        """The rows to render together: few when few are lacking or when they are long."""
        import numpy as np

        numbers = numbers[: min(self._pace.render_rows, max(16, lacking))]
        ends = np.cumsum(self._entries["length"][numbers], dtype=np.int64)
        return numbers[: max(1, int(np.searchsorted(ends, self._pace.batch_characters)))]

    def _numbers(self, index: int) -> NDArray[np.intp]:
        import numpy as np

        return np.flatnonzero((self._entries["source"] == index) & ~self._near)

    def _wanted(self, source: DataSource, available: int) -> int:
        wanted = available if source.limit is None else min(source.limit, available)
        if isinstance(source, ReplaySource):
            wanted = min(wanted, self._replayed(source, available))
        return wanted

    def _replayed(self, source: ReplaySource, available: int) -> int:
        """So many that they are the source's share of the whole set, in which other replays have theirs as well. A set
        of nothing but replays takes all."""
        sources = self._settings.sources
        pairs = list(zip(sources, self._building.position.funnels, strict=True))
        others = sum(funnel.taken for other, funnel in pairs if not isinstance(other, ReplaySource))
        shares = sum(other.share for other in sources if isinstance(other, ReplaySource))
        if others == 0:
            return available
        return round(source.share / max(1 - shares, 0.01) * others)

    def _render(self, numbers: NDArray[np.intp], source: DataSource, funnel: SourceFunnel, wanted: int) -> None:
        kept = [decode_kept(record, self._settings) for record in self._reader.read(numbers)]
        entries, lines = self.spool.new_entries(len(kept)), []
        for number, item, row in zip(numbers, kept, self._rows([item.pair for item in kept]), strict=True):
            self._building.position.tried += 1
            if isinstance(row, Refusal):
                self.moved = self.moved or row.moved
                funnel.drop(row.reason, 1, [place_of(item.pair)])
                continue
            lines.append(self._encode(row) + b"\n")
            prompt, *answers = map(len, row.parts.values())
            rejected = answers[1] if len(answers) > 1 else 0
            replayed = isinstance(source, ReplaySource)
            entry = (len(lines[-1]), number, prompt, answers[0], rejected, 0, bool(row.module), replayed)
            entries[len(lines) - 1] = entry
            entries["group"][len(lines) - 1] = self._entries["group"][number]
            funnel.taken += 1
            if funnel.taken == wanted:
                break
        self.spool.append(b"".join(lines), entries[: len(lines)])

    def _rows(self, pairs: Sequence[Pair]) -> list[AnyRow | Refusal]:
        rendered = self._renderer.render([(pair.prompt, pair.answers) for pair in pairs])
        longest = self._settings.max_length_tokens
        return [checked_row(pair, sides, longest) for pair, sides in zip(pairs, rendered, strict=True)]

    def save(self) -> None:
        self.spool.sync()
        self._building.position.rendered = self.spool.rows
        self._building.save()


def order_of_choice(sources: Sequence[DataSource]) -> list[int]:
    """Replayed samples come last: how many depends on the others."""
    return sorted(range(len(sources)), key=lambda index: isinstance(sources[index], ReplaySource))


def checked_row(pair: Pair, sides: tuple[Rendered, ...] | BoundaryMoved, max_length_tokens: int) -> AnyRow | Refusal:
    if isinstance(sides, BoundaryMoved):
        return Refusal(NO_BOUNDARY, sides)
    if max(len(side.input_ids) for side in sides) > max_length_tokens:
        return Refusal(f"longer than {max_length_tokens} tokens")
    row = row_of(pair, sides)
    if isinstance(row, PreferenceRow) and row.chosen_ids == row.rejected_ids:
        return Refusal(SAME_ANSWERS)
    return row


def row_of(pair: Pair, sides: tuple[Rendered, ...]) -> AnyRow:
    start, ids = sides[0].completion_start, sides[0].input_ids
    origin = {name: getattr(pair, name) for name in Pair.__struct_fields__ if name != "completion"}
    if isinstance(pair, Preference):
        return PreferenceRow(
            **origin,
            chosen=pair.completion,
            rejected=pair.rejected,
            prompt_ids=ids[:start],
            chosen_ids=ids[start:],
            rejected_ids=sides[1].input_ids[start:],
        )
    return Row(**origin, completion=pair.completion, input_ids=ids, completion_start=start)
