"""PairFilter: all that can be said of a pair without knowing the others, for a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from amigo_local.data.funnel import place_of
from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference
from amigo_local.data.reading import NAMED_SKIPS
from amigo_local.data.split import place_in_group, position
from amigo_local.domain.recipe import DataSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A record of the spool."""

    pair: Pair
    judgement: str = ""
    """JSON line about a problem's difficulty; empty where nothing was judged."""


class KeptPreference(msgspec.Struct, frozen=True, array_like=True):
    pair: Preference
    judgement: str = ""


class FilterJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has to know."""

    settings: DataSettings
    evaluation_texts: tuple[str, ...] = ()
    """What must not be trained on, besides the well-known sets and the settings' files."""

    @property
    def kept_type(self) -> type[Kept | KeptPreference]:
        return KeptPreference if of_preferences(self.settings) else Kept


def of_preferences(settings: DataSettings) -> bool:
    """Whether a set is one of preferences. All of its sources are, or none."""
    return any(source.preferences for source in settings.sources)


class Filtered(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a batch."""

    pairs: int
    """That went in."""
    records: bytes
    """Kept, msgpack of KeptPreference or Kept one after the other."""
    lengths: bytes
    """(kept,) uint32 bytes of each record; the following are uint64, as numpy writes them."""
    keys: bytes
    """Equal for pairs that differ in nothing but white space."""
    groups: bytes
    """Positions of the groups, for the split."""
    places: bytes
    """Places in the groups, for a limit."""
    signatures: Any
    """(kept, permutations) uint32, for near-duplicates; None when they may stay."""
    steps: tuple[str, ...]
    """Every reason that a filter may give, in the order in which they are looked for."""
    refused: dict[str, int]
    refused_places: dict[str, list[str]]


class PairFilter:
    """Everything that can be said of a pair without knowing the others."""

    def __init__(self, job: FilterJob) -> None:
        from amigo_local.data.decontamination import load_decontamination
        from amigo_local.data.filters import Filters

        self._settings = job.settings
        files = [Path(name) for name in job.settings.evaluation_sets]
        self._filters = Filters(job.settings, load_decontamination(extra_files=files, texts=job.evaluation_texts))
        self._kept_type = job.kept_type
        self._encode = msgspec.msgpack.Encoder().encode

    def judge(self, pairs: Sequence[Pair]) -> tuple[list[tuple[Pair, str]], dict[str, list[Pair]]]:
        """Those that are kept, as they will be trained on, with what was found of their difficulty; the others by
        reason. Chains of thought are stripped first: what isn't trained on needn't parse."""
        judged = [self._reasoned(pair) for pair in pairs]
        kept: list[tuple[Pair, str]] = []
        refused: dict[str, list[Pair]] = {}
        for item, reason in zip(judged, self._filters.refusals([pair for pair, _ in judged]), strict=True):
            if reason is None:
                kept.append(item)
            else:
                refused.setdefault(reason, []).append(item[0])
        return kept, refused

    def _reasoned(self, pair: Pair) -> tuple[Pair, str]:
        settings = self._settings
        if settings.reasoning == "keep" and not settings.only_code:
            return pair, ""
        if len(pair.prompt) + sum(map(len, pair.answers)) > settings.max_characters:
            return pair, ""  # refused in a moment, and too long to look for a chain in
        from amigo_local.data.difficulty import apply_reasoning

        pair, judgement = apply_reasoning(pair, settings)
        if settings.only_code and not isinstance(pair, Preference):
            from amigo_local.data.answer_blocks import strip_preamble

            pair = msgspec.structs.replace(pair, completion=strip_preamble(pair.completion))
        return pair, msgspec.json.encode(judgement).decode() if judgement else ""

    def filtered(self, pairs: Sequence[Pair]) -> Filtered:
        import numpy as np

        from amigo_local.data.seen_keys import key_of

        kept, refused = self.judge(pairs)
        records = [self._encode(self._kept_type(pair, judgement)) for pair, judgement in kept]  # type: ignore[arg-type]
        seed = self._settings.seed

        def column(values: Iterable[int]) -> bytes:
            return np.array(list(values), np.uint64).tobytes()

        return Filtered(
            pairs=len(pairs),
            records=b"".join(records),
            lengths=np.array(list(map(len, records)), np.uint32).tobytes(),
            keys=column(key_of(pair) for pair, _ in kept),
            groups=column(position(pair.group, seed) for pair, _ in kept),
            places=column(place_in_group(pair, seed) for pair, _ in kept),
            signatures=self._signatures([pair for pair, _ in kept]),
            steps=tuple(self._filters.steps),
            refused={reason: len(those) for reason, those in refused.items()},
            refused_places={reason: list(map(place_of, those[:NAMED_SKIPS])) for reason, those in refused.items()},
        )

    def _signatures(self, pairs: Sequence[Pair]) -> NDArray[Any] | None:
        if self._settings.near_duplicates is None:
            return None
        from amigo_local.data.near_duplicates import signatures

        found: NDArray[Any] = signatures(["\n".join((pair.prompt, *pair.answers)) for pair in pairs])
        return found
