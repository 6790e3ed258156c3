"""A base GGUF with a LoRA adapter added, quantized again by llama.cpp."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, Note, Progress
from amigo_local.domain.recipe import Quant
from amigo_local.weights.adapter import Adapter, LoraModule, check_adapter_fits, delta, read_adapter
from amigo_local.weights.architecture import MappedTensor, architecture_of, map_tensors
from amigo_local.weights.ggml_types import FILE_TYPE_IDS, TYPES_BY_NAME
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo, Value, read_header
from amigo_local.weights.gguf_writer import GgufWriter, carried_fields
from amigo_local.weights.language_model import language_tensors, mended_fields
from amigo_local.weights.quantize import quantize
from amigo_local.weights.rotary_order import to_gguf_rows
from amigo_local.weights.tensor_rows import F16_MAX, Rows, TensorFile, to_bytes

# Quant -> llama.cpp's name of the mix. `keep` needs a quantizer per tensor, which llama_model_quantize is not.
FILE_TYPE_NAMES: dict[Quant, str] = {
    "f16": "F16",
    "bf16": "BF16",
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_k_m": "Q5_K_M",
    "q5_k_s": "Q5_K_S",
    "q4_k_m": "Q4_K_M",
    "q4_k_s": "Q4_K_S",
    "q4_0": "Q4_0",
    "q3_k_m": "Q3_K_M",
}
_UNQUANTIZED = ("F16", "BF16")
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_F32 = TYPES_BY_NAME["F32"]


def export(
    base_gguf: Path, adapter_dir: Path | None, out_file: Path, quant: Quant, emit: Emit, threads: int | None = None
) -> dict[str, Figure]:
    """Writes `out_file`; the base is read in place and no tensor is ever whole in memory.

    Each tensor is dequantized, LoRA is added in float32, and an intermediate GGUF in float16 (a tensor beyond its
    range: float32) goes through llama_model_quantize. Metadata, tokenizer and chat template are the base's byte for
    byte; a vision tower is carried over verbatim. Both working files carry `.partial` in their names and are gone
    afterwards, whatever happens.
    Raises InputError for an architecture, adapter or quantization that isn't supported.
    """
    file_type = file_type_name(quant)
    header = read_header(base_gguf)
    family = architecture_of(header)
    normal = family.normalize(header)
    mapped, skipped = map_tensors(normal, family)
    adapter = None
    if adapter_dir is not None:
        adapter = read_adapter(adapter_dir)
        check_adapter_fits(adapter, {tensor.name: tensor.source.shape for tensor in mapped})
    if out_file.exists() and out_file.samefile(base_gguf):
        raise InputError(f"{out_file}: is the base itself", "give another file to write to")

    intermediate = out_file.with_name(f"{out_file.name}.f16.partial")
    quantized = out_file.with_name(f"{out_file.name}.partial")
    assembled = out_file.with_name(f"{out_file.name}.assembled.partial")
    try:
        if file_type in _UNQUANTIZED:
            wide = _write_language_model(header, normal, mapped, adapter, quantized, file_type, emit)
        else:
            wide = _write_language_model(header, normal, mapped, adapter, intermediate, "F16", emit)
            quantize(intermediate, quantized, file_type, emit, threads)
            intermediate.unlink()
        if skipped or normal != header:
            _assemble(header, quantized, assembled, file_type)
            assembled.replace(quantized)
        _sync(quantized)
        finished = read_header(quantized)
        quantized.replace(out_file)
    finally:
        for path in (intermediate, quantized, assembled):
            path.unlink(missing_ok=True)
    if wide:
        emit(Note(f"{len(wide)} tensors are beyond float16's range and were kept in float32 on the way: {wide[0]} …"))
    types = Counter(tensor.type_name for tensor in finished.tensors)
    return {
        "file_bytes": finished.file_size,
        "quantization": file_type,
        "tensors": len(finished.tensors),
        "tensor_types": ", ".join(f"{count} {name}" for name, count in sorted(types.items())),
        "merged_tensors": len(adapter.modules) if adapter else 0,
        "carried_vision_tensors": len(skipped),
        "beyond_f16": len(wide),
    }


def file_type_name(quant: Quant) -> str:
    """llama.cpp's name of the mix. Raises InputError for `keep`, listing what works."""
    if quant not in FILE_TYPE_NAMES:
        raise InputError(f"quant {quant!r} can't be written yet", f"give one of: {', '.join(FILE_TYPE_NAMES)}")
    return FILE_TYPE_NAMES[quant]


