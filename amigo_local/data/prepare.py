"""Builds a training set: sources, filters, duplicates, limits, rendering, split; in bounded memory, and resumable.

What is gathered and rendered lies in spools in a folder beside the finished files, with a record of how far all that is
safe on the disk. Killed anywhere, the same call goes on from there, and gives the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from amigo_local.data.filter_pool import STEADY, FilterPool, Pace
from amigo_local.data.funnel import Counts, SourceFunnel, counts_of, labels_of, nothing_left
from amigo_local.data.gathering import Building, Gathering
from amigo_local.data.pair_filter import FilterJob
from amigo_local.data.reading import Reading
from amigo_local.data.rendering import Renderer, load_tokenizer
from amigo_local.data.row import HELD_OUT_FILE as HELD_OUT_FILE
from amigo_local.data.row import STATS_FILE
from amigo_local.data.row import TRAIN_FILE as TRAIN_FILE
from amigo_local.data.row import AnyRow as AnyRow
from amigo_local.data.row import Row as Row
from amigo_local.data.row import read_rows as read_rows
from amigo_local.data.selection import Selection
from amigo_local.data.set_files import DividedRows, write_difficulty, write_rows
from amigo_local.data.set_report import difficulty_table, report
from amigo_local.data.spool import write_whole
from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit
from amigo_local.domain.recipe import DataSettings

BUILDING_FOLDER = "building"


def prepare(
    settings: DataSettings,
    checkpoint_dir: Path,
    out_dir: Path,
    reading_for: Callable[[], Reading],
    emit: Emit,
    evaluation_texts: Sequence[str] = (),
    pace: Pace = STEADY,
) -> dict[str, Figure]:
    """Writes train.jsonl, held_out.jsonl and stats.json into `out_dir`, and difficulty.jsonl where thought is weighed;
    returns the figures worth keeping.

    No module has samples in both files. The same settings, sources and tokenizer give the same bytes. `reading_for`
    makes a fresh Reading for each source. Raises InputError when the settings name no source, a source can't be read,
    or nothing is left to train on.
    """
    check_sources(settings)
    renderer = Renderer(load_tokenizer(checkpoint_dir))
    job = FilterJob(settings=settings, evaluation_texts=tuple(evaluation_texts))
    building = Building(out_dir / BUILDING_FOLDER, _digest(job, checkpoint_dir), labels_of(settings.sources))
    funnels = building.position.funnels
    with contextlib.ExitStack() as open_files:
        gathering = Gathering(building, settings)
        open_files.callback(gathering.spool.close)
        with FilterPool(job, pace) as pool:
            gathering.read_all(reading_for, pool, emit, pace)
        selection = Selection(building, settings, gathering.spool, renderer, pace)
        open_files.callback(selection.spool.close)
        selection.take_all(emit)
        if not selection.spool.rows:
            raise selection.moved or nothing_left(funnels, building.position.steps)
        divided = DividedRows(selection.spool, settings)
        modules = write_rows(divided, out_dir, emit)
        weighed = settings.reasoning == "hard"
        if weighed and (verdicts := write_difficulty(divided, gathering.spool, settings, out_dir)):
            emit(difficulty_table(verdicts))
        counts = counts_of(funnels, building.position.steps)
        figures = divided.figures()
        _write_stats(out_dir, figures, counts, funnels, modules)
        for event in report(divided, funnels, counts, len(modules), settings.max_length_tokens, renderer.tokenizer):
            emit(event)
    shutil.rmtree(building.folder)
    return figures


def check_sources(settings: DataSettings) -> None:
    """Raises InputError for what makes no set, whatever the sources give."""
    if not settings.sources:
        raise InputError("the recipe names no data source", "add one: data.sources: [{stdlib: all}]")
    if len({source.preferences for source in settings.sources}) > 1:
        raise InputError(
            "data.sources mixes pairs of answers (chosen, rejected) with single ones (completion)",
            "give those of one kind: preferences for train.method: dpo, completions for sft",
        )


def _write_stats(
    out_dir: Path, figures: dict[str, Figure], counts: Counts, funnels: Sequence[SourceFunnel], modules: list[str]
) -> None:
    stats = {
        "python": platform.python_version(),
        "figures": figures,
        "counts": counts,
        "first_left_out": {funnel.label: funnel.places for funnel in funnels if funnel.places},
        "held_out": modules,
    }
    write_whole(out_dir / STATS_FILE, [msgspec.json.format(msgspec.json.encode(stats), indent=1), b"\n"])


def _digest(job: FilterJob, checkpoint_dir: Path) -> str:
    """Of what a set that is begun must have in common with the one that is asked for."""
    given = [platform.python_version(), str(checkpoint_dir), job]
    return hashlib.sha256(msgspec.json.encode(given)).hexdigest()
