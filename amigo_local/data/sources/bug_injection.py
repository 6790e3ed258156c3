"""Working functions, broken on purpose, with the error of the example or test that then fails."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import chain

import msgspec

from amigo_local.data.code.check_programs import CPU_SECONDS, failure_text, limited_program, ran_forever
from amigo_local.data.code.code_tree import CodeTree
from amigo_local.data.code.judgeable import Judgeable, exampled_functions, needs_judge, proves_nothing
from amigo_local.data.code.judging import judged_in_order
from amigo_local.data.code.mutations import Mutation, mutated, mutations
from amigo_local.data.code.nearby_tests import tested_functions
from amigo_local.data.code.opened_tree import opened
from amigo_local.data.pair import Pair
from amigo_local.data.phrasing import to_mend
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.data.sources.doctest import facts_of
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.data_source import BugInjectionSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.verdict import Judge, Verdict

TRIES = 3
"""So many mutants are run for each that is wanted: many change nothing that the examples see."""
FOREVER_SHARE = 0.1
"""Of the samples may be endless loops: their error says little."""
_FOREVER_ERROR = f"It never ends: interrupted after {CPU_SECONDS} s of computing."


class _Bug(msgspec.Struct, frozen=True):
    mutation: Mutation
    error: str
    forever: bool


class _Judged(msgspec.Struct, frozen=True):
    refusal: str
    """Why the function can't be used; empty when it can."""
    bugs: tuple[_Bug, ...] = ()
    spared: Counter[str] = Counter()
    """Why mutants made no sample."""


def read(source: BugInjectionSource, reading: Reading) -> Iterator[Pair]:
    judge = needs_judge(reading.judge, "bug_injection")
    taken = forever = 0
    for name in _names(source):
        tree = opened(name, reading)
        functions = chain(exampled_functions(tree, reading), tested_functions(tree, reading))
        for function, judged in judged_in_order(functions, lambda each: _judged(each, judge, source.per_function)):
            if judged.refusal:
                reading.skip(judged.refusal, function.qualified)
            for reason, count in judged.spared.items():
                reading.skipped[reason] += count
            for bug in judged.bugs:
                if bug.forever and forever + 1 > FOREVER_SHARE * (taken + 1):
                    reading.skip("mutant: one endless loop too many", function.qualified)
                    continue
                taken, forever = taken + 1, forever + bug.forever
                yield _pair(function, bug, tree)


def look(source: BugInjectionSource, reading: Reading) -> SourceFacts:
    try:
        trees = [opened(name, reading) for name in _names(source)]
    except InputError as error:
        return SourceFacts(reachable=False, problem=error.message, fix=error.hint)
    return facts_of(trees, reading, "broken function and its error → request, diagnosis and function → answer")


def _judged(function: Judgeable, judge: Judge, wanted: int) -> _Judged:
    if refusal := proves_nothing(function, judge):
        return _Judged(refusal)
    bugs: list[_Bug] = []
    spared: Counter[str] = Counter()
    for mutation in _in_turn(function)[: TRIES * wanted + 2]:
        if len(bugs) == wanted:
            break
        program = limited_program(function.check, mutated(function.code, mutation))
        verdict = judge(program)
        if reason := _unusable(verdict):
            spared[reason] += 1
        elif ran_forever(verdict.detail):
            bugs.append(_Bug(mutation, _FOREVER_ERROR, True))
        elif judge(program).detail != verdict.detail:  # an address, the clock, the order of a set
            spared["mutant: its error isn't the same twice"] += 1
        else:
            bugs.append(_Bug(mutation, failure_text(verdict.detail), False))
    return _Judged("", tuple(bugs), spared)


def _unusable(verdict: Verdict) -> str:
    if verdict.passed:
        return "mutant: nothing fails"
    if verdict.reason != "failed":
        return f"mutant: {verdict.reason}"
    return "" if failure_text(verdict.detail) else "mutant: no error to show"


def _in_turn(function: Judgeable) -> list[Mutation]:
    """One of each kind, then the next of each; in no order of the text, but always in the same."""

    def rank(mutation: Mutation) -> bytes:
        return hashlib.sha256(f"{function.qualified} {mutation.kind} {mutation.edits}".encode()).digest()

    of_kind: Counter[str] = Counter()
    turns: list[tuple[int, bytes, Mutation]] = []
    for mutation in sorted(mutations(function.code, function.entry_point), key=rank):
        turns.append((of_kind[mutation.kind], rank(mutation), mutation))
        of_kind[mutation.kind] += 1
    return [mutation for _, _, mutation in sorted(turns, key=lambda turn: turn[:2])]


def _pair(function: Judgeable, bug: _Bug, tree: CodeTree) -> Pair:
    broken = mutated(function.code, bug.mutation)
    return Pair(
        prompt=to_mend(function.qualified, broken, bug.error, function.paragraph),
        completion=f"{bug.mutation.diagnosis}\n\n```python\n{function.code}\n```",
        source=tree.label,
        module=function.group,
        name=f"{function.qualified} with {bug.mutation.kind}",
        license=tree.license,
        language="python",
        check=AnswerCheck(skill="debugging", entry_point=function.entry_point, program=function.program),
    )


def _names(source: BugInjectionSource) -> tuple[str, ...]:
    return (source.bug_injection,) if isinstance(source.bug_injection, str) else source.bug_injection
