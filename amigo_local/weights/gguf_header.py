"""Reading a GGUF file's metadata and tensor table strictly and cheaply, without numpy or gguf-py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.shape import ModelShape
from amigo_local.weights.ggml_types import FILE_TYPES
from amigo_local.weights.gguf_array import ArrayRef, FieldPlaces, Items, Scalar
from amigo_local.weights.gguf_cursor import (
    HINT,
    MAX_FIELDS,
    MAX_KEY_BYTES,
    MAX_TENSORS,
    Cursor,
    Source,
    TensorInfo,
    Value,
    described,
    open_source,
    shown,
)
from amigo_local.weights.gguf_split import SPLIT_KEYS, SplitPlace, join_parts, split_place

__all__ = ["ArrayRef", "GgufHeader", "Items", "Scalar", "TensorInfo", "Value", "model_shape", "parse", "read_header"]

_Item = TypeVar("_Item", int, float, str)
_MAX_SIZE = (1 << 31) - 1  # of a dimension or count that llama.cpp reads into an int32_t or uint32_t
_MAX_FLOAT32 = 3.4028235e38
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MAX_ALIGNMENT = 1 << 16  # the largest page of memory; usual is 32, and every tensor may be padded by as much
_MAX_ARCHITECTURE_CHARACTERS = 64
_NOT_A_LANGUAGE_MODEL = "give a language model's GGUF, not an adapter or a projector"


class GgufHeader(msgspec.Struct, frozen=True):
    """A model's metadata and tensors, of all its files. The metadata and its bytes are in the first file."""

    path: Path
    """The first file."""
    version: int
    file_size: int
    """Bytes of all files."""
    alignment: int
    data_offset: int
    metadata: dict[str, Value]
    """Without the `split.` keys, which tell of a file and not of the model."""
    raw_fields: Mapping[str, tuple[int, int]]
    """Key -> the [start, end) bytes of its whole entry, to carry it over verbatim."""
    tensors: tuple[TensorInfo, ...]
    files: tuple[Path, ...] = ()
    """Where the tensors are, by TensorInfo.file; without any given, (path,)."""

    def __post_init__(self) -> None:
        if not self.files:
            msgspec.structs.force_setattr(self, "files", (self.path,))

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
        return value if type(value) is int and 1 <= value <= _MAX_SIZE else None

    @property
    def chat_template(self) -> str | None:
        value = self.metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) and value else None

    @property
    def quantization(self) -> str:
        """`Q4_K_M` as `general.file_type` states it, else the type that most bytes are in."""
        stated = self.metadata.get("general.file_type")
        if type(stated) is int and stated in FILE_TYPES:
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
        """The value of `<architecture>.<key>`, of whatever type the file gave it."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def count(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number `<architecture>.<key>` from `least` up; where it is one per layer, the largest.

        Raises InputError naming the key when it is missing, without a default, or anything else.
        """
        value = self.of_architecture(key, default)
        if isinstance(value, tuple | Items) or (isinstance(value, ArrayRef) and value.count <= _MAX_LAYERS):
            value = max(self.array(f"{self.architecture}.{key}"), default=None)
        if type(value) is not int or not least <= value <= _MAX_SIZE:
            expected = f"a whole number from {least} to {_MAX_SIZE}"
            raise self._unfit(key, value, expected, _NOT_A_LANGUAGE_MODEL)
        return value

    @property
    def layers(self) -> int:
        """`block_count`; raises InputError when it is missing or more than llama.cpp takes, so that a loop ends."""
        layers = self.count("block_count")
        if layers > _MAX_LAYERS:
            raise InputError(f"{self.path}: {layers} layers, llama.cpp takes at most {_MAX_LAYERS}", HINT)
        return layers

    def real(self, key: str, default: float | None = None, *, above: float = -math.inf) -> float:
        """A finite number `<architecture>.<key>` in the range of float32; raises InputError as `count` does."""
        value = self.of_architecture(key, default)
        if type(value) not in (int, float) or not above < value or not abs(value) <= _MAX_FLOAT32:
            expected = "a finite number" if above == -math.inf else f"a finite number above {above:g}"
            raise self._unfit(key, value, expected, HINT)
        return float(value)

    def _unfit(self, key: str, value: object, expected: str, hint: str) -> InputError:
        name = f"{shown(self.architecture)}.{key}"
        return InputError(f"{self.path}: {name} is {described(value)}, expected {expected}", hint)

    def array(self, key: str) -> Sequence[Scalar]:
        """A whole array; empty when there is none, one item for a single value. Long ones are read from the file.

        Raises InputError when the file is gone or another by now.
        """
        value = self.metadata.get(key, ())
        if isinstance(value, ArrayRef):
            with open_source(self.path) as source:
                raw = source.read(value.offset, value.size)
            return Items.decode(value.item_type, value.count, raw, f"{self.path}: {shown(key)}")
        return value if isinstance(value, tuple | Items) else (value,)

    def length(self, key: str) -> int:
        """How many items `array` gives, without reading them."""
        value = self.metadata.get(key, ())
        return value.count if isinstance(value, ArrayRef) else len(self.array(key))

    def list_of(self, kind: type[_Item], key: str) -> Sequence[_Item]:
        """As `array`; raises InputError when an item is of another type than `kind`: int, float or str."""
        items = self.array(key)
        # The items of an array in the file are all of one type.
        if items and type(items[0]) is not kind:
            found = f"holds {described(items[0])}, expected {kind.__name__} items"
            raise InputError(f"{self.path}: {shown(key)} {found}", HINT)
        return cast(Sequence[_Item], items)


