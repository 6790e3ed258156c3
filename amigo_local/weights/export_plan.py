"""What an export will write: each tensor's type, whether it is copied or made anew, and the size to the byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import Quant
from amigo_local.weights.adapter import check_adapter_fits, read_adapter
from amigo_local.weights.architecture import MappedTensor, architecture_of, map_tensors
from amigo_local.weights.ggml_types import FILE_TYPE_IDS, GGML_TYPES, TYPES_BY_NAME
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo, Value, read_header
from amigo_local.weights.gguf_writer import PlannedTensor, carried_fields, file_bytes
from amigo_local.weights.grid_rounding import can_round_on_grid
from amigo_local.weights.imatrix import ImportanceMatrix
from amigo_local.weights.quantization_mix import MIXES, UNPORTED_ARCHITECTURES, tensor_types
from amigo_local.weights.safetensors_file import StoredTensor, read_checkpoint
from amigo_local.weights.weight_change import WeightChange

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_F16 = TYPES_BY_NAME["F16"].id
# Intermediate formats of ggml's own arithmetic and plain integers: nothing writes weights in them.
_UNWRITABLE = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})
# ggml_quantize_requires_imatrix in ggml.c: the kernels abort without one. tensor_requires_imatrix in llama-quant.cpp:
# llama.cpp refuses, but for embedding and head, since the result would be poor.
_ABORT_WITHOUT_IMATRIX = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})
_POOR_WITHOUT_IMATRIX = _ABORT_WITHOUT_IMATRIX | {"IQ3_XXS", "IQ2_S", "IQ1_M"}
_EMBEDDINGS = ("token_embd.weight", "output.weight")


class ExportPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an export decides before it reads a weight. Names are the GGUF's."""

    donor: GgufHeader
    """Gives metadata, tokenizer, chat template and tensor order, and the weights unless `checkpoint` does."""
    file_type: str
    """llama.cpp's name of the mix; of `keep`, the donor's."""
    tensors: tuple[PlannedTensor, ...]
    """In the donor's order."""
    copied: frozenset[str]
    """Carried over byte for byte."""
    on_grid: frozenset[str]
    """Changed and to be rounded on the base's own grid, by chance, so that small changes aren't lost."""
    vision: frozenset[str]
    """Those of a vision tower, which are always copied."""
    places: dict[str, MappedTensor]
    changes: dict[str, WeightChange]
    checkpoint: dict[str, StoredTensor] | None
    """Weights by their checkpoint names, when they don't come from the donor."""
    fields: tuple[bytes, ...]
    file_bytes: int

    @property
    def types(self) -> dict[str, int]:
        """Tensor name -> ggml type id: what the finished file must say."""
        return {tensor.name: tensor.type_id for tensor in self.tensors}


def plan_export(
    base_gguf: Path,
    adapter_dir: Path | None,
    quant: Quant,
    scratch_parent: Path,
    *,
    checkpoint_dir: Path | None = None,
    has_imatrix: bool = False,
    imatrix: ImportanceMatrix | None = None,
    like_llama_cpp: bool = False,
) -> ExportPlan:
    """Reads headers and tables only. `scratch_parent`: where a dry run may put a few kilobytes for a moment.

    `imatrix` is named in the metadata; `has_imatrix` is enough to plan with one that isn't made yet.
    With `checkpoint_dir` the weights come from there and the base only gives types, metadata and vision tower.
    `like_llama_cpp`: what llama_model_quantize makes of the merged float32 file, byte for byte. It loses twice where a
    tensor keeps its type: untouched ones are quantized again, and changes of less than half a step are rounded away
    (grid_rounding.py). Otherwise the former are copied and the latter rounded on the base's grid.
    Raises InputError for an architecture, adapter or mix that isn't supported.
    """
    has_imatrix = has_imatrix or imatrix is not None
    donor = read_header(base_gguf)
    family = architecture_of(donor)
    normal = family.normalize(donor)
    mapped, skipped = map_tensors(normal, family)
    places = {tensor.source.name: tensor for tensor in mapped}
    changes = _changes(adapter_dir, mapped)
    checkpoint = _checkpoint_for(checkpoint_dir, mapped) if checkpoint_dir else None

    types = {tensor.name: tensor.type_id for tensor in donor.tensors}
    if quant != "keep":
        language = [_as_half(tensor) for tensor in normal.tensors if tensor.name not in skipped]
        types |= _mix_types(normal, language, quant.upper(), scratch_parent, has_imatrix)
    tensors = tuple(PlannedTensor(tensor.name, tensor.dimensions, types[tensor.name]) for tensor in donor.tensors)
    copied = frozenset(
        tensor.name
        for tensor in donor.tensors
        if tensor.name not in places
        or (
            checkpoint is None
            and tensor.name not in changes
            and types[tensor.name] == tensor.type_id
            and (not like_llama_cpp or quant == "keep" or len(tensor.dimensions) == 1)
        )
    )
    on_grid = frozenset(
        tensor.name
        for tensor in donor.tensors
        if tensor.name in changes
        and checkpoint is None
        and not like_llama_cpp
        and types[tensor.name] == tensor.type_id
        and can_round_on_grid(tensor.type)
    )
    _refuse_unwritable(donor, [tensor for tensor in tensors if tensor.name not in copied], has_imatrix)
    changed: dict[str, Value] = {}
    if quant != "keep":
        changed = {
            "general.file_type": FILE_TYPE_IDS[quant.upper()],
            "general.quantization_version": _QUANTIZATION_VERSION,
        }
    if imatrix is not None:
        changed |= _imatrix_fields(imatrix)
    fields = tuple(carried_fields(donor, changed))
    return ExportPlan(
        donor=donor,
        file_type=donor.quantization if quant == "keep" else quant.upper(),
        tensors=tensors,
        copied=copied,
        on_grid=on_grid,
        vision=frozenset(skipped),
        places=places,
        changes=changes,
        checkpoint=checkpoint,
        fields=fields,
        file_bytes=file_bytes(fields, tensors, donor.alignment),
    )


