"""The running Python's own standard library: functions from their docstrings, or from the definitions they use."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from amigo_local.data.code.contexts import context_pairs
from amigo_local.data.code.docstring_pairs import docstring_pairs
from amigo_local.data.code.opened_tree import STDLIB_LICENSE, standard_library
from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.domain.data_source import StdlibSource
from amigo_local.domain.errors import InputError

USED = {
    "docstrings": "docstring → request, function → answer",
    "context": "definitions and docstring → request, function → answer",
}


def read(source: StdlibSource, reading: Reading) -> Iterator[Pair]:
    # Definitions are looked up in the whole library, also when only some modules are asked for.
    tree = standard_library(source.stdlib)
    if source.take == "context":
        yield from context_pairs(tree, reading, standard_library().files)
    else:
        yield from docstring_pairs(tree, reading)


def look(source: StdlibSource, reading: Reading) -> SourceFacts:
    try:
        tree = standard_library(source.stdlib)
    except InputError as error:
        return SourceFacts(reachable=False, problem=error.message, fix=error.hint)
    return SourceFacts(
        reachable=True,
        revision=f"Python {platform.python_version()}",
        license=STDLIB_LICENSE,
        size_bytes=sum(file.path.stat().st_size for file in tree.files),
        used=USED[source.take],
    )
