"""Pairs whose request shows several files of a tree, and whose answer is the function that uses what they define."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from amigo_local.data.code.code_tree import CodeFile, CodeTree
from amigo_local.data.code.docstring_pairs import asked_of, refuse_size, signature_of
from amigo_local.data.code.free_names import free_names, rebinds_globals
from amigo_local.data.code.module_names import Found, ModuleNames, TreeNames, names_of
from amigo_local.data.code.shown_definition import shown_definition
from amigo_local.data.code.standalone import Definition, Function, Refused, body_key, joined_imports
from amigo_local.data.pair import Pair
from amigo_local.data.phrasing import described, in_context
from amigo_local.data.reading import Reading
from amigo_local.domain.answer_check import AnswerCheck

FEWEST_NAMES = 2
MOST_NAMES = 12
LONGEST_CONTEXT = 12_000
_DISTRACTORS = 3


class _Needs(msgspec.Struct, frozen=True):
    supplied: tuple[Found, ...]
    imports: tuple[str, ...]
    """Import statements that bind what isn't shown: of other libraries."""
    own_imports: tuple[str, ...]
    """Those that bind what is shown."""


def context_pairs(tree: CodeTree, reading: Reading, files: Sequence[CodeFile] | None = None) -> Iterator[Pair]:
    """In file order. `files` is where definitions are looked for; None: in the tree itself.

    A function is taken when it uses two definitions or more of its tree. Where a group has functions that use another
    file's definitions, only those are taken: what stands in the same file is the easier half of the skill.
    """
    names = TreeNames(tree.files if files is None else files)
    seen: set[str] = set()
    group = ""
    held: list[tuple[Pair, bool]] = []
    for pair, crosses in _all_pairs(tree, names, reading, seen):
        if pair.module != group:
            yield from _preferred(held, reading)
            group, held = pair.module, []
        held.append((pair, crosses))
    yield from _preferred(held, reading)


def _preferred(pairs: Sequence[tuple[Pair, bool]], reading: Reading) -> Iterator[Pair]:
    any_crosses = any(crosses for _, crosses in pairs)
    for pair, crosses in pairs:
        if any_crosses and not crosses:
            reading.skip("uses its own file alone", pair.name)
        else:
            yield pair


def _all_pairs(tree: CodeTree, names: TreeNames, reading: Reading, seen: set[str]) -> Iterator[tuple[Pair, bool]]:
    for file, source in tree.sources(reading):
        for function in source.functions:
            reading.rows += 1
            try:
                yield _pair(function, file, tree, names, source.kept(ModuleNames), seen)
            except Refused as refusal:
                reading.skip(str(refusal), file.qualified(function.name))


def _pair(
    function: Function, file: CodeFile, tree: CodeTree, names: TreeNames, module: ModuleNames, seen: set[str]
) -> tuple[Pair, bool]:
    asked = asked_of(function)
    code = module.source.body_of(function, decorated=not _decorated_by(function, file, names))
    refuse_size(function, code)
    needs = _needs_of(function, code, file, names, module, tree.label == "stdlib")
    if len(needs.supplied) < FEWEST_NAMES:
        raise Refused("uses fewer than 2 definitions of its tree")
    if len(needs.supplied) > MOST_NAMES:
        raise Refused("uses too many definitions of its tree")
    if (key := body_key(function)) in seen:
        raise Refused("same body as another function")
    qualified = file.qualified(function.name)
    blocks = _blocks(function, file, needs, qualified)
    if len(blocks) > LONGEST_CONTEXT or "```" in code or blocks.count("```") != 2 * blocks.count("```python\n"):
        raise Refused("definitions too long to show")
    seen.add(key)
    signature = signature_of(function, function.name)
    prompt = in_context(qualified, described(qualified, signature, asked.paragraph), file.shown, blocks)
    # An import may give a definition another name, which the request doesn't show as the definition's.
    supplied = tuple(sorted({found.name for found in needs.supplied} & _identifiers(function)))
    pair = Pair(
        prompt=prompt,
        completion=f"```python\n{code}\n```",
        source=tree.label,
        module=file.group,
        name=qualified,
        license=tree.license,
        language="python",
        check=AnswerCheck(skill="context", entry_point=function.name, names=supplied),
    )
    return pair, any(found.file.shown != file.shown for found in needs.supplied)


