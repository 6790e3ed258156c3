"""What a module's top level defines and imports, and where in the same tree an import leads."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

import msgspec

from amigo_local.data.code.code_tree import CodeFile, parsed
from amigo_local.data.code.standalone import Definition, ModuleSource

_HOPS = 5  # re-exports are followed so far: `__init__` of a package, its subpackage, the file


class Imported(msgspec.Struct, frozen=True):
    """One name that an import binds."""

    module: str
    """With its leading dots, as written."""
    name: str
    """Empty where the module itself is bound."""
    text: str


class Found(msgspec.Struct, frozen=True):
    """A definition and the file it stands in."""

    file: CodeFile
    name: str
    node: ast.stmt


class ModuleNames:
    def __init__(self, source: ModuleSource) -> None:
        self.source = source
        self.definitions: dict[str, ast.stmt] = {}
        self.imports: dict[str, Imported] = {}
        twice: set[str] = set()
        for node in source.statements:
            for name in _defined(node):
                (twice.add(name) if name in self.definitions else self.definitions.__setitem__(name, node))
            self.imports.update(_imported(node))
        for name in twice | source.unsettled:  # which of them holds can't be told
            self.definitions.pop(name, None)
            self.imports.pop(name, None)


class TreeNames:
    """Looks names up in a tree of files by their dotted names."""

    def __init__(self, files: Iterable[CodeFile]) -> None:
        self._files: dict[str, CodeFile] = {}
        for file in files:
            self._files[file.dotted] = file
        for file in list(self._files.values()):  # `src/app/x.py` is imported as app.x
            head, _, rest = file.dotted.partition(".")
            if head in ("src", "lib", "python") and rest:
                self._files.setdefault(rest, file)

    def module(self, file: CodeFile, imported: Imported) -> CodeFile | None:
        """The file that is bound when an import binds a module."""
        dotted = self._absolute(file, imported.module)
        return self._files.get(f"{dotted}.{imported.name}".strip(".") if imported.name else dotted)

    def knows(self, file: CodeFile, imported: Imported) -> bool:
        """Whether the import reaches into the tree."""
        return self._absolute(file, imported.module) in self._files or self.module(file, imported) is not None

    def find(self, file: CodeFile, name: str) -> Found | None:
        """Where `name`, as `file` uses it, is defined; re-exports are followed."""
        for _ in range(_HOPS):
            names = names_of(file)
            if names is None:
                return None
            if name in names.definitions:
                return Found(file, name, names.definitions[name])
            imported = names.imports.get(name)
            target = self._files.get(self._absolute(file, imported.module)) if imported and imported.name else None
            if imported is None or target is None:
                return None
            file, name = target, imported.name
        return None

    def _absolute(self, file: CodeFile, module: str) -> str:
        level = len(module) - len(module.lstrip("."))
        if not level:
            return module
        package = file.dotted if file.shown.endswith("__init__.py") else file.dotted.rpartition(".")[0]
        for _ in range(level - 1):
            package = package.rpartition(".")[0]
        return f"{package}.{module[level:]}".strip(".")


def names_of(file: CodeFile) -> ModuleNames | None:
    source = parsed(file.path)
    return None if source is None else source.kept(ModuleNames)


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, Definition):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target.id


def _imported(node: ast.stmt) -> dict[str, Imported]:
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.split(".")[0]: Imported(
                alias.name if alias.asname else alias.name.split(".")[0], "", f"import {ast.unparse(alias)}"
            )
            for alias in node.names
        }
    if isinstance(node, ast.ImportFrom):
        origin = "." * node.level + (node.module or "")
        return {
            alias.asname or alias.name: Imported(origin, alias.name, f"from {origin} import {ast.unparse(alias)}")
            for alias in node.names
        }
    return {}
