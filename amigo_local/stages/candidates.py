"""candidates: asks the model itself for several answers to each problem, and runs them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.data_source import CandidatesSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, Table
from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import DataSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Chain, Params, RecipeRequest, Stage, StageContext, StageResult, Step
from amigo_local.stages._models import resolve
from amigo_local.stages._shapes import gguf_bytes
from amigo_local.stages._talk import READ_BYTES_PER_SECOND, RUNTIME_BYTES, choose_backend, programs_run, talks_as

if TYPE_CHECKING:
    from amigo_local.data.candidates import Candidate
    from amigo_local.data.difficulty import Judgement
    from amigo_local.data.pair import Pair

_BYTES_PER_ANSWER = 8 << 10
_CONTEXT_TOKENS = 4096
_CHARACTERS_PER_TOKEN = 2  # few, so that what is thought to fit does


class CandidatesParams(Params, frozen=True, kw_only=True):
    ref: str
    """REF of the model that is asked."""
    source: CandidatesSource


def steps(request: RecipeRequest, context: StageContext) -> Chain:
    """Every candidates source of the recipes, as the loop asks for them."""
    from amigo_local.engine.recipe_chain import load_chain
    from amigo_local.stages._data_sources import pinned
    from amigo_local.stages._loop import source_ref

    recipes = [stage.recipe for stage in load_chain(request.recipe, request.overrides).stages]
    if not any(isinstance(source, CandidatesSource) for recipe in recipes for source in recipe.data.sources):
        raise InputError(
            f"{', '.join(recipe.name for recipe in recipes)}: no source asks the model for candidates",
            "add one to data.sources: {candidates: [{doctest: stdlib}]}",
        )
    for recipe in recipes:
        wanted = tuple(source for source in recipe.data.sources if isinstance(source, CandidatesSource))
        for source in pinned(DataSettings(sources=wanted), context).sources:
            assert isinstance(source, CandidatesSource)
            ref = str(source_ref(request, recipes[0]))
            yield Step("candidates", params_of(source, ref), recipe.name if len(recipes) > 1 else "")


def params_of(source: CandidatesSource, ref: str) -> CandidatesParams:
    """What is made of the answers is another matter: sources that differ in that alone share them."""
    return CandidatesParams(ref=ref, source=msgspec.structs.replace(source, pairs=(), limit=None))


def inputs(params: CandidatesParams, context: StageContext) -> dict[str, str]:
    from amigo_local.stages._data_sources import source_digests

    found = {
        "model": talks_as(resolve(params.ref, context)),
        "backend": choose_backend((params.ref,), context).place,
        "programs run": programs_run(context),
    }
    return found | source_digests(params.source.candidates, context)


def needs(params: CandidatesParams, context: StageContext) -> Needs:
    model = resolve(params.ref, context)
    return _needs(params, 0 if model.unreadable else model.files.stat().st_size, context)


def outlook(params: CandidatesParams, shape: ModelShape, context: StageContext) -> Needs:
    return _needs(params, gguf_bytes(shape), context)


def _needs(params: CandidatesParams, file_bytes: int, context: StageContext) -> Needs:
    """How fast a card would answer isn't known; answers end before their limit, half of it in the demo."""
    source = params.source
    answers = source.problems * (source.samples + 1)
    seconds = answers * source.max_answer_tokens * 0.5 * file_bytes / READ_BYTES_PER_SECOND
    return Needs(
        ram_bytes=file_bytes + RUNTIME_BYTES,
        disk_bytes=2 * answers * _BYTES_PER_ANSWER,
        seconds=None if context.machine.gpu_name or not file_bytes else seconds,
    )


def run(params: CandidatesParams, context: StageContext) -> StageResult:
    """Answers and verdicts are kept in the home's cache, by what the model's answers depend on: a cut run, and another
    recipe that asks the same, find them there."""
    from amigo_local.data.candidates import CANDIDATES_FILE
    from amigo_local.data.row import DIFFICULTY_FILE
    from amigo_local.evaluation.sandbox import open_sandbox
    from amigo_local.stages._candidate_answers import ask, judge

    source = params.source
    length = _context_length(params, context)
    problems = _problems(source, length, context)
    choice = choose_backend((params.ref,), context)
    backend = choice.open(context)
    context.note(f"asked through {backend.name}")
    cache = _cache(params, choice.place, context)
    answers = ask(problems, source, backend, choice.models[0], length, cache, context.emit)
    sandbox = open_sandbox(context.settings.unsafe)
    if not sandbox.can_run:
        context.note(f"no answer is judged: {sandbox.statement}", "problem", sandbox.fix)
    candidates, judgements = [], []
    with (
        (context.build_dir() / CANDIDATES_FILE).open("wb") as file,
        (context.build_dir() / DIFFICULTY_FILE).open("wb") as difficulty,
    ):
        for candidate in judge(problems, answers, source, sandbox, cache, context.emit):
            candidates.append(candidate)
            file.write(msgspec.json.encode(candidate) + b"\n")
            if judgement := _judgement(candidate, source.hard_below):
                judgements.append(judgement)
                difficulty.write(msgspec.json.encode(judgement) + b"\n")
    context.emit(_table(candidates, source.hard_below))
    return StageResult(_figures(candidates, judgements))


