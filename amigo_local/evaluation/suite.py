"""Puts the same prompts to each model, one model after the other, and judges the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, GenerationFinished, Note, Progress, TokenGenerated
from amigo_local.domain.generation import Answer, ChatBackend, GenerationOptions, Message
from amigo_local.domain.reasoning_chain import has_chain
from amigo_local.domain.recipe import EvaluateSettings, Suite
from amigo_local.domain.verdict import Verdict
from amigo_local.evaluation.answers import AnswerJournal, AnswerLine, answer_key
from amigo_local.evaluation.directness import opening_of
from amigo_local.evaluation.extraction import extract_code
from amigo_local.evaluation.held_out import Request, plain_requests, requests_for
from amigo_local.evaluation.humaneval import Problem, chat_request, evenly_spread, load_problems, program_for
from amigo_local.evaluation.results import EvaluationResult, Judged, SuiteResult, labels_for
from amigo_local.evaluation.sandbox import Sandbox
from amigo_local.evaluation.skills import answer_code, is_unchanged, names_share

_RUN = ("humaneval", "debugging")
"""Suites that say nothing where no code can be run."""


class _Prompt(msgspec.Struct, frozen=True):
    suite: str
    id: str
    text: str
    problem: Problem | None = None
    check: AnswerCheck | None = None

    def program(self, answer: str) -> str | None:
        """What to run to judge the answer; None where nothing can be."""
        if self.problem:
            return program_for(self.problem, extract_code(answer, self.problem.entry_point, self.problem.prompt))
        # What a context request supplies isn't there when its answer runs.
        if self.check and self.check.program and self.suite != "context":
            return self.check.program_for(answer_code(answer, self.check))
        return None


def run_suites(
    settings: EvaluateSettings,
    backend: ChatBackend,
    models: Sequence[str],
    held_out: Sequence[Request],
    sandbox: Sandbox,
    emit: Emit,
    work_dir: Path,
    *,
    skills: Sequence[Request] = (),
    context_length: int = 4096,
    system: str | None = None,
    problems: Sequence[Problem] | None = None,
    labels: Sequence[str] | None = None,
) -> EvaluationResult:
    """Answers and judges everything; what an earlier, interrupted call answered in `work_dir` is kept.

    A model answers all prompts of all suites before the next one is loaded, and is unloaded after
    (also when something fails), so that two are never in memory together. `held_out` are the
    requests of the directness suite; `skills` those that the skills' suites choose from, and whose
    code directness also runs where it can be; `problems` stand for HumanEval's own. Prompt indices in
    events count through all suites. Raises InputError when directness, or all of it, has nothing to ask.
    """
    prompts = _prompts(settings, held_out, skills, sandbox, emit, problems)
    if not prompts or not models:
        raise InputError("there is nothing to evaluate", "name at least one model and one suite that can run")
    options = GenerationOptions(
        temperature=0.0, seed=settings.seed, max_tokens=settings.max_answer_tokens, context_length=context_length
    )
    journal = AnswerJournal(work_dir)
    if len(journal):
        emit(Note(f"{len(journal)} answers of an interrupted evaluation are kept"))
    judged: list[list[Judged]] = []
    for side, model in enumerate(models):
        answers = _answer_all(side, model, len(models), prompts, backend, options, system, journal, emit)
        judged.append([_judged(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
    judged = _run_checks(prompts, judged, sandbox, emit)
    return EvaluationResult(
        backend=backend.name,
        sandbox=sandbox.statement,
        models=tuple(models),
        labels=tuple(labels) if labels else labels_for(models),
        suites=tuple(
            _suite_result(name, prompts, judged) for name in dict.fromkeys(settings.suites) if _asks(prompts, name)
        ),
    )


def _prompts(
    settings: EvaluateSettings,
    held_out: Sequence[Request],
    skills: Sequence[Request],
    sandbox: Sandbox,
    emit: Emit,
    problems: Sequence[Problem] | None,
) -> list[_Prompt]:
    prompts: list[_Prompt] = []
    for suite in dict.fromkeys(settings.suites):
        if suite in _RUN and not sandbox.can_run:
            emit(Note(f"{suite} is left out: {sandbox.statement}", "problem", sandbox.fix))
        elif suite == "humaneval":
            chosen = evenly_spread(load_problems() if problems is None else problems, settings.humaneval_problems)
            prompts += [_Prompt(suite, problem.task_id, chat_request(problem), problem) for problem in chosen]
        else:
            asked = _requests(suite, settings, held_out, skills)
            if not asked:
                text = f"{suite} is left out: no held-out request of the sets shows that skill"
                emit(Note(text, "warning", "prepare a set with such requests, or take it out of evaluate.suites"))
            prompts += [_Prompt(suite, request.id, request.prompt, check=request.check) for request in asked]
    return prompts


def _requests(
    suite: Suite, settings: EvaluateSettings, held_out: Sequence[Request], skills: Sequence[Request]
) -> Sequence[Request]:
    if suite != "directness":
        return requests_for(suite, skills, settings.skill_prompts)
    if not held_out:
        raise InputError(
            "the directness suite has no held-out requests to ask",
            "prepare a training set with data.held_out_fraction above 0, or leave the suite out",
        )
    plain = plain_requests(held_out, settings.directness_prompts)
    asked = {request.prompt for request in plain}
    besides = max(0, settings.skill_prompts - sum(request.can_run for request in plain))
    runnable = [request for request in skills if request.prompt not in asked]
    return (*plain, *requests_for(suite, runnable, besides))


def _asks(prompts: Sequence[_Prompt], suite: str) -> bool:
    return any(prompt.suite == suite for prompt in prompts)


def _answer_all(
    side: int,
    model: str,
    sides: int,
    prompts: Sequence[_Prompt],
    backend: ChatBackend,
    options: GenerationOptions,
    system: str | None,
    journal: AnswerJournal,
    emit: Emit,
) -> list[Answer]:
    answers: list[Answer] = []
    said: dict[str, Answer] = {}  # two suites may have a request in common
    first = (Message("system", system),) if system else ()
    try:
        for index, prompt in enumerate(prompts):
            emit(Progress("answering", side * len(prompts) + index, sides * len(prompts), "prompts"))
            messages = (*first, Message("user", prompt.text))
            key = answer_key(side, model, prompt.suite, prompt.id, messages, options)
            answer = journal.get(key) or said.get(prompt.text)
            if answer is None:
                answer = backend.generate(model, messages, options, _teller(side, index, emit))
                journal.append(AnswerLine(key, side, model, prompt.suite, prompt.id, answer))
                emit(GenerationFinished.of(answer, side, index, model))
            answers.append(answer)
            said[prompt.text] = answer
        emit(Progress("answering", (side + 1) * len(prompts), sides * len(prompts), "prompts"))
    finally:
        backend.unload(model)
    return answers


def _teller(side: int, index: int, emit: Emit) -> Callable[[str], None]:
    return lambda text: emit(TokenGenerated(side, index, text))


def _judged(prompt: _Prompt, answer: Answer) -> Judged:
    check = prompt.check
    share, unchanged = None, None
    if check and prompt.suite == "context":
        share = names_share(answer_code(answer.text, check), check.names)
    if check and prompt.suite == "debugging":
        unchanged = is_unchanged(answer_code(answer.text, check), prompt.text, check.entry_point)
    return Judged(
        text=answer.text,
        opening=opening_of(answer),
        answer_tokens=answer.answer_tokens,
        prompt_tokens=answer.prompt_tokens,
        load_seconds=answer.load_seconds,
        prompt_seconds=answer.prompt_seconds,
        answer_seconds=answer.answer_seconds,
        stop_reason=answer.stop_reason,
        names_share=share,
        unchanged=unchanged,
        chain=has_chain(answer.text) if prompt.suite == "reasoning" else None,
    )


def _run_checks(
    prompts: Sequence[_Prompt], judged: Sequence[Sequence[Judged]], sandbox: Sandbox, emit: Emit
) -> list[list[Judged]]:
    """The answers with the sandbox's verdicts; equal programs are run once."""
    programs = [[prompt.program(answer.text) for prompt, answer in zip(prompts, side, strict=True)] for side in judged]
    total = sum(program is not None for side in programs for program in side) if sandbox.can_run else 0
    if not total:
        return [list(side) for side in judged]
    verdicts: dict[str, Verdict] = {}
    done = 0
    checked: list[list[Judged]] = []
    for side, to_run in zip(judged, programs, strict=True):
        row: list[Judged] = []
        for answer, program in zip(side, to_run, strict=True):
            if program is None:
                row.append(answer)
                continue
            emit(Progress(f"running answers ({sandbox.kind})", done, total, "programs"))
            if program not in verdicts:
                verdicts[program] = sandbox.run(program)
            found = verdicts[program]
            told = found.reason if not found.detail else f"{found.reason}: {found.detail}"
            row.append(msgspec.structs.replace(answer, passed=found.passed, verdict=told))
            done += 1
        checked.append(row)
    emit(Progress(f"running answers ({sandbox.kind})", total, total, "programs"))
    return checked


def _suite_result(name: str, prompts: Sequence[_Prompt], judged: Sequence[Sequence[Judged]]) -> SuiteResult:
    places = [index for index, prompt in enumerate(prompts) if prompt.suite == name]
    return SuiteResult(
        name=name,
        prompt_ids=tuple(prompts[index].id for index in places),
        prompts=tuple(prompts[index].text for index in places),
        answers=tuple(tuple(side[index] for index in places) for side in judged),
        hard=tuple(check.hard if (check := prompts[index].check) else None for index in places),
    )
