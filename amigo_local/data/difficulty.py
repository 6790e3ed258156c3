"""Difficulty: whether a problem needs thought, measured by running the model's answers, else by stated signs."""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections.abc import Iterator

import msgspec

from amigo_local.data.answer_blocks import answer_blocks
from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference
from amigo_local.data.reasoning import split_reasoning
from amigo_local.data.reasoning_prose import CORRECTION, deliberation
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.recipe import DataSettings, DifficultySettings

LENGTH = "length"
LONG_CHAIN_WORDS = 150
LONG_CHAIN_RATIO = 4
"""A chain counts as long from so many words, and so many times the words of its answer. By itself it proves nothing:
models also think long about what is easy."""
CORRECTIONS = 2
BOUNDS, CONDITIONS, FUNCTIONS, LOOP_DEPTH = 2, 3, 3, 2
"""So many of each make a sign."""

_BOUND = re.compile(
    r"(?:<=?|≤|\\leq?)\s*\$?-?\d[\d,_^*{} ]*|\d+\s*(?:<=?|≤|\\leq?)|\b10\s*(?:\^|\*\*)\s*\{?\d+|\bup to \d[\d,_]*"
    r"|\b(?:between|from) -?\d+ (?:and|to) -?\d+|\bin the range\s*\[",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"\b(?:must(?:n't| not)?|may not|should not|shouldn't|cannot|can't|at (?:most|least)|no (?:more|less|fewer) than"
    r"|exactly|unless|only (?:if|when|once)|without (?:using|modifying|importing|recursion)|in[- ]place|ties?"
    r"|if there (?:is|are) no|guaranteed)\b",
    re.IGNORECASE,
)
_COMPLEXITY = re.compile(
    r"\bO\([^)]{1,20}\)|\b(?:time|space|run ?time) complexity|\b(?:optimal(?:ly)?|efficient(?:ly)?|linear|logarithmic)"
    r" (?:time|algorithm|solution|way)|\b(?:constant|O\(1\)) (?:extra )?(?:space|memory)"
    r"|\b(?:minimum|maximum|minimal|maximal|least|fewest|largest|smallest|longest|shortest) (?:possible|number of|total"
    r"|sum|cost|sub\w+|length)|\bas (?:few|fast|many|quickly) as possible",
    re.IGNORECASE,
)
_ALGORITHM = re.compile(
    r"\b(?:dynamic programming|memoi[sz]\w*|knapsack|backtrack\w*|topological(?:ly)?|shortest path|spanning tree"
    r"|dijkstra\w*|(?:breadth|depth)[- ]first|bfs|dfs|adjacency|(?:(?:un)?directed|weighted|acyclic|bipartite) graph"
    r"|union[- ]find|disjoint set|segment tree|fenwick|trie|suffix (?:array|tree)|red[- ]black|avl tree|bit ?mask\w*"
    r"|sliding window|two[- ]pointers?|monotonic (?:stack|queue)|priority queue|n[- ]queens|sudoku"
    r"|(?:common|increasing) subsequence|permutations?|combinatori\w*|modulo|max(?:imum)?[- ]flow|convex hull"
    r"|regular expression matching|deadlock|race condition|lock[- ]free|NP[- ](?:hard|complete)|edit distance"
    r"|game theory|minimax)\b",
    re.IGNORECASE,
)
_OTHER_FUNCTION = re.compile(r"^[ \t]*(?:\w+[ \t]+)*(?:function|func|fn|def)[ \t]+\w+", re.MULTILINE)


class Judgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of a set's difficulty.jsonl."""

    source: str
    name: str
    prompt_key: str
    """First 16 hex digits of the SHA-256 of the request."""
    hard: bool
    measured: bool
    """By the model's own answers; else by signs."""
    pass_rate: float | None = None
    """Of the model's direct answers that were run; None: none was."""
    samples: int = 0
    signs: tuple[str, ...] = ()
    words: int = 0
    """Of the chain that came with the answer."""


def prompt_key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def signs_of(prompt: str, chain: str, answer: str) -> tuple[str, ...]:
    """Signs of difficulty as `kind: what was found`, in a fixed order."""
    return tuple(f"{kind}: {what}" for kind, what in _signs(prompt, chain, answer))


