"""Packages that are installed beside this program, read without importing them."""

from __future__ import annotations

from collections.abc import Iterator

from amigo_local.data.code.contexts import context_pairs
from amigo_local.data.code.docstring_pairs import docstring_pairs
from amigo_local.data.code.opened_tree import installed_package, package_license, package_version
from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.data.sources.stdlib import USED
from amigo_local.domain.data_source import PackageSource
from amigo_local.domain.errors import InputError


def read(source: PackageSource, reading: Reading) -> Iterator[Pair]:
    for name in _names(source):
        tree = installed_package(name, reading)
        if source.take == "context":
            yield from context_pairs(tree, reading)
        else:
            yield from docstring_pairs(tree, reading)


def look(source: PackageSource, reading: Reading) -> SourceFacts:
    names = _names(source)
    try:
        trees = [installed_package(name, reading) for name in names]
    except InputError as error:
        return SourceFacts(reachable=False, problem=error.message, fix=error.hint)
    return SourceFacts(
        reachable=True,
        problem="" if all(tree.license for tree in trees) else "its metadata names no licence",
        revision=", ".join(f"{name} {package_version(name)}".strip() for name in names),
        license=", ".join(dict.fromkeys(filter(None, map(package_license, names)))),
        size_bytes=sum(file.path.stat().st_size for tree in trees for file in tree.files),
        used=USED[source.take],
    )


def _names(source: PackageSource) -> tuple[str, ...]:
    return (source.package,) if isinstance(source.package, str) else source.package
