"""What an NF4 store says of itself, and whether that is still true; read without torch."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from amigo_local.domain.errors import InputError

VERSION = 1
INDEX_FILE, CONFIG_FILE = "index.json", "config.json"
LAYERS_FILE, SMALL_FILE, TABLES_FILE = "layers.nf4", "small.safetensors", "tables.bin"
BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale, and scales that share a scale: bitsandbytes.functional.quantize_4bit's own."""
PACK_ALIGNMENT = 256
"""Of each tensor in a layer's pack: what cudaMalloc aligns to, and more than any kernel's loads need."""
SEGMENT_ALIGNMENT = 1 << 16  # where a mapping may begin: 64 KiB on Windows, pages of up to as much on ARM
_PART_OF_A_MODEL = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_AGAIN = "amigo-local quantize REF makes it again"


def aligned(nbytes: int) -> int:
    return -(-nbytes // PACK_ALIGNMENT) * PACK_ALIGNMENT


def part_bytes(weights: int) -> tuple[int, int, int]:
    """Of one linear: codes, two a byte; uint8 scale codes, one a block; f32 scales of those, one a nested block."""
    blocks = -(-weights // BLOCK)
    return -(-weights // 2), blocks, 4 * -(-blocks // NESTED_BLOCK)


class Nf4Linear(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One linear of a layer."""

    module: str
    """Within the layer: `self_attn.q_proj`."""
    rows: int
    """out_features."""
    columns: int
    """in_features."""
    offset: float
    """Float32 that is added to the decoded scales (QuantState.offset)."""
    error: float
    """Relative RMS error of NF4 against the source."""


class LayerSegment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one layer's pack lies in layers.nf4; nf4_store.layer_layout says what lies where within it."""

    offset: int
    nbytes: int
    linears: tuple[Nf4Linear, ...]


class SourceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the source that holds tables, as it was when the store was built."""

    path: str
    nbytes: int
    mtime_ns: int


class TableEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The embedding or the head: not copied, but read where the source has it, in the source's own type."""

    name: str
    """In the checkpoint: `model.embed_tokens.weight`."""
    file: int | None
    """Index into StoreIndex.files; None: tables.bin of the store, for a type that torch can't decode."""
    offset: int
    nbytes: int
    type_name: str
    """ggml's name: Q6_K, Q8_0, F16, BF16, F32 …"""
    rows: int
    columns: int


class StoreIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """index.json. Written last: a directory without it is no store."""

    version: int = VERSION
    source_digest: str
    bitsandbytes: str
    """Version whose quantizer this is."""
    blocksize: int = BLOCK
    nested_blocksize: int = NESTED_BLOCK
    files: tuple[SourceFile, ...]
    tables: tuple[TableEntry, ...]
    layers: tuple[LayerSegment, ...]
    sizes: dict[str, int]
    """Bytes of each other file of the store but config.json."""


class _Versioned(msgspec.Struct):
    version: int


def read_index(directory: Path) -> StoreIndex:
    """Raises InputError when it isn't there, damaged, or of another version."""
    path = directory / INDEX_FILE
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Versioned).version
        if version != VERSION:
            raise InputError(f"{path}: NF4 store of version {version}, expected {VERSION}", _AGAIN)
        index = msgspec.json.decode(data, type=StoreIndex)
    except OSError as error:
        raise InputError(f"{directory} is no NF4 store: {INDEX_FILE}: {error.strerror or error}", _AGAIN) from error
    except msgspec.MsgspecError as error:
        raise InputError(f"{path}: damaged index of an NF4 store: {error}", _AGAIN) from error
    if (index.blocksize, index.nested_blocksize) != (BLOCK, NESTED_BLOCK):
        found = f"blocks of {index.blocksize} and {index.nested_blocksize}"
        raise InputError(f"{path}: {found}, expected {BLOCK} and {NESTED_BLOCK}", _AGAIN)
    return index


def check_store(directory: Path, *, source_digest: str | None = None, source: Path | None = None) -> StoreIndex:
    """Compares the sizes of all files of the store, and of those in which its tables lie, with what it says.

    `source_digest`: what the source must have had; given by one who has just looked, it also vouches that the files
    with the tables hold what they held. Without it they must not have been written to since. `source`: where the GGUF
    (any part of a split one) or the checkpoint directory lies now; None: where it lay.
    Raises InputError for a store that is none, truncated, of another version or another source, and for a source
    that is gone or changed.
    """
    index = read_index(directory)
    if source_digest is not None and index.source_digest != source_digest:
        raise InputError(
            f"{directory} is the NF4 store of another model: made from {index.source_digest}, expected {source_digest}",
            _AGAIN,
        )
    for name, expected in index.sizes.items():
        _check_size(directory / name, expected, "truncated or incomplete NF4 store")
    for file in index.files:
        path = located(file, source)
        _check_size(path, file.nbytes, f"holds the embedding of the NF4 store {directory} and changed since")
        if source_digest is None and path.stat().st_mtime_ns != file.mtime_ns:
            raise InputError(f"{path}: written to after the NF4 store {directory} was made from it", _AGAIN)
    ends = [(LAYERS_FILE, layer.offset + layer.nbytes, index.sizes.get(LAYERS_FILE, 0)) for layer in index.layers]
    for table in index.tables:
        size = index.sizes.get(TABLES_FILE, 0) if table.file is None else index.files[table.file].nbytes
        ends.append((table.name, table.offset + table.nbytes, size))
    for name, end, size in ends:
        if end > size:
            raise InputError(f"{directory / INDEX_FILE}: damaged: {name} ends at {end} of {size} bytes", _AGAIN)
    return index


def located(file: SourceFile, source: Path | None) -> Path:
    """Where a file of the source lies, if the source lies at `source` now."""
    recorded = Path(file.path)
    if source is None:
        return recorded
    if source.is_dir():
        return source / recorded.name
    # Parts of one model keep their names; a single file may bear any.
    return source.with_name(recorded.name) if _PART_OF_A_MODEL.search(recorded.name) else source


def _check_size(path: Path, expected: int, what: str) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: {what}: {error.strerror or error}", _AGAIN) from error
    if found != expected:
        raise InputError(f"{path}: {what}: {found} bytes, expected {expected}", _AGAIN)
