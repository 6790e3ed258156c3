"""Functions whose docstring shows examples, from what they do and the examples; the code was run on them."""

from __future__ import annotations

from collections.abc import Iterator

from amigo_local.data.code.code_tree import CodeTree
from amigo_local.data.code.judgeable import Judgeable, exampled_functions, needs_judge, proves_nothing
from amigo_local.data.code.judging import judged_in_order
from amigo_local.data.code.opened_tree import opened
from amigo_local.data.pair import Pair
from amigo_local.data.phrasing import asked_for, with_examples
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.domain.data_source import DoctestSource
from amigo_local.domain.errors import InputError


def read(source: DoctestSource, reading: Reading) -> Iterator[Pair]:
    judge = needs_judge(reading.judge, "doctest")
    for name in _names(source.doctest):
        tree = opened(name, reading)
        functions = exampled_functions(tree, reading)
        for function, refusal in judged_in_order(functions, lambda each: proves_nothing(each, judge)):
            if refusal:
                reading.skip(refusal, function.qualified)
            else:
                yield _pair(function, tree)


def look(source: DoctestSource, reading: Reading) -> SourceFacts:
    try:
        trees = [opened(name, reading) for name in _names(source.doctest)]
    except InputError as error:
        return SourceFacts(reachable=False, problem=error.message, fix=error.hint)
    return facts_of(trees, reading, "docstring and examples → request, function → answer")


def facts_of(trees: list[CodeTree], reading: Reading, used: str) -> SourceFacts:
    """Of trees that are read to be run."""
    missing = reading.judge is None
    return SourceFacts(
        reachable=True,
        problem="it runs code, and there is no sandbox to run it in" if missing else "",
        fix="install bubblewrap, or allow it unprotected with --unsafe" if missing else "",
        license=", ".join(dict.fromkeys(tree.license for tree in trees if tree.license)),
        size_bytes=sum(file.path.stat().st_size for tree in trees for file in tree.files),
        used=used,
    )


def _pair(function: Judgeable, tree: CodeTree) -> Pair:
    asked = asked_for(function.qualified, function.signature, function.paragraph)
    return Pair(
        prompt=with_examples(asked, function.examples),
        completion=f"```python\n{function.code}\n```",
        source=tree.label,
        module=function.group,
        name=function.qualified,
        license=tree.license,
        language="python",
        check=function.check,
    )


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value
