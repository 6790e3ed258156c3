"""Asks a model for candidates and runs them; every answer and verdict is on disk before the next is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from amigo_local.data.answer_blocks import answer_blocks
from amigo_local.data.candidate_code import asked_function, defines
from amigo_local.data.candidates import Candidate, CandidateAnswer
from amigo_local.data.pair import Pair
from amigo_local.data.reasoning import without_reasoning
from amigo_local.domain.data_source import CandidatesSource
from amigo_local.domain.events import Emit, Progress
from amigo_local.domain.generation import Answer, ChatBackend, GenerationOptions, Message
from amigo_local.domain.verdict import Verdict
from amigo_local.evaluation.answers import AnswerJournal, AnswerLine, answer_key
from amigo_local.evaluation.extraction import extract_code
from amigo_local.evaluation.sandbox import Sandbox

DIRECTLY = "\n\nAnswer with the code only, in one fenced block: no thinking, no explanation."
VERDICTS_FILE = "verdicts.jsonl"
NO_CODE = Verdict(False, "failed", "there is no code in it")
_SUITE = "candidates"
_PIECES_BETWEEN_EVENTS = 32
"""A cancel is heard at the next event, and a long answer takes minutes on a processor."""


class Question(msgspec.Struct, frozen=True):
    directly: bool
    temperature: float
    seed: int

    def messages(self, problem: Pair) -> tuple[Message, ...]:
        return (Message("user", problem.prompt + (DIRECTLY if self.directly else "")),)


def questions(source: CandidatesSource) -> tuple[Question, ...]:
    """One at temperature 0 for code alone; then `samples`, in turn as the model likes and for code alone."""
    sampled = (Question(bool(i % 2), source.temperature, source.seed + i) for i in range(source.samples))
    return Question(True, 0.0, source.seed), *sampled


def ask(
    problems: Sequence[Pair],
    source: CandidatesSource,
    backend: ChatBackend,
    model: str,
    context_length: int,
    cache: Path,
    emit: Emit,
) -> list[list[Answer]]:
    """[problem][question] answers; those that the cache has aren't asked for. The cache belongs to one model file."""
    asked = questions(source)
    journal = AnswerJournal(cache)
    total, done = len(problems) * len(asked), 0
    answers: list[list[Answer]] = []
    try:
        for problem in problems:
            answers.append([])
            for question in asked:
                emit(Progress("asking the model", done, total, "answers"))
                messages = question.messages(problem)
                options = GenerationOptions(
                    temperature=question.temperature,
                    seed=question.seed,
                    max_tokens=source.max_answer_tokens,
                    context_length=context_length,
                )
                key = answer_key(0, model, _SUITE, "", messages, options)
                answer = journal.get(key)
                if answer is None:
                    answer = backend.generate(model, messages, options, _Pulse(emit, done, total))
                    journal.append(AnswerLine(key, 0, model, _SUITE, problem.name, answer))
                answers[-1].append(answer)
                done += 1
        emit(Progress("asking the model", total, total, "answers"))
    finally:
        backend.unload(model)
    return answers


class _Pulse:
    """Lets a cancel through while an answer is being written."""

    def __init__(self, emit: Emit, done: int, total: int) -> None:
        self._emit, self._event = emit, Progress("asking the model", done, total, "answers")
        self._pieces = 0

    def __call__(self, text: str) -> None:
        self._pieces += 1
        if self._pieces % _PIECES_BETWEEN_EVENTS == 0:
            self._emit(self._event)


def judge(
    problems: Sequence[Pair],
    answers: Sequence[Sequence[Answer]],
    source: CandidatesSource,
    sandbox: Sandbox,
    cache: Path,
    emit: Emit,
) -> Iterator[Candidate]:
    """Each problem with its answers and what became of them. Where no sandbox works, none is run."""
    codes = [[_code(answer.text, problem) for answer in row] for problem, row in zip(problems, answers, strict=True)]
    programs: dict[str, None] = {}
    if sandbox.can_run:
        for problem, found in zip(problems, codes, strict=True):
            if problem.check and problem.check.program:
                programs |= {problem.check.program_for(code): None for code in found if code}
    verdicts = _verdicts(list(programs), sandbox, cache, emit)
    for problem, row, found in zip(problems, answers, codes, strict=True):
        runs = sandbox.can_run and problem.check is not None and bool(problem.check.program)
        judged = []
        for question, answer, code in zip(questions(source), row, found, strict=True):
            verdict = None
            if runs and problem.check:
                verdict = verdicts[_key(problem.check.program_for(code))] if code else NO_CODE
            judged.append(_candidate_answer(question, answer, code, verdict))
        yield Candidate(problem=problem, answers=tuple(judged))


def _candidate_answer(question: Question, answer: Answer, code: str, verdict: Verdict | None) -> CandidateAnswer:
    return CandidateAnswer(
        text=answer.text,
        tokens=answer.answer_tokens,
        asked_directly=question.directly,
        was_cut=answer.stop_reason == "length",
        code=code,
        passed=verdict.passed if verdict else None,
        reason=verdict.reason if verdict else None,
        detail=verdict.detail if verdict else "",
    )


def _code(text: str, problem: Pair) -> str:
    """The code of an answer, without the drafts in its thought; empty where there is none."""
    answer = without_reasoning(text)
    name = asked_function(problem)
    if name:
        code = extract_code(answer, name, "")
        if defines(code, name):
            return code
    blocks = answer_blocks(answer)
    return blocks[0].code if blocks else ""


class _VerdictLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    verdict: Verdict


def _key(program: str) -> str:
    return hashlib.sha256(program.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _verdicts(programs: Sequence[str], sandbox: Sandbox, cache: Path, emit: Emit) -> dict[str, Verdict]:
    """Key of the program -> verdict; equal programs are run once, also in another run on this home."""
    path = cache / VERDICTS_FILE
    known = _known(path)
    fresh = [program for program in programs if _key(program) not in known]
    done, label = len(programs) - len(fresh), f"running answers ({sandbox.kind})"
    with ThreadPoolExecutor(max(1, min(4, (os.cpu_count() or 1)))) as pool, path.open("ab") as file:
        try:
            for program, verdict in zip(fresh, pool.map(sandbox.run, fresh), strict=True):
                emit(Progress(label, done, len(programs), "programs"))
                known[_key(program)] = verdict
                file.write(msgspec.json.encode(_VerdictLine(_key(program), verdict)) + b"\n")
                file.flush()
                done += 1
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        os.fsync(file.fileno())
    if programs:
        emit(Progress(label, len(programs), len(programs), "programs"))
    return known


def _known(path: Path) -> dict[str, Verdict]:
    """Without a last line that a kill has torn, which is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    decoder = msgspec.json.Decoder(_VerdictLine)
    known: dict[str, Verdict] = {}
    for line in whole.splitlines():
        try:
            found = decoder.decode(line)
        except msgspec.MsgspecError:
            continue
        known[found.key] = found.verdict
    return known