def _imatrix_fields(imatrix: ImportanceMatrix) -> dict[str, Value]:
    """What llama-quantize writes (LLM_KV_QUANTIZE_IMATRIX_* in quantize.cpp), with the file's name and not its path."""
    return {
        "quantize.imatrix.file": imatrix.path.name if imatrix.path else "",
        "quantize.imatrix.dataset": ", ".join(imatrix.datasets),
        "quantize.imatrix.entries_count": len(imatrix.entries),
        "quantize.imatrix.chunks_count": imatrix.chunk_count,
    }


def _changes(adapter_dir: Path | None, mapped: Sequence[MappedTensor]) -> dict[str, WeightChange]:
    if adapter_dir is None:
        return {}
    shapes = {tensor.name: tensor.source.shape for tensor in mapped}
    by_checkpoint_name = check_adapter_fits(read_adapter(adapter_dir), shapes)
    return {
        tensor.source.name: by_checkpoint_name[tensor.name] for tensor in mapped if tensor.name in by_checkpoint_name
    }


def _checkpoint_for(directory: Path, mapped: Sequence[MappedTensor]) -> dict[str, StoredTensor]:
    """The checkpoint's tensors. Raises InputError when one is missing or has another shape than in the GGUF."""
    stored = read_checkpoint(directory)
    for tensor in mapped:
        found = stored.get(tensor.name)
        if found is None or found.shape != tensor.source.shape:
            raise InputError(
                f"{directory}: isn't a checkpoint of this model: {tensor.name} is "
                f"{list(found.shape) if found else 'missing'}, expected {list(tensor.source.shape)}",
                "give the checkpoint that `amigo-local unpack` or `amigo-local base` made of it",
            )
    return stored


def _as_half(tensor: TensorInfo) -> TensorInfo:
    """As it would lie in the unquantized file that llama.cpp's rule is about."""
    if not GGML_TYPES[tensor.type_id].is_quantized:
        return tensor
    return msgspec.structs.replace(tensor, type_id=_F16)


def _mix_types(
    header: GgufHeader, tensors: Sequence[TensorInfo], mix: str, scratch_parent: Path, has_imatrix: bool
) -> Mapping[str, int]:
    if mix in MIXES and header.architecture not in UNPORTED_ARCHITECTURES:
        return tensor_types(header, tensors, mix, has_imatrix=has_imatrix)
    from amigo_local.weights.dry_run import dry_run_types  # loads llama.cpp, which a plan of a ported mix needn't

    return dry_run_types(header, tensors, mix, scratch_parent, has_imatrix=has_imatrix)


def _refuse_unwritable(donor: GgufHeader, tensors: Sequence[PlannedTensor], has_imatrix: bool) -> None:
    for tensor in tensors:
        kind = GGML_TYPES[tensor.type_id].name
        if kind in _UNWRITABLE:
            raise InputError(
                f"{donor.path}: {tensor.name} is {kind}, which no changed weight can be written in",
                "choose another quantization than keep",
            )
        needing = _ABORT_WITHOUT_IMATRIX if tensor.name in _EMBEDDINGS else _POOR_WITHOUT_IMATRIX
        if kind in needing and not has_imatrix:
            raise InputError(
                f"{donor.path}: {tensor.name} would be {kind}, which needs an importance matrix", "add --imatrix auto"
            )
