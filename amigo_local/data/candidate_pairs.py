"""Pairs of a model's own answers whose sides differ in what is being taught, and in nothing else."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import msgspec

from amigo_local.data.answer_blocks import answer_blocks, fenced, strip_preamble
from amigo_local.data.candidate_code import asked_function, code_of, defines, parsed, same_code, used_names
from amigo_local.data.candidates import Candidate, CandidateAnswer
from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.data_source import PairKind

LONG_THOUGHT_WORDS = 40
"""So much thought about an easy problem is too much."""


class NoPair(Exception):
    """Why a candidate gives no pair of a kind."""


def pair_of(kind: PairKind, candidate: Candidate, hard_below: float) -> Preference:
    """The best pair of that kind. Raises NoPair with the reason why there is none."""
    chosen, rejected = _KINDS[kind](candidate, hard_below)
    problem = candidate.problem
    return Preference(
        prompt=problem.prompt,
        completion=chosen,
        rejected=rejected,
        source=f"candidates: {problem.source}",
        module=problem.module,
        name=f"{kind}: {problem.name}",
        license=problem.license,
        language=problem.language,
        check=_measured(candidate, hard_below),
    )


def answer_of(candidate: Candidate, hard_below: float) -> Pair:
    """One answer to learn: the model's own that passes, with its chain only where the problem is hard; the source's
    where none passes. Raises NoPair."""
    problem, hard = candidate.problem, candidate.is_hard(hard_below)
    if not candidate.was_run:
        raise NoPair("no answer could be run")
    passing = [answer for answer in candidate.answers if answer.passed]
    thinking = _shortest([answer for answer in passing if not answer.is_direct])
    direct = _shortest([answer for answer in passing if answer.is_direct])
    if thinking and (hard is not False or direct is None):
        # Kept where it wasn't measured: prepare then judges the chain by its signs.
        completion = thinking.text.strip() if hard is not False else _alone(thinking)
    elif direct:
        completion = _alone(direct)
    elif problem.completion.strip():
        completion = problem.completion
    else:
        raise NoPair("no answer passes, and the source has none")
    return Pair(
        prompt=problem.prompt,
        completion=completion,
        source=f"candidates: {problem.source}",
        module=problem.module,
        name=problem.name,
        license=problem.license,
        language=problem.language,
        check=_measured(candidate, hard_below),
    )


def _measured(candidate: Candidate, hard_below: float) -> AnswerCheck | None:
    """The problem's check, with what the model's own answers say about it."""
    rate, samples = candidate.direct_pass_rate()
    if rate is None:
        return candidate.problem.check
    check = candidate.problem.check or AnswerCheck(skill="reasoning")
    return msgspec.structs.replace(check, hard=rate < hard_below, pass_rate=rate, samples=samples)


def _alone(answer: CandidateAnswer) -> str:
    """The code that was run, with nothing around it."""
    return fenced(answer.code)


def _shortest(answers: list[CandidateAnswer]) -> CandidateAnswer | None:
    return min(answers, key=lambda answer: (len(answer.text), answer.text), default=None)


Sides = tuple[str, str]
"""(better, worse)"""


def _direct(candidate: Candidate, hard_below: float) -> Sides:
    """The one block of a wordy answer over the whole of it."""
    if candidate.looks_hard(hard_below):
        raise NoPair("the problem is hard, words may help")
    name = asked_function(candidate.problem)
    refusals: list[tuple[int, str]] = []
    found: list[CandidateAnswer] = []
    for answer in candidate.answers:
        refusal = _not_wordy(answer, name)
        if refusal is None:
            found.append(answer)
        else:
            refusals.append(refusal)
    if not found:
        raise NoPair(max(refusals)[1] if refusals else "no answer")
    wordiest = max(found, key=lambda answer: (len(answer.text) - len(strip_preamble(answer.text)), answer.text))
    return strip_preamble(wordiest.text), wordiest.text.strip()


def _not_wordy(answer: CandidateAnswer, name: str) -> tuple[int, str] | None:
    """How far it came and why it can't be used; None: it can. `name`: of the function asked for."""
    blocks = answer_blocks(answer.text)
    steps = (
        (bool(blocks) and blocks[-1].is_closed and not answer.was_cut, "no whole block of code"),
        (answer.passed or answer.passed is None, "the code fails"),
        (answer.is_direct, "it thinks first, which `reasoning` is about"),
        (len(blocks) == 1, "more than one block: the sides' code would differ"),
        (bool(blocks) and parsed(blocks[0].code) is not None, "the code doesn't parse"),
        (not name or (bool(blocks) and defines(blocks[0].code, name)), "it isn't the function that was asked for"),
        (
            bool(blocks) and (not answer.code or same_code(blocks[0].code, answer.code)),
            "the code that was run isn't the block: the sides' code would differ",
        ),
        (strip_preamble(answer.text) != answer.text.strip(), "it is code alone already"),
    )
    return next(((place, reason) for place, (holds, reason) in enumerate(steps) if not holds), None)