def disk_needed(header: GgufHeader, quant: Quant) -> int:
    """Bytes at the peak of `export`, an upper bound: intermediate and result, twice the result with a vision tower.

    Tensors beyond float16's range, which only reading them would show, are not counted double.
    """
    file_type = file_type_name(quant)
    mapped, skipped = map_tensors(header, architecture_of(header))
    names = {tensor.source.name for tensor in mapped}
    metadata = header.data_offset
    half = final = metadata
    for tensor in header.tensors:
        if tensor.name not in names or len(tensor.dimensions) == 1:
            half += tensor.nbytes
            final += tensor.nbytes
        else:
            half += 2 * tensor.elements
            final += int(tensor.elements * _bits_at_most(tensor, file_type) / 8)
    padding = 2 * header.alignment * len(header.tensors)
    total = final if file_type in _UNQUANTIZED else max(half + final, 2 * final if skipped else 0)
    if file_type in _UNQUANTIZED and skipped:
        total = 2 * final
    return total + padding


def _bits_at_most(tensor: TensorInfo, file_type: str) -> float:
    """Bits a weight of the widest type that a mix gives: Q6_K, or Q8_0 where rows are no multiple of 256."""
    if file_type in _UNQUANTIZED or tensor.dimensions[0] % 32:
        return 16.0
    widest = TYPES_BY_NAME["Q8_0" if file_type == "Q8_0" or tensor.dimensions[0] % 256 else "Q6_K"]
    return widest.block_bytes * 8 / widest.block_size


def _write_language_model(
    header: GgufHeader,
    normal: GgufHeader,
    mapped: list[MappedTensor],
    adapter: Adapter | None,
    path: Path,
    type_name: str,
    emit: Emit,
) -> list[str]:
    """Base plus LoRA in F16 or BF16, vectors verbatim. Returns the names of tensors that had to stay in float32."""
    places = {tensor.source.name: tensor for tensor in mapped}
    kept = language_tensors(header)
    changed = mended_fields(header, normal)
    changed["general.file_type"] = FILE_TYPE_IDS[type_name]
    changed["general.quantization_version"] = _QUANTIZATION_VERSION
    total = sum(tensor.elements for tensor in kept)
    done = 0
    wide: list[str] = []
    fields = carried_fields(header, changed)
    plan = [(tensor.name, tensor.dimensions) for tensor in kept]
    with TensorFile(header) as source, GgufWriter(path, fields, plan, header.alignment) as writer:
        for tensor in kept:
            if len(tensor.dimensions) == 1:
                writer.begin(tensor.name, tensor.type_id)
                for piece in source.raw(tensor):
                    writer.write(piece.tobytes())
            else:
                place = places[tensor.name]
                module = adapter.modules.get(place.name) if adapter else None
                if not _write_matrix(source, writer, place, module, type_name):
                    _write_matrix(source, writer, place, module, "F32")
                    wide.append(tensor.name)
            writer.finish()
            done += tensor.elements
            emit(Progress("merging", done, total, "weights"))
    return wide


def _write_matrix(
    source: TensorFile, writer: GgufWriter, place: MappedTensor, module: LoraModule | None, type_name: str
) -> bool:
    """Writes the tensor's data; False when a value doesn't fit the type, so that it has to begin again."""
    writer.begin(place.source.name, TYPES_BY_NAME[type_name].id)
    if module is not None:
        a, b = module.factors()
        if place.heads:
            b = to_gguf_rows(b, len(b) // place.heads)
    for start, rows in source.chunks(place.source):
        if module is not None:
            rows = rows + delta(a, b[start : start + len(rows)], module.scaling)
        if type_name == "F16" and not _fits_f16(rows):
            return False
        writer.write(to_bytes(rows, type_name))
    return True


def _fits_f16(rows: Rows) -> bool:
    return float(np.abs(rows).max(initial=0.0)) <= F16_MAX


def _assemble(donor: GgufHeader, quantized: Path, out: Path, file_type: str) -> None:
    """The donor's file again with the quantized tensors in the place of its own: metadata and vision as they were."""
    language = read_header(quantized)
    replaced = {tensor.name: tensor for tensor in language.tensors}
    changed: dict[str, Value] = {
        "general.file_type": FILE_TYPE_IDS[file_type],
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    plan = [(tensor.name, tensor.dimensions) for tensor in donor.tensors]
    fields = carried_fields(donor, changed)
    with (
        TensorFile(donor) as carried,
        TensorFile(language) as written,
        GgufWriter(out, fields, plan, donor.alignment) as writer,
    ):
        for tensor in donor.tensors:
            source, file = (replaced[tensor.name], written) if tensor.name in replaced else (tensor, carried)
            writer.begin(tensor.name, source.type_id)
            for piece in file.raw(source):
                writer.write(piece.tobytes())
            writer.finish()


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
