"""The files of a finished set: rows divided into training and held-out, difficulty, and the figures about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from amigo_local.data.gathering import decode_kept
from amigo_local.data.row import DIFFICULTY_FILE, HELD_OUT_FILE, TRAIN_FILE
from amigo_local.data.split import count_held_out
from amigo_local.data.spool import Spool, write_whole
from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Emit, Progress
from amigo_local.domain.recipe import DataSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_READ_AHEAD = 4096


class Judged(msgspec.Struct, frozen=True):
    """What is counted of a line about difficulty."""

    source: str
    hard: bool
    measured: bool


class _Module(msgspec.Struct, frozen=True):
    module: str


class DividedRows:
    """The rendered rows of every source, in the order in which their sources gave them, on two sides."""

    def __init__(self, rendered: Spool, settings: DataSettings) -> None:
        import numpy as np

        entries = rendered.entries()
        self._reader = rendered.reader(entries)
        order = np.argsort(entries["number"], kind="stable")
        self.entries: NDArray[Any] = entries
        held = self._held_out(settings.held_out_fraction)[order]
        self.train: NDArray[np.intp] = order[~held]
        """Numbers of rendered rows."""
        self.held_out: NDArray[np.intp] = order[held]

    def _held_out(self, fraction: float) -> NDArray[np.bool_]:
        """(rendered,) Groups with replayed rows were trained on before, and can't be held out any more."""
        import numpy as np

        groups = self.entries["group"]
        replayed = np.unique(groups[self.entries["replayed"] == 1])
        ranked = np.setdiff1d(groups, replayed)  # sorted, each once
        count = count_held_out(ranked, fraction)
        if len(replayed) and fraction > 0 and len(ranked) == 1:
            count = 1
        return np.isin(groups, ranked[:count])

    def lines(self, numbers: NDArray[np.intp]) -> Iterator[bytes]:
        for start in range(0, len(numbers), _READ_AHEAD):
            yield from self._reader.read(numbers[start : start + _READ_AHEAD])

    def lengths(self, numbers: NDArray[np.intp]) -> NDArray[np.int64]:
        """In tokens, of every chat that is trained on: of a preference there are two."""
        import numpy as np

        entries = self.entries[numbers]
        rejected = entries[entries["rejected_tokens"] > 0]
        chosen_lengths = entries["prompt_tokens"].astype(np.int64) + entries["answer_tokens"]
        return np.concatenate(
            [chosen_lengths, rejected["prompt_tokens"].astype(np.int64) + rejected["rejected_tokens"]]
        )

    def modules(self, numbers: NDArray[np.intp]) -> int:
        import numpy as np

        entries = self.entries[numbers]
        return len(np.unique(entries["group"][entries["in_module"] == 1]))

    def figures(self) -> dict[str, Figure]:
        import numpy as np

        train, lengths = self.entries[self.train], self.lengths(self.train)
        trained = int(train["answer_tokens"].sum(dtype=np.int64)) + int(train["rejected_tokens"].sum(dtype=np.int64))
        return {
            "train_samples": len(self.train),
            "held_out_samples": len(self.held_out),
            "train_modules": self.modules(self.train),
            "held_out_modules": self.modules(self.held_out),
            "train_tokens": int(lengths.sum()),
            "trained_tokens": trained,
            "median_length_tokens": int(np.sort(lengths)[(len(lengths) - 1) // 2]),
            "longest_tokens": int(lengths.max()),
        }


def write_rows(divided: DividedRows, out_dir: Path, emit: Emit) -> list[str]:
    """train.jsonl and held_out.jsonl; the names of the modules that are held out."""
    modules: set[str] = set()
    decode = msgspec.json.Decoder(_Module).decode

    def named() -> Iterator[bytes]:
        for line in divided.lines(divided.held_out):
            modules.add(decode(line).module)
            yield line

    trained = len(divided.train)
    total = trained + len(divided.held_out)
    write_whole(out_dir / TRAIN_FILE, _told(divided.lines(divided.train), 0, total, emit))
    write_whole(out_dir / HELD_OUT_FILE, _told(named(), trained, total, emit))
    return sorted(modules - {""})


def write_difficulty(
    divided: DividedRows, gathered: Spool, settings: DataSettings, out_dir: Path
) -> list[tuple[str, str, int]]:
    """difficulty.jsonl, of the samples that are in the set; (source, verdict, how many)."""
    import numpy as np

    counts: dict[tuple[str, str], int] = {}
    decode = msgspec.json.Decoder(Judged).decode
    reader = gathered.reader(gathered.entries())
    numbers = np.sort(divided.entries["number"]).astype(np.intp)

    def judgements() -> Iterator[bytes]:
        for start in range(0, len(numbers), _READ_AHEAD):
            for record in reader.read(numbers[start : start + _READ_AHEAD]):
                if line := decode_kept(record, settings).judgement:
                    judged = decode(line)
                    how = "measured" if judged.measured else "by its signs"
                    key = (judged.source, f"{'hard' if judged.hard else 'easy'}, {how}")
                    counts[key] = counts.get(key, 0) + 1
                    yield line.encode() + b"\n"

    write_whole(out_dir / DIFFICULTY_FILE, judgements())
    return [(source, verdict, count) for (source, verdict), count in sorted(counts.items())]


def _told(lines: Iterator[bytes], before: int, total: int, emit: Emit) -> Iterator[bytes]:
    for number, line in enumerate(lines, start=before + 1):
        yield line
        if number % _READ_AHEAD == 0:
            emit(Progress("writing the set", number, total, "samples"))
