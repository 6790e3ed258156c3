"""Functions that can be judged by the tests that lie beside them: plain test functions and unittest's cases."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amigo_local.data.code.check_programs import tests_program
from amigo_local.data.code.code_tree import CodeFile, CodeTree, parsed
from amigo_local.data.code.docstring_pairs import signature_of
from amigo_local.data.code.judgeable import MOST_LINES, Judgeable
from amigo_local.data.code.module_names import ModuleNames, TreeNames
from amigo_local.data.code.standalone import Function, ModuleSource, Refused, body_key
from amigo_local.data.phrasing import clean_paragraph
from amigo_local.data.reading import Reading

MOST_TESTS = 4
"""Of one function: more of them make the check long, and a bug shows in the first."""
LONGEST_TESTS = 6000


def tested_functions(tree: CodeTree, reading: Reading) -> Iterator[Judgeable]:
    """In the order of the tests' files: functions whose tests need nothing but them and the standard library."""
    if not tree.tests:
        return
    names = TreeNames([*tree.files, *tree.tests])
    found: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    files = {file.shown: file for file in tree.files}
    for file in tree.tests:
        source = parsed(file.path)
        if source is None:
            reading.skip("file isn't readable Python", file.shown)
            continue
        for test in _tests_of(source):
            reading.rows += 1
            try:
                target, tests = _resolved(test, file, source.kept(ModuleNames), names)
            except Refused as refusal:
                reading.skip(f"test: {refusal}", f"{file.shown}: {test.name}")
                continue
            found.setdefault(target, []).extend(tests)
    seen: set[str] = set()
    for (path, name), tests in found.items():
        if path not in files:
            continue
        try:
            yield _judgeable(files[path], name, tests[:MOST_TESTS], seen)
        except Refused as refusal:
            reading.skip(str(refusal), f"{path}: {name}")


def _tests_of(source: ModuleSource) -> Iterator[Function | ast.ClassDef]:
    for node in source.statements:
        if isinstance(node, ast.FunctionDef):
            is_test = node.name.startswith("test")
        else:
            bases = node.bases if isinstance(node, ast.ClassDef) else []
            is_test = any(ast.unparse(base).endswith("TestCase") for base in bases)
        if is_test and isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node


def _resolved(
    test: Function | ast.ClassDef, file: CodeFile, module: ModuleNames, names: TreeNames
) -> tuple[tuple[str, str], list[tuple[str, str, str]]]:
    """The one function of the tree that it tests, and its runs: name, text that defines them, call."""
    if isinstance(test, Function) and (test.args.args or test.args.kwonlyargs or test.decorator_list):
        raise Refused("it needs fixtures")
    text, imported = module.source.closure_of(test)
    targets: set[tuple[str, str]] = set()
    for name in imported:
        found = names.find(file, name)
        if found is None:
            if names.knows(file, module.imports[name]):
                raise Refused("it uses a module of the tree as a whole")
            continue
        if not isinstance(found.node, Function) or found.name != name:
            raise Refused("it uses more of the tree than one function")
        targets.add((found.file.shown, found.name))
    if len(targets) != 1:
        raise Refused("it uses more of the tree than one function" if targets else "it uses no function of the tree")
    if len(text) > LONGEST_TESTS:
        raise Refused("it is too long")
    outside = "\n".join(module.imports[name].text for name in imported if names.find(file, name) is None)
    whole = f"{outside}\n\n{text}".strip()
    if isinstance(test, Function):
        return targets.pop(), [(test.name, whole, f"{test.name}()")]
    methods = [item.name for item in test.body if isinstance(item, ast.FunctionDef) and item.name.startswith("test")]
    return targets.pop(), [(each, whole, f"{test.name}({each!r}).debug()") for each in methods]


def _judgeable(file: CodeFile, name: str, tests: list[tuple[str, str, str]], seen: set[str]) -> Judgeable:
    source = parsed(file.path)
    assert source is not None  # the function was found in it
    function = next(node for node in source.functions if node.name == name)
    docstring = ast.get_docstring(function) or ""
    if ">>>" in docstring:
        raise Refused("has examples as well as tests")
    signature = signature_of(function, name)
    code = source.code_of(function)
    if code.count("\n") >= MOST_LINES:
        raise Refused(f"more than {MOST_LINES} lines")
    if (key := body_key(function)) in seen:
        raise Refused("same body as another function")
    seen.add(key)
    paragraph = clean_paragraph(docstring)
    return Judgeable(
        code=code,
        entry_point=name,
        signature=signature,
        paragraph=paragraph if len(paragraph) <= 400 else "",
        examples="",
        program="\n".join(tests_program(test, text, call) for test, text, call in tests),
        qualified=file.qualified(name),
        group=file.group,
    )