def is_hard_by(signs: tuple[str, ...], settings: DifficultySettings) -> bool:
    """Whether so many different kinds are there; the length of a chain counts only beside another kind."""
    kinds = {sign.partition(":")[0] for sign in signs}
    return bool(kinds - {LENGTH}) and len(kinds) >= settings.signs


def apply_reasoning(
    pair: Pair, settings: DataSettings, pass_rate: float | None = None, samples: int = 0
) -> tuple[Pair, Judgement | None]:
    """The pair with its chain kept or left out as `settings.reasoning` says, and why.

    `pass_rate` is that of `samples` direct answers of the model. A pair that was measured before (check.hard) isn't
    judged again. A chain without an answer that loses its chain leaves an empty completion. Pairs of answers stay as
    they are: whether one of them thinks may be what they teach.
    """
    if settings.reasoning == "keep" or isinstance(pair, Preference):
        return pair, None
    chain, answer = split_reasoning(pair.completion)
    if settings.reasoning == "strip":
        return (msgspec.structs.replace(pair, completion=answer) if chain else pair), None
    known = pair.check.hard if pair.check else None
    if pair.check and known is not None:
        pass_rate, samples = pair.check.pass_rate, pair.check.samples
    if not chain and pass_rate is None and known is None:
        return pair, None
    signs = signs_of(pair.prompt, chain, answer)
    if known is None and pass_rate is not None and samples:
        known = pass_rate < settings.difficulty.hard_below
    hard = is_hard_by(signs, settings.difficulty) if known is None else known
    check = pair.check or (AnswerCheck(skill="reasoning") if chain else None)
    judged = msgspec.structs.replace(
        pair,
        completion=answer if chain and not hard else pair.completion,
        check=msgspec.structs.replace(check, hard=hard) if check else None,
    )
    return judged, Judgement(
        source=pair.source,
        name=pair.name,
        prompt_key=prompt_key(pair.prompt),
        hard=hard,
        measured=known is not None,
        pass_rate=pass_rate,
        samples=samples,
        signs=signs,
        words=len(chain.split()),
    )


def _signs(prompt: str, chain: str, answer: str) -> Iterator[tuple[str, str]]:
    prompt = " ".join(prompt.split())
    bounds = len(_BOUND.findall(prompt))
    conditions = len({found.lower() for found in _CONDITION.findall(prompt)})
    if bounds >= BOUNDS:
        yield "constraints", f"{bounds} bounds"
    if conditions >= CONDITIONS:
        yield "constraints", f"{conditions} conditions"
    if found := _COMPLEXITY.search(prompt):
        yield "optimality", found[0].lower()
    if found := _ALGORITHM.search(prompt):
        yield "algorithm", found[0].lower()
    for what in _structure(answer):
        yield "answer", what
    if chain:
        corrections = deliberation(chain).get(CORRECTION, 0)
        if corrections >= CORRECTIONS:
            yield "chain", f"changes its mind {corrections} times"
        words, answer_words = len(chain.split()), len(answer.split())
        if words >= max(LONG_CHAIN_WORDS, LONG_CHAIN_RATIO * answer_words):
            yield LENGTH, f"{words} words of thought for {answer_words} of answer"


def _structure(answer: str) -> Iterator[str]:
    """What the answer's code is built of; code that isn't Python is only asked for its functions."""
    code = "\n\n".join(block.code for block in answer_blocks(answer)) or answer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is no fault of ours
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        count = len(_OTHER_FUNCTION.findall(code))
        if count >= FUNCTIONS:
            yield f"{count} functions"
        return
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    if _loop_depth(tree) >= LOOP_DEPTH:
        yield "nested loops"
    if any(_calls_itself(function) for function in functions):
        yield "recursion"
    if len(functions) >= FUNCTIONS:
        yield f"{len(functions)} functions"


def _loop_depth(tree: ast.Module) -> int:
    deepest = 0
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        depth += isinstance(node, ast.For | ast.AsyncFor | ast.While)
        deepest = max(deepest, depth)
        waiting += [(child, depth) for child in ast.iter_child_nodes(node)]
    return deepest


def _calls_itself(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id == function.name:
                return True
            if isinstance(called, ast.Attribute) and called.attr == function.name and _is_self(called.value):
                return True
    return False


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")