def read_header(path: Path) -> GgufHeader:
    """Parses GGUF v2 and v3 (ggml/docs/gguf.md); from any part of a split model, the whole model's header.

    Nothing is believed before it is checked against the file's size: no header takes a second, or ten times its
    file's bytes of memory.
    Raises InputError for anything that is no GGUF, truncated, hostile, big-endian or of an unknown version or type,
    and when a part is missing or of another model.
    """
    header, place = _read_file(path)
    if place.count > 1:
        header = join_parts(header, place, _read_file)
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not 1 <= len(architecture) <= _MAX_ARCHITECTURE_CHARACTERS:
        raise InputError(f"{header.path}: the GGUF doesn't say its general.architecture", HINT)
    return header


def _read_file(path: Path) -> tuple[GgufHeader, SplitPlace]:
    with open_source(path) as source:
        return parse(source)


def parse(source: Source) -> tuple[GgufHeader, SplitPlace]:
    """One file's header, which needn't name an architecture where it is a later part."""
    cursor, path = Cursor(source), source.path
    if source.read(0, min(4, source.size)) != b"GGUF":
        raise InputError(f"{path}: not a GGUF file", "give a .gguf file or an Ollama tag")
    _, version = cursor.unpack("II", "the version")
    if version in (1 << 24, 2 << 24, 3 << 24):
        raise InputError(f"{path}: big-endian GGUF, only little-endian is read", "take the little-endian file")
    if version not in (2, 3):
        raise InputError(f"{path}: GGUF version {version}, expected 2 or 3", HINT)
    tensor_count, field_count = cursor.unpack("QQ", "the header")
    # The smallest field is 8 + 1 + 4 + 1 bytes, the smallest tensor entry 8 + 1 + 4 + 8 + 12.
    cursor.need(14 * field_count + 33 * tensor_count, f"{field_count} fields and {tensor_count} tensors")
    for count, most, what in ((field_count, MAX_FIELDS, "fields"), (tensor_count, MAX_TENSORS, "tensors")):
        if count > most:
            raise cursor.fail(f"{count} {what} are announced, more than {most} make no sense")

    metadata: dict[str, Value] = {}
    raw_fields = FieldPlaces()
    for _ in range(field_count):
        start = cursor.position
        key = cursor.identifier("a key", MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.fail(f"the key {shown(key)} is there twice")
        metadata[key] = cursor.value(key)
        if key not in SPLIT_KEYS:
            raw_fields.append(key, start, cursor.position)
    place = split_place(path, metadata)
    for key in SPLIT_KEYS:
        metadata.pop(key, None)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.fail(
            f"general.alignment is {described(alignment)}, expected a power of two up to {_MAX_ALIGNMENT}"
        )

    tensors = [cursor.tensor() for _ in range(tensor_count)]
    data_offset = -(-cursor.position // alignment) * alignment
    for i, tensor in enumerate(tensors):
        tensors[i] = _placed(cursor, tensor, data_offset, alignment)
    _refuse_overlaps(cursor, tensors)
    header = GgufHeader(path, version, cursor.size, alignment, data_offset, metadata, raw_fields, tuple(tensors))
    return header, place


def _placed(cursor: Cursor, entry: TensorInfo, data_offset: int, alignment: int) -> TensorInfo:
    tensor = msgspec.structs.replace(entry, offset=data_offset + entry.offset)
    if entry.offset % alignment:
        raise cursor.fail(f"tensor {tensor.name} lies at {entry.offset}, which is not aligned to {alignment} bytes")
    if tensor.offset + tensor.nbytes > cursor.size:
        raise InputError(
            f"{cursor.path}: truncated GGUF: tensor {tensor.name} ends at byte {tensor.offset + tensor.nbytes}, "
            f"the file has {cursor.size}",
            HINT,
        )
    return tensor


def _refuse_overlaps(cursor: Cursor, tensors: list[TensorInfo]) -> None:
    for name, following in itertools.pairwise(sorted(tensor.name for tensor in tensors)):
        if name == following:
            raise cursor.fail(f"the tensor {name} is there twice")
    in_file = sorted(tensors, key=lambda tensor: tensor.offset)
    for first, second in itertools.pairwise(in_file):
        if first.offset + first.nbytes > second.offset:
            raise cursor.fail(f"tensors {first.name} and {second.name} overlap")


def model_shape(header: GgufHeader) -> ModelShape:
    """The dimensions of a decoder-only transformer. Raises InputError naming the key that is missing or absurd."""
    embedding = header.tensor("token_embd.weight")
    heads, hidden = header.count("attention.head_count"), header.count("embedding_length")
    names = header.tensor_names
    window, sliding_layers = _sliding(header)
    return ModelShape(
        architecture=header.architecture,
        hidden_size=hidden,
        intermediate_size=header.count("feed_forward_length"),
        layers=header.layers,
        heads=heads,
        kv_heads=header.count("attention.head_count_kv", heads),
        head_dim=header.count("attention.key_length", hidden // heads),
        vocabulary=embedding.dimensions[-1],
        context_length=header.count("context_length"),
        tied_embeddings="output.weight" not in names,
        sliding_window=window,
        sliding_layers=sliding_layers,
        qk_norms="blk.0.attn_q_norm.weight" in names,
        post_norms="blk.0.post_ffw_norm.weight" in names,
        attention_bias="blk.0.attn_q.bias" in names,
    )


def _sliding(header: GgufHeader) -> tuple[int | None, int]:
    """(window, how many layers have it): a list or a period, else llama.cpp's own period of the family
    (llama_hparams::set_swa_pattern: all but the last layer of each period); others slide in every layer."""
    window, layers = header.count("attention.sliding_window", 0, least=0), header.layers
    if window == 0:
        return None, 0
    key = "attention.sliding_window_pattern"
    period = header.of_architecture(key, {"gemma2": 2, "gemma3": 6}.get(header.architecture, 0))
    if type(period) is int:
        sliding = layers - layers // period if period > 0 else layers
    else:
        sliding = sum(1 for flag in header.array(f"{header.architecture}.{key}") if flag)
    return (window, min(sliding, layers)) if sliding else (None, 0)
