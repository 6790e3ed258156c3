"""Reading a GGUF file's metadata and tensor table strictly and cheaply, without numpy or gguf-py."""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.shape import ModelShape
from amigo_local.weights.ggml_types import FILE_TYPES
from amigo_local.weights.gguf_cursor import HINT, MAX_KEY_BYTES, ArrayRef, Cursor, Scalar, TensorInfo, Value

__all__ = ["ArrayRef", "GgufHeader", "Scalar", "TensorInfo", "Value", "model_shape", "read_header"]


class GgufHeader(msgspec.Struct, frozen=True):
    """What a GGUF file says about itself."""

    path: Path
    version: int
    file_size: int
    alignment: int
    data_offset: int
    metadata: dict[str, Value]
    raw_fields: dict[str, tuple[int, int]]
    """Key -> the [start, end) bytes of its whole entry, to carry it over verbatim."""
    tensors: tuple[TensorInfo, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def tensor_names(self) -> frozenset[str]:
        return frozenset(tensor.name for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Elements of all tensors, a vision tower included."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def context_length(self) -> int | None:
        value = self.of_architecture("context_length")
        return int(value) if isinstance(value, int) else None

    @property
    def chat_template(self) -> str | None:
        value = self.metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) and value else None

    @property
    def quantization(self) -> str:
        """`Q4_K_M` as `general.file_type` states it, else the type that most bytes are in."""
        stated = self.metadata.get("general.file_type")
        if isinstance(stated, int) and stated in FILE_TYPES:
            return FILE_TYPES[stated]
        totals: dict[str, int] = {}
        for tensor in self.tensors:
            totals[tensor.type_name] = totals.get(tensor.type_name, 0) + tensor.nbytes
        return max(totals, key=lambda name: totals[name], default="none")

    def tensor(self, name: str) -> TensorInfo:
        """Raises InputError when the file has no such tensor."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise InputError(f"{self.path}: has no tensor {name}", HINT)

    def of_architecture(self, key: str, default: Any = None) -> Any:
        """The value of `<architecture>.<key>`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def array(self, key: str) -> tuple[Scalar, ...]:
        """A whole array; empty when there is none. Reads long ones from the file."""
        value = self.metadata.get(key, ())
        if not isinstance(value, ArrayRef):
            return value if isinstance(value, tuple) else (value,)
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return Cursor(data, self.path, value.offset).items(value.item_type, value.count)


def _open_error(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: can't be read: {error.strerror or error}", "check the path and its permissions")


def read_header(path: Path) -> GgufHeader:
    """Parses GGUF v2 and v3 (ggml/docs/gguf.md); nothing is believed before it is checked against the file size.

    Raises InputError for anything that is no GGUF, truncated, hostile, big-endian or of an unknown version or type.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(f"{path}: not a GGUF file", "give a .gguf file or an Ollama tag")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(Cursor(data, path, 4))
    except OSError as error:
        raise _open_error(path, error) from error


def _parse(cursor: Cursor) -> GgufHeader:
    path = cursor.path
    (version,) = cursor.unpack("I", "the version")
    if version in (2 << 24, 3 << 24):
        raise InputError(f"{path}: big-endian GGUF, only little-endian is read", "take the little-endian file")
    if version not in (2, 3):
        raise InputError(f"{path}: GGUF version {version}, expected 2 or 3", HINT)
    tensor_count, field_count = cursor.unpack("QQ", "the header")
    # The smallest field is 8 + 4 + 1 bytes, the smallest tensor entry 8 + 4 + 8 + 12.
    cursor.need(13 * field_count + 32 * tensor_count, f"{field_count} fields and {tensor_count} tensors")

    metadata: dict[str, Value] = {}
    raw_fields: dict[str, tuple[int, int]] = {}
    for _ in range(field_count):
        start = cursor.position
        key = cursor.text("a key", MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.fail(f"key {key} is there twice")
        metadata[key] = cursor.value(key)
        raw_fields[key] = (start, cursor.position)
    if not isinstance(metadata.get("general.architecture"), str):
        raise InputError(f"{path}: the GGUF doesn't say its general.architecture", HINT)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {alignment!r}, expected a power of two")

    entries = [cursor.tensor() for _ in range(tensor_count)]
    data_offset = -(-cursor.position // alignment) * alignment
    tensors = tuple(_placed(cursor, entry, data_offset, alignment) for entry in entries)
    _refuse_overlaps(cursor, tensors)
    return GgufHeader(path, version, cursor.size, alignment, data_offset, metadata, raw_fields, tensors)


def _placed(cursor: Cursor, entry: TensorInfo, data_offset: int, alignment: int) -> TensorInfo:
    tensor = msgspec.structs.replace(entry, offset=data_offset + entry.offset)
    if entry.offset % alignment:
        raise cursor.fail(f"tensor {tensor.name} is not aligned to {alignment} bytes")
    if tensor.offset + tensor.nbytes > cursor.size:
        raise InputError(
            f"{cursor.path}: truncated GGUF: tensor {tensor.name} ends at byte {tensor.offset + tensor.nbytes}, "
            f"the file has {cursor.size}",
            HINT,
        )
    return tensor


def _refuse_overlaps(cursor: Cursor, tensors: tuple[TensorInfo, ...]) -> None:
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise cursor.fail("a tensor name is there twice")
    in_file = sorted(tensors, key=lambda tensor: tensor.offset)
    for first, second in itertools.pairwise(in_file):
        if first.offset + first.nbytes > second.offset:
            raise cursor.fail(f"tensors {first.name} and {second.name} overlap")


def model_shape(header: GgufHeader) -> ModelShape:
    """The dimensions of a decoder-only transformer. Raises InputError naming the key that is missing."""

    def number(key: str, default: int | None = None) -> int:
        value = header.of_architecture(key, default)
        if isinstance(value, tuple) and value:
            value = max(value)  # per-layer values: plan for the widest
        if not isinstance(value, int) or value < 1:
            raise InputError(
                f"{header.path}: {header.architecture}.{key} is {value!r}, expected a positive whole number",
                "give a language model's GGUF, not an adapter or a projector",
            )
        return value

    embedding = header.tensor("token_embd.weight")
    heads = number("attention.head_count")
    hidden = number("embedding_length")
    return ModelShape(
        architecture=header.architecture,
        hidden_size=hidden,
        intermediate_size=number("feed_forward_length"),
        layers=number("block_count"),
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_dim=number("attention.key_length", hidden // heads),
        vocabulary=embedding.dimensions[-1],
        context_length=number("context_length"),
        tied_embeddings="output.weight" not in header.tensor_names,
    )