def _correct(candidate: Candidate, hard_below: float) -> Sides:
    """Code that passes over the code that is most like it and fails, both by themselves."""
    if not candidate.was_run:
        raise NoPair("no answer could be run")
    wrong = [answer.code for answer in candidate.answers if answer.is_wrong]
    if not wrong:
        late = any(answer.reason == "timeout" for answer in candidate.answers)
        cut = any(answer.was_cut and answer.passed is False for answer in candidate.answers)
        raise NoPair("it only ran out of time" if late else "it was only cut" if cut else "no answer fails")
    right = [answer.code for answer in candidate.answers if answer.passed]
    if not right and candidate.problem.check and candidate.problem.check.program:
        right = [code_of(candidate.problem.completion)]  # a source that gives a program has run its own answer
    if not right:
        raise NoPair("no answer passes")
    _, better, worse = max(
        (difflib.SequenceMatcher(None, good, bad, autojunk=False).ratio(), good, bad) for good in right for bad in wrong
    )
    if same_code(better, worse):
        raise NoPair("the same code passed once and failed once")
    return fenced(better), fenced(worse)


def _context(candidate: Candidate, hard_below: float) -> Sides:
    """Code that uses every definition that was given over code that uses at most half of them."""
    names = candidate.problem.check.names if candidate.problem.check else ()
    if not names:
        raise NoPair("the request gives nothing to use")
    name = asked_function(candidate.problem)
    usage = [
        (len(used), answer)
        for answer in candidate.answers
        if not answer.was_cut
        and (used := used_names(answer.code, names)) is not None
        and (not name or defines(answer.code, name))
    ]
    generic = [(count, answer.code) for count, answer in usage if count <= len(names) / 2]
    if not usage:
        raise NoPair("no answer is the function that was asked for")
    if not generic:
        raise NoPair("every answer uses what was given")
    fitting = [answer for count, answer in usage if count == len(names) and answer.passed is not False]
    better = min((answer.code for answer in fitting), key=len, default=code_of(candidate.problem.completion))
    used = used_names(better, names)
    if used is None or len(used) < len(names):
        raise NoPair("the source's answer uses less than what was given")
    worse = min(generic)[1]
    return fenced(better), fenced(worse)


def _reasoning(candidate: Candidate, hard_below: float) -> Sides:
    """Hard: thought that hits over a direct miss. Easy: a direct hit over thought at length that hits as well."""
    hard = candidate.is_hard(hard_below)
    if hard is None:
        raise NoPair("no direct answer could be run")
    passing = [answer for answer in candidate.answers if answer.passed]
    thinking = [answer for answer in passing if not answer.is_direct]
    direct = [answer for answer in passing if answer.is_direct]
    if hard:
        thought = _shortest(thinking)
        missed = _shortest([answer for answer in candidate.answers if answer.is_wrong and answer.is_direct])
        if thought is None or missed is None:
            raise NoPair("hard, and no thought solves it" if thought is None else "hard, and no direct answer is wrong")
        return thought.text.strip(), _alone(missed)
    long = [answer for answer in thinking if len(answer.chain.split()) >= LONG_THOUGHT_WORDS]
    hit = _shortest(direct)
    if hit is None or not long:
        raise NoPair("easy, and no answer thinks at length")
    return _alone(hit), max(long, key=lambda answer: (len(answer.chain), answer.text)).text.strip()


_KINDS: dict[PairKind, Callable[[Candidate, float], Sides]] = {
    "direct": _direct,
    "correct": _correct,
    "context": _context,
    "reasoning": _reasoning,
}
