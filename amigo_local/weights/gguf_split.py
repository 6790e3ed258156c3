"""A model in several GGUF files (PREFIX-00001-of-00003.gguf): which files they are, and their headers as one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.weights.gguf_cursor import HINT, MAX_TENSORS, described

if TYPE_CHECKING:
    from amigo_local.weights.gguf_header import GgufHeader

# LLM_KV_SPLIT_* in llama-arch.cpp. They tell of a file, not of the model: a header's metadata doesn't show them.
SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = frozenset({SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS})
MAX_PARTS = 1024  # a terabyte in parts of a gigabyte
_GATHER = "put all parts of one model into one folder, under their own names"


class SplitPlace(msgspec.Struct, frozen=True, gc=False):
    """Which part of a model a file is."""

    number: int
    """From 0 on."""
    count: int
    """1 for a model in one file."""
    tensors: int
    """Of all parts; 0 for a model in one file."""

    @property
    def ending(self) -> str:
        """llama_split_path in llama.cpp."""
        return f"-{self.number + 1:05}-of-{self.count:05}.gguf"


def split_place(path: Path, metadata: dict[str, Any]) -> SplitPlace:
    """llama.cpp takes a count below 2 for a model in one file; so does this."""

    def stated(key: str, low: int, high: int) -> int:
        value = metadata.get(key)
        if type(value) is not int or not low <= value <= high:
            raise InputError(f"{path}: {key} is {described(value)}, expected a whole number from {low} to {high}", HINT)
        return value

    if SPLIT_COUNT not in metadata or stated(SPLIT_COUNT, 0, MAX_PARTS) < 2:
        return SplitPlace(0, 1, 0)
    count = stated(SPLIT_COUNT, 2, MAX_PARTS)
    return SplitPlace(stated(SPLIT_NUMBER, 0, count - 1), count, stated(SPLIT_TENSORS, 1, MAX_TENSORS))


def join_parts(
    given: GgufHeader, place: SplitPlace, read: Callable[[Path], tuple[GgufHeader, SplitPlace]]
) -> GgufHeader:
    """The whole model's header from any part of it, as llama_model_loader joins them; the first part has the metadata.

    Raises InputError naming the file that is missing, renamed, or of another model: of that, llama.cpp's parts only
    tell their number, how many there are, and how many tensors they hold together.
    """
    prefix = given.path.name.removesuffix(place.ending)
    if prefix in ("", given.path.name):
        raise InputError(
            f"{given.path}: is part {place.number + 1} of {place.count} of a model, but its name doesn't end in "
            f"{place.ending}",
            _GATHER,
        )
    parts: list[GgufHeader] = []
    found = 0
    for number in range(place.count):
        due = msgspec.structs.replace(place, number=number)
        path = given.path.with_name(prefix + due.ending)
        part = given if number == place.number else _read_part(path, due, given.path, read)
        parts.append(part)
        architecture = part.metadata.get("general.architecture")  # only the first part needs it
        if architecture not in (None, parts[0].metadata.get("general.architecture")):
            raise InputError(f"{path}: is a part of another model than {parts[0].path.name}", _GATHER)
        found += len(part.tensors)
        if found > place.tensors:
            break
    if found != place.tensors:
        raise InputError(
            f"{given.path}: its model has {place.tensors} tensors, but up to {path.name} the parts hold {found}",
            _GATHER,
        )
    tensors = [
        msgspec.structs.replace(tensor, file=number) for number, part in enumerate(parts) for tensor in part.tensors
    ]
    names = sorted(tensor.name for tensor in tensors)
    for name, following in itertools.pairwise(names):
        if name == following:
            raise InputError(f"{given.path}: two parts of its model hold the tensor {name}", _GATHER)
    return msgspec.structs.replace(
        parts[0],
        file_size=sum(part.file_size for part in parts),
        tensors=tuple(tensors),
        files=tuple(part.path for part in parts),
    )


def _read_part(
    path: Path, due: SplitPlace, given: Path, read: Callable[[Path], tuple[GgufHeader, SplitPlace]]
) -> GgufHeader:
    try:
        part, found = read(path)
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise InputError(f"{path}: is missing; {given.name} is one of {due.count} parts", _GATHER) from error
        raise
    if found.count == 1:
        raise InputError(f"{path}: is a model of its own, not part {due.number + 1} of {due.count}", _GATHER)
    if (found.count, found.tensors) != (due.count, due.tensors):
        raise InputError(
            f"{path}: is a part of another model: of {found.count} parts with {found.tensors} tensors, where "
            f"{given.name} is of {due.count} parts with {due.tensors} tensors",
            _GATHER,
        )
    if found.number != due.number:
        raise InputError(f"{path}: is part {found.number + 1} of its model, not {due.number + 1}: renamed", _GATHER)
    return part
