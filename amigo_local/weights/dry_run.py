"""Which ggml type each tensor gets, stated by llama.cpp itself about a file that has no data."""

from __future__ import annotations

import ctypes
import re
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import llama_cpp

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.weights.ggml_types import FILE_TYPE_IDS, TYPES_BY_NAME
from amigo_local.weights.gguf_header import ArrayRef, GgufHeader, TensorInfo
from amigo_local.weights.gguf_writer import PlannedTensor, encode_field, encode_head, file_bytes
from amigo_local.weights.llama_cpp_model import QuietLog
from amigo_local.weights.quantization_mix import MIXES

# "[   3/ 292] blk.0.attn_k.weight - [ 4096, 1024, 1, 1], type = f16, size = 8.00 MiB -> 2.25 MiB (q4_K)"; the
# arrow is missing where nothing changes.
_TENSOR_LINE = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), size = [^(\n]*(?:\((\w+)\))?$", re.M)
_FAILURE = re.compile(r"failed to quantize: (.*)")
_NEEDS_IMATRIX = "will require an imatrix"


def dry_run_types(
    header: GgufHeader, tensors: Sequence[TensorInfo], mix: str, scratch_parent: Path, *, has_imatrix: bool = False
) -> dict[str, int]:
    """Tensor name -> ggml type id, in the order in which llama.cpp writes the tensors; `mix` is one of FILE_TYPES.

    `header` must be one that llama.cpp can load (normalized); `tensors` have the types that they have in the file to
    be quantized. A sparse file in `scratch_parent`, some kilobytes on disk, is removed afterwards.
    Raises InputError for a mix that llama.cpp doesn't know or can't state for this model, and for one that needs an
    importance matrix when there is none.
    """
    if mix not in FILE_TYPE_IDS:
        raise InputError(f"{mix!r} is not a quantization mix of llama.cpp", f"give one of: {', '.join(FILE_TYPE_IDS)}")
    with tempfile.TemporaryDirectory(prefix=".dry-run-", dir=scratch_parent) as scratch:
        skeleton = Path(scratch) / "skeleton.gguf"
        _write_skeleton(skeleton, header, tensors)
        failed, said = _ask(skeleton, FILE_TYPE_IDS[mix], has_imatrix)
    if failed:
        reason = next((match[1] for match in _FAILURE.finditer(said)), "it gave no reason")
        raise InputError(
            f"{header.path}: llama.cpp can't say how it would write {mix}: {reason}",
            f"give one of: {', '.join(MIXES)}",
        )
    if _NEEDS_IMATRIX in said:
        raise InputError(
            f"{header.path}: {mix} needs an importance matrix and there is none",
            "add --imatrix auto, or choose a mix that needs none, such as Q3_K_M",
        )
    types = {name: TYPES_BY_NAME[(new or old).upper()].id for name, old, new in _TENSOR_LINE.findall(said)}
    if types.keys() != {tensor.name for tensor in tensors}:
        raise AmigoError(f"{header.path}: llama.cpp named {len(types)} of {len(tensors)} tensors in a dry run")
    return types


def _write_skeleton(path: Path, header: GgufHeader, tensors: Sequence[TensorInfo]) -> None:
    """A GGUF with the architecture's metadata, no tokenizer, and a hole in the place of tensor data."""
    fields = _fields(header)
    plan = [PlannedTensor(tensor.name, tensor.dimensions, tensor.type_id) for tensor in tensors]
    with path.open("wb") as file:
        file.write(encode_head(fields, plan))
        file.truncate(file_bytes(fields, plan))


def _fields(header: GgufHeader) -> list[bytes]:
    """llama.cpp reads an architecture's whole numbers as 32-bit ones only, so that others can be left out."""
    fields = [encode_field("general.architecture", header.architecture)]
    for key, value in header.metadata.items():
        if key.startswith(f"{header.architecture}."):
            try:
                fields.append(encode_field(key, header.array(key) if isinstance(value, ArrayRef) else value))
            except (struct.error, OverflowError):
                continue
    return fields


def _ask(skeleton: Path, file_type: int, has_imatrix: bool) -> tuple[bool, str]:
    """(whether it failed, everything llama.cpp logged)."""
    said: list[bytes] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes
    def listen(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        said.append(text)

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = file_type
    settings.nthread = 1
    settings.dry_run = True
    # The types depend on whether there is a matrix, not on its entries: only the terminator is given.
    terminator = (llama_cpp.llama_model_imatrix_data * 1)()
    if has_imatrix:
        settings.imatrix = terminator
    with QuietLog():  # whose end silences llama.cpp again
        llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
        status = llama_cpp.llama_model_quantize(str(skeleton).encode(), b"", ctypes.byref(settings))
    return status != 0, b"".join(said).decode("utf-8", "replace")
