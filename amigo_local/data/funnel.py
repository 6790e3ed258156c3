"""Funnel: of each source, how many samples every step of `prepare` left out, and where the first of them are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from amigo_local.data.pair import Pair
from amigo_local.data.reading import NAMED_SKIPS, Reading
from amigo_local.domain.data_source import CandidatesSource, DataSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, Table

EXACT = "exact duplicate"
NEAR = "near duplicate"
SAME_ANSWERS = "chosen and rejected are the same"
NO_BOUNDARY = "the template leaves no place for the loss mask"
OVER_LIMIT = "over the source's limit"

# What a reason speaks of -> what can be done about it; the first that is in the reason counts.
_HINTS = (
    (" characters", "raise data.max_characters, or give shorter rows"),
    (" tokens", "raise data.max_length_tokens, or give shorter rows"),
    ("language", "widen data.languages"),
    ("licence", "widen data.licenses, or say the source's license"),
    ("parse", "look at the answers: is the right column named, and the code's language right?"),
    ("secret", "take keys and passwords out of the rows"),
    ("e-mail", "take addresses out of the rows"),
    ("evaluation", "take other rows: the model is measured with these"),
    (NEAR, "raise data.near_duplicates, or leave it out"),
    (EXACT, "give every row once"),
    (SAME_ANSWERS, "look at the columns that chosen and rejected name"),
)
_OTHER_HINT = "look at what the source gives: amigo-local data check RECIPE"


@dataclass
class SourceFunnel:
    """The counts of one source. Saved between batches, so that a cut run goes on counting."""

    label: str
    read: int = 0
    """Rows, functions or commits looked at."""
    unread: dict[str, int] = field(default_factory=dict)
    """Left out by the source itself: reason -> how many."""
    refused: dict[str, int] = field(default_factory=dict)
    """Left out by filters, and as exact duplicates."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Left out when samples were chosen: near duplicates, too long ones, those over a limit."""
    taken: int = 0
    places: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> the first few places."""

    def end_reading(self, reading: Reading, pairs: int) -> None:
        self.unread = {reason: count for reason, count in reading.skipped.items() if count}
        self.read = max(reading.rows, pairs + sum(self.unread.values()))
        self.places = {**{reason: list(places) for reason, places in reading.places.items()}, **self.places}

    def refuse(self, reason: str, count: int, places: Sequence[str] = ()) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + count
        self._remember(reason, places)

    def drop(self, reason: str, count: int = 1, places: Sequence[str] = ()) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        self._remember(reason, places)

    def _remember(self, reason: str, places: Sequence[str]) -> None:
        if places:
            known = self.places.setdefault(reason, [])
            known.extend(places[: NAMED_SKIPS - len(known)])

    def left_out(self, steps: Sequence[str]) -> list[tuple[str, int]]:
        """Reasons in the order of the steps that gave them; `steps` are those of the filters."""
        known = [*self.unread, *(step for step in [*steps, EXACT] if step in self.refused)]
        counts = {**self.unread, **self.refused, **self.dropped}
        order = dict.fromkeys([*known, *self.refused, NEAR, *self.dropped])
        return [(reason, counts[reason]) for reason in order if counts.get(reason)]


Counts = list[tuple[str, str, int]]


def counts_of(funnels: Sequence[SourceFunnel], steps: Sequence[str]) -> Counts:
    """(source, what, how many) at every step, from what was read to what was taken."""
    counts: Counts = []
    for funnel in funnels:
        counts.append((funnel.label, "read", funnel.read))
        counts += [(funnel.label, f"left out: {reason}", count) for reason, count in funnel.left_out(steps)]
        counts.append((funnel.label, "taken", funnel.taken))
    return counts


def counts_table(counts: Counts) -> Table:
    return Table("Samples", (Column("source"), Column("what"), Column("samples", "count")), tuple(counts))


_FILE = re.compile(r"/|(?::| line )\d+$")


def places_table(funnels: Sequence[SourceFunnel]) -> Table | None:
    """Files and lines of the first that were left out: what a person may want to mend. Names of functions, which
    stats.json has too, would fill a screen. None when there is nothing of that kind."""
    rows = [
        (funnel.label, reason, ", ".join(files))
        for funnel in funnels
        for reason, places in funnel.places.items()
        if (files := [place for place in places if _FILE.search(place)])
    ]
    return Table("First left out", (Column("source"), Column("reason"), Column("where")), tuple(rows)) if rows else None


def nothing_left(funnels: Sequence[SourceFunnel], steps: Sequence[str]) -> InputError:
    """Says of every source what ate it, filters first, and what can be done about the worst."""
    sieved: Counter[str] = Counter()  # by filters and limits: what a source doesn't take was never asked for
    unread: Counter[str] = Counter()
    sentences = []
    for funnel in funnels:
        reasons = Counter(dict(funnel.left_out(steps)))
        last = Counter({reason: count for reason, count in reasons.items() if reason not in funnel.unread})
        sieved, unread = sieved + last, unread + reasons - last
        told = [*last.most_common(4), *(reasons - last).most_common(4)][:4]
        shown = ", ".join(f"{count:,} by {reason!r}" for reason, count in told)
        more = f" and {len(reasons) - 4} other reasons" if len(reasons) > 4 else ""
        what = f"all {funnel.read:,} of {funnel.label} were left out" if funnel.read else f"{funnel.label} gave nothing"
        sentences.append(f"{what}: {shown}{more}" if shown else what)
    return InputError(f"nothing is left to train on; {'; '.join(sentences)}", hint_for(sieved or unread))


def hint_for(reasons: Counter[str]) -> str:
    worst = max(reasons, key=lambda reason: reasons[reason], default="")
    return next((hint for sign, hint in _HINTS if sign in worst), _OTHER_HINT)


def place_of(pair: Pair) -> str:
    """`rows.jsonl:17`, or the function's name."""
    if pair.name.startswith("line "):
        return f"{pair.source}:{pair.name.removeprefix('line ')}"
    return pair.name or pair.source


def labels_of(sources: Sequence[DataSource]) -> list[str]:
    """How each is called in tables; no two are called alike, and none by a path of this machine."""
    labels: list[str] = []
    for source in sources:
        label = wanted = _label(source)
        number = 1
        while label in labels:
            number += 1
            label = f"{wanted} ({number})"
        labels.append(label)
    return labels


def _label(source: DataSource) -> str:
    if isinstance(source, CandidatesSource):
        return f"candidates ({', '.join(source.pairs) or 'answers'})"
    given = getattr(source, source.kind)
    names = ", ".join(PurePath(name).name or name for name in ([given] if isinstance(given, str) else given))
    if source.kind == "hub":
        names = str(given)
    shown = names if len(names) <= 40 else f"{names[:39]}…"
    take = getattr(source, "take", None)
    return f"{source.kind} {shown}{f' ({take})' if take == 'context' else ''}"
