"""Reads the answers that the step `candidates` asked the model for: single answers, or pairs of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from amigo_local.data.candidate_pairs import NoPair, answer_of, pair_of
from amigo_local.data.candidates import Candidate, read_candidates
from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.domain.data_source import CandidatesSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Progress


def asked_of(source: CandidatesSource) -> CandidatesSource:
    """What the model is asked, without what is made of its answers: sources that differ in that alone share them."""
    plain = CandidatesSource(candidates=source.candidates)
    return msgspec.structs.replace(source, pairs=plain.pairs, hard_below=plain.hard_below, limit=plain.limit)


def key_of(source: CandidatesSource) -> str:
    """Under which `Reading.folders` has the folder of its answers."""
    told = msgspec.json.encode(asked_of(source), order="deterministic")
    return f"candidates {hashlib.sha256(told).hexdigest()[:16]}"


def read(source: CandidatesSource, reading: Reading) -> Iterator[Pair]:
    folder = _folder(source, reading)
    given = 0
    for candidate in read_candidates(folder):
        reading.rows += 1
        if reading.rows % 50 == 0:
            reading.emit(Progress("reading candidates", reading.rows, None, "problems"))
        for pair in _taken(candidate, source, reading):
            given += 1
            yield pair
    if not given:
        reasons = ", ".join(f"{count} times: {reason}" for reason, count in reading.skipped.most_common(4))
        what = f"pairs ({', '.join(source.pairs)})" if source.pairs else "answers that pass"
        raise InputError(
            f"the model's answers to {reading.rows} problems gave no {what}{f' ({reasons})' if reasons else ''}",
            "ask for more (problems, samples), or take problems that it can solve at times",
        )


def _taken(candidate: Candidate, source: CandidatesSource, reading: Reading) -> Iterator[Pair]:
    name = candidate.problem.name
    if not source.pairs:
        try:
            yield answer_of(candidate, source.hard_below)
        except NoPair as refusal:
            reading.skip(str(refusal), name)
        return
    for kind in source.pairs:
        try:
            yield pair_of(kind, candidate, source.hard_below)
        except NoPair as refusal:
            reading.skip(f"{kind}: {refusal}", name)


def _folder(source: CandidatesSource, reading: Reading) -> Path:
    folder = reading.folders.get(key_of(source))
    if folder is None:
        raise InputError(
            "the model hasn't been asked for candidates yet", "amigo-local prepare RECIPE asks it before it reads them"
        )
    return folder


def look(source: CandidatesSource, reading: Reading) -> SourceFacts:
    folder = reading.folders.get(key_of(source))
    used = f"{source.problems} problems, {source.samples + 1} answers each → {', '.join(source.pairs) or 'answers'}"
    if folder is None:
        return SourceFacts(reachable=False, used=f"the model is asked in the run: {used}")
    try:
        rows = sum(1 for _ in read_candidates(folder))
    except InputError as error:
        return SourceFacts(reachable=False, problem=error.message, fix=error.hint, used=used)
    return SourceFacts(reachable=True, rows=rows, used=used)