def _cache(params: CandidatesParams, place: str, context: StageContext) -> Path:
    told = f"{talks_as(resolve(params.ref, context))}\n{place}"
    return context.workspace.cache_dir / "candidates" / hashlib.sha256(told.encode()).hexdigest()[:16]


def _context_length(params: CandidatesParams, context: StageContext) -> int:
    """Of request and answer, as far as the model was trained for it."""
    wanted = max(_CONTEXT_TOKENS, 2 * params.source.max_answer_tokens)
    try:
        trained = resolve(params.ref, context).shape().context_length
    except InputError:  # a server's model whose file can't be read here
        trained = None
    return min(wanted, trained or wanted)


def _problems(source: CandidatesSource, context_length: int, context: StageContext) -> tuple[Pair, ...]:
    """Raises InputError when no source has a problem that fits."""
    from amigo_local.data.candidate_problems import choose_problems
    from amigo_local.data.source_files import file_of
    from amigo_local.stages._data_sources import reading_of

    room = (context_length - source.max_answer_tokens) * _CHARACTERS_PER_TOKEN
    readings = [reading_of(context, seed=source.seed) for _ in source.candidates]
    counts: list[list[int]] = [[0, 0] for _ in source.candidates]
    given = []
    for problem_source, reading, count in zip(source.candidates, readings, counts, strict=True):
        pairs = file_of(problem_source).read(problem_source, reading)
        given.append((_fitting(pairs, room, count), problem_source.limit))
    chosen = choose_problems(given, source.problems, source.seed)
    too_long = sum(count[1] for count in counts)
    context.note(f"{len(chosen)} problems of {sum(count[0] for count in counts)}, {too_long} more are too long")
    if not chosen:
        raise InputError(
            f"no problem leaves room for an answer of {source.max_answer_tokens} tokens in {context_length}",
            "give a smaller max_answer_tokens, or other problems",
        )
    return chosen


def _fitting(pairs: Iterable[Pair], room: int, count: list[int]) -> Iterator[Pair]:
    """Those whose request leaves room for an answer; `count` is [these, the others]."""
    for pair in pairs:
        fits = len(pair.prompt) <= room
        count[not fits] += 1
        if fits:
            yield pair


def _judgement(candidate: Candidate, hard_below: float) -> Judgement | None:
    """None where nothing was run: whoever reads the candidates judges by signs."""
    from amigo_local.data.difficulty import Judgement, prompt_key, signs_of

    rate, samples = candidate.direct_pass_rate()
    if rate is None:
        return None
    problem = candidate.problem
    return Judgement(
        source=problem.source,
        name=problem.name,
        prompt_key=prompt_key(problem.prompt),
        hard=rate < hard_below,
        measured=True,
        pass_rate=rate,
        samples=samples,
        signs=signs_of(problem.prompt, "", problem.completion),
    )


def _table(candidates: Sequence[Candidate], hard_below: float) -> Table:
    """By source: how many problems were run, how many are hard, and what the answers came to."""
    columns = (
        Column("problems of"),
        Column("asked", "count"),
        Column("run", "count"),
        Column("hard", "count"),
        Column("answers", "count"),
        Column("pass", "count"),
        Column("think first", "count"),
        Column("cut", "count"),
    )
    rows: list[tuple[Figure, ...]] = []
    for name in dict.fromkeys(candidate.problem.source for candidate in candidates):
        mine = [candidate for candidate in candidates if candidate.problem.source == name]
        answers = [answer for candidate in mine for answer in candidate.answers]
        rows.append(
            (
                name,
                len(mine),
                sum(candidate.was_run for candidate in mine),
                sum(bool(candidate.is_hard(hard_below)) for candidate in mine),
                len(answers),
                sum(bool(answer.passed) for answer in answers),
                sum(not answer.is_direct for answer in answers),
                sum(answer.was_cut for answer in answers),
            )
        )
    return Table("The model's own answers", columns, tuple(rows))


def _figures(candidates: Sequence[Candidate], judgements: Sequence[Judgement]) -> dict[str, Figure]:
    answers = [answer for candidate in candidates for answer in candidate.answers]
    return {
        "problems": len(candidates),
        "problems_run": sum(candidate.was_run for candidate in candidates),
        "hard": sum(judgement.hard for judgement in judgements),
        "answers": len(answers),
        "passed": sum(bool(answer.passed) for answer in answers),
    }


STAGE = Stage(
    "candidates",
    "Ask the model for several answers to each problem of a recipe; run them.",
    CandidatesParams,
    run,
    steps,
    RecipeRequest,
    produces="candidates",
    inputs=inputs,
    needs=needs,
    outlook=outlook,
)