def _needs_of(
    function: Function, code: str, file: CodeFile, names: TreeNames, module: ModuleNames, narrow: bool
) -> _Needs:
    """Raises Refused for a name that neither the tree nor another library is seen to give."""
    try:
        if rebinds_globals(code):
            raise Refused("keeps state in its module")
        wanted = sorted(free_names(code) - {function.name})
    except SyntaxError as error:
        raise Refused("doesn't compile alone") from error
    supplied: dict[tuple[str, str], Found] = {}
    outside: list[str] = []
    own: list[str] = []
    for name in wanted:
        imported = module.imports.get(name)
        if imported is None and name not in module.definitions:
            raise Refused("needs names from elsewhere")
        found = [names.find(file, name)]
        if imported is not None and (target := names.module(file, imported)) and _near(file, target, narrow):
            found = [names.find(target, attribute) for attribute in sorted(_attributes(function, name))]
        usable = [each for each in found if each is not None and _near(file, each.file, narrow)]
        if imported is not None:
            (own if usable else outside).append(imported.text)
        if len(usable) < len(found) and (usable or imported is None):
            raise Refused("needs names from elsewhere")
        supplied.update({(each.file.shown, each.name): each for each in usable})
    order = sorted(supplied.values(), key=lambda each: (each.file.shown, each.node.lineno, each.name))
    return _Needs(tuple(order), tuple(sorted(outside)), tuple(sorted(own)))


def _decorated_by(function: Function, file: CodeFile, names: TreeNames) -> bool:
    """Whether the tree's own decorators lie over it: nothing in a request says that they should."""
    roots = {node.id for each in function.decorator_list for node in ast.walk(each) if isinstance(node, ast.Name)}
    return any(names.find(file, root) for root in roots)


def _near(file: CodeFile, other: CodeFile, narrow: bool) -> bool:
    """Whether it belongs to the same project. All of the standard library is at hand anyway (`narrow`): of it only
    the same package counts, and what is private to it."""
    return not narrow or other.group == file.group or other.group.startswith("_")


def _identifiers(function: Function) -> set[str]:
    nodes = list(ast.walk(function))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def _attributes(function: Function, module: str) -> set[str]:
    return {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    }


def _blocks(function: Function, file: CodeFile, needs: _Needs, qualified: str) -> str:
    """One fenced block for each file, its path above it; the function's own file comes last."""
    attributes = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    shown: dict[str, list[Found]] = {}
    for found in needs.supplied:
        shown.setdefault(found.file.shown, []).append(found)
    files = {found.file.shown: found.file for found in needs.supplied} | {file.shown: file}
    blocks = []
    for path in [*sorted(set(files) - {file.shown}), file.shown]:
        module = names_of(files[path])
        assert module is not None  # its definitions were found
        used = shown.get(path, [])
        others = _distractors(module, files[path], [found.name for found in used] + [function.name], qualified)
        definitions = sorted([*used, *others], key=lambda each: (each.node.lineno, each.name))
        texts = [shown_definition(module.source, each.name, each.node, attributes) for each in definitions]
        imports = "\n".join(joined_imports(needs.imports + needs.own_imports)) if path == file.shown else ""
        text = _spaced(imports, [each.node for each in definitions], texts)
        blocks.append(f"`{path}`:\n```python\n{text}\n```")
    return "\n\n".join(blocks)


def _distractors(module: ModuleNames, file: CodeFile, taken: Sequence[str], key: str) -> list[Found]:
    """Neighbours that aren't needed, so that using a name takes knowing what it is for."""
    others = [name for name in module.definitions if name not in taken and not name.startswith("__")]
    count = min(_DISTRACTORS, max(1, len(taken) - 1))
    chosen = sorted(others, key=lambda name: hashlib.sha256(f"{key} {file.shown} {name}".encode()).digest())[:count]
    return [Found(file, name, module.definitions[name]) for name in chosen]


def _spaced(imports: str, nodes: Sequence[ast.stmt], texts: Iterable[str]) -> str:
    """Two blank lines around definitions, none between constants."""
    text, before = imports, False
    for index, (node, part) in enumerate(zip(nodes, texts, strict=True)):
        definition = isinstance(node, Definition)
        gap = "\n\n\n" if definition or before else "\n" if index else "\n\n"
        text += (gap if text else "") + part
        before = definition
    return text
