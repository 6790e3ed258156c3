"""Functions that can be judged by running them: those whose docstring shows examples."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator

import msgspec

from amigo_local.data.code.check_programs import examples_program, limited_program
from amigo_local.data.code.code_tree import CodeFile, CodeTree
from amigo_local.data.code.docstring_pairs import made_public, signature_of
from amigo_local.data.code.standalone import Function, ModuleSource, Refused, body_key
from amigo_local.data.phrasing import clean_paragraph
from amigo_local.data.reading import Reading
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.errors import InputError
from amigo_local.domain.verdict import Judge

LONGEST_EXAMPLES = 1500
MOST_LINES = 90
"""More than mined answers may have: here a program vouches for them."""
_MEMORY_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


class Judgeable(msgspec.Struct, frozen=True, kw_only=True):
    """A function that stands alone, and the program that judges it."""

    code: str
    entry_point: str
    signature: str
    paragraph: str
    """What its docstring says it does; empty where it says nothing."""
    examples: str
    """A doctest session; empty where it is judged by tests."""
    program: str
    qualified: str
    group: str

    @property
    def check(self) -> AnswerCheck:
        return AnswerCheck(skill="writing", entry_point=self.entry_point, program=self.program)


def needs_judge(judge: Judge | None, what: str) -> Judge:
    if judge is None:
        raise InputError(
            f"{what} runs code, and there is no sandbox to run it in",
            "install bubblewrap (apt install bubblewrap), or allow it unprotected with --unsafe",
        )
    return judge


def exampled_functions(tree: CodeTree, reading: Reading) -> Iterator[Judgeable]:
    """In file order: functions with examples in their docstrings, not yet run."""
    seen: set[str] = set()
    for file, source in tree.sources(reading):
        for function in source.functions:
            if ">>>" not in (ast.get_docstring(function) or ""):
                continue
            reading.rows += 1
            try:
                yield _exampled(source, function, file, seen)
            except Refused as refusal:
                reading.skip(str(refusal), file.qualified(function.name))


def proves_nothing(judgeable: Judgeable, judge: Judge) -> str:
    """Why its program can't tell right from wrong; empty when it can.

    It must pass with the function, twice, so that what depends on the clock or on hashing shows, and fail without it:
    examples may call the library's own function instead of the one that is defined here.
    """
    check = judgeable.check
    for _ in range(2):
        verdict = judge(limited_program(check, judgeable.code))
        if not verdict.passed:
            return "its own examples don't pass alone"
    hollow = f"{judgeable.code}\n\n\ndef {judgeable.entry_point}(*_, **__):\n    raise LookupError\n"
    return "its examples pass without it" if judge(limited_program(check, hollow)).passed else ""


def _exampled(source: ModuleSource, function: Function, file: CodeFile, seen: set[str]) -> Judgeable:
    if function.name.startswith("__"):
        raise Refused("dunder")
    if len(function.body) < 2:
        raise Refused("stub")
    docstring = ast.get_docstring(function) or ""
    name = function.name.lstrip("_")
    signature = signature_of(function, name)
    examples = _examples(docstring, function.name, name, file.dotted.split(".")[0])
    code = made_public(source.code_of(function), function.name, name)
    if code.count("\n") >= MOST_LINES:
        raise Refused(f"more than {MOST_LINES} lines")
    if (key := body_key(function)) in seen:
        raise Refused("same body as another function")
    seen.add(key)
    return Judgeable(
        code=code,
        entry_point=name,
        signature=signature,
        paragraph=_said(docstring),
        examples=examples,
        program=examples_program(examples),
        qualified=file.qualified(function.name),
        group=file.group,
    )


def _examples(docstring: str, old: str, new: str, top: str) -> str:
    """The session without its imports of the function; raises Refused when it reaches for the module itself."""
    try:
        parsed = doctest.DocTestParser().get_examples(docstring)
    except ValueError as error:
        raise Refused("its examples can't be read") from error
    lines: list[str] = []
    for example in parsed:
        source = re.sub(rf"\b{re.escape(old)}\b", new, example.source.rstrip("\n"))
        if re.match(rf"\s*from\s+{re.escape(top)}[\w.]*\s+import\s+(\w+\s*,\s*)*\w+\s*$", source):
            names = {name.strip() for name in source.partition("import")[2].split(",")}
            if names != {new}:
                raise Refused("its examples use the module itself")
            continue
        if re.search(rf"\bimport\s+{re.escape(top)}\b|\bfrom\s+{re.escape(top)}\b", source):
            raise Refused("its examples use the module itself")
        shown = source.split("\n")
        lines += [f">>> {shown[0]}", *(f"... {line}".rstrip() for line in shown[1:])]
        lines += example.want.rstrip("\n").split("\n") if example.want else []
    text = "\n".join(lines)
    if not re.search(rf"\b{re.escape(new)}\s*\(|\b{re.escape(new)}\b", text):
        raise Refused("its examples don't use it")
    if len(text) > LONGEST_EXAMPLES or "```" in text:
        raise Refused("its examples are too long")
    if _MEMORY_ADDRESS.search(text):
        raise Refused("its examples show memory addresses")
    return text


def _said(docstring: str) -> str:
    """What stands before the examples, as far as one paragraph says it."""
    paragraph = clean_paragraph(docstring.partition(">>>")[0])
    return paragraph if len(paragraph) <= 400 else ""
