"""A checkpoint of which only the tables and a few rows are here: sparse files with everything else missing."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from amigo_local.domain.errors import InputError
from amigo_local.weights.safetensors_file import INDEX_FILE, SINGLE_FILE, StoredTensor, read_checkpoint

ReadRange = Callable[[str, int, int], bytes]
"""(file, start, stop) -> its bytes [start, stop)."""

_FIRST_READ_BYTES = 64 << 10  # holds the table of most shards, so that one request does
CONFIG_FILE = "config.json"


def weight_files(label: str, sizes: Mapping[str, int], read: ReadRange) -> tuple[str, ...]:
    """The safetensors files of a checkpoint, from its index. `label` is what messages call it.

    Raises InputError when it has none in that format.
    """
    if INDEX_FILE in sizes:
        try:
            index = json.loads(read(INDEX_FILE, 0, sizes[INDEX_FILE]))
            files = tuple(sorted(set(index["weight_map"].values())))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{label}: its {INDEX_FILE} can't be read: {error!r}", "take another repository"
            ) from error
    else:
        files = (SINGLE_FILE,)
    missing = [name for name in files if name not in sizes or "/" in name]
    if missing or CONFIG_FILE not in sizes:
        raise InputError(
            f"{label} holds no {missing[0] if missing else CONFIG_FILE}, so it is no checkpoint in safetensors format",
            "take the repository of the original model, not one of GGUF or .bin files",
        )
    return files


def fetch_outline(directory: Path, label: str, sizes: Mapping[str, int], read: ReadRange) -> dict[str, StoredTensor]:
    """Writes config, index and sparse shards with their tables into `directory`: kilobytes, whatever the model's size.

    The tensors are of the real shapes and lie where they will; rows come with `fetch_rows`. Raises InputError when
    there is no safetensors checkpoint or one of its tables is damaged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, INDEX_FILE):
        if name in sizes:
            (directory / name).write_bytes(read(name, 0, sizes[name]))
    for name in weight_files(label, sizes, read):
        size = sizes[name]
        head = read(name, 0, min(_FIRST_READ_BYTES, size))
        length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
        # A length beyond the file is left for the reader of tables to refuse.
        if len(head) < 8 + length <= size:
            head += read(name, len(head), 8 + length)
        with (directory / name).open("wb") as file:
            file.write(head)
            file.truncate(size)
    return read_checkpoint(directory)


def fetch_rows(tensor: StoredTensor, stop: int, read: ReadRange) -> None:
    """Brings rows [0, stop) to where `tensor.rows` reads them; a vector is one row."""
    end = tensor.offset + tensor.nbytes * stop // (tensor.elements // tensor.row_length)
    with tensor.path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(read(tensor.path.name, tensor.offset, end))
