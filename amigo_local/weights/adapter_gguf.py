"""An adapter as llama.cpp applies it at run time: a LoRA GGUF beside the base's, a hundredth of an export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from amigo_local.domain.errors import InputError
from amigo_local.weights.adapter import check_adapter_fits, read_adapter
from amigo_local.weights.architecture import MappedTensor, architecture_of, map_tensors
from amigo_local.weights.disk_space import partial_file
from amigo_local.weights.ggml_types import TYPES_BY_NAME
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.gguf_writer import GgufWriter, PlannedTensor, encode_field, file_bytes
from amigo_local.weights.kernels import Rows
from amigo_local.weights.rotary_order import to_gguf_rows
from amigo_local.weights.tensor_rows import count_nonfinite, to_bytes
from amigo_local.weights.weight_change import EmbeddingLora, LoraModule, WeightChange

# llama.cpp multiplies activations by an F16 matrix in F16, and Gemma's leave its range; F32 is also what
# convert_lora_to_gguf.py writes by default.
_F32 = TYPES_BY_NAME["F32"].id
_EXPORT_HINT = "export the model and measure that: amigo-local export --base REF --adapter DIR"


class _Pair(msgspec.Struct, frozen=True):
    """One tensor of the base and the low-rank change of it."""

    place: MappedTensor
    change: LoraModule | EmbeddingLora

    @property
    def rank(self) -> int:
        return self.change.b.shape[1]

    @property
    def alpha(self) -> float:
        """llama_adapter_lora_weight::get_scale in llama-adapter.h divides it by the rank of this pair's B."""
        return self.change.scaling * self.rank

    def planned(self) -> tuple[PlannedTensor, PlannedTensor]:
        name, (rows, columns) = self.place.source.name, self.place.source.shape
        if isinstance(self.change, EmbeddingLora):
            # Looked up and not multiplied (build_inp_embd in llama-graph.cpp): a row of A for each token.
            a, b = (self.rank, rows), (self.rank, columns)
        else:
            a, b = (columns, self.rank), (self.rank, rows)
        return PlannedTensor(f"{name}.lora_a", a, _F32), PlannedTensor(f"{name}.lora_b", b, _F32)

    def factors(self, alpha: float) -> tuple[Rows, Rows]:
        """(A, B) in the GGUF's order, to be scaled by alpha / rank."""
        a, b = self.change.a.array(), self.change.b.array()
        if self.alpha != alpha:
            b = b * np.float32(self.alpha / alpha)
        if isinstance(self.change, EmbeddingLora):
            return np.ascontiguousarray(a.T), b
        if self.place.heads:
            b = np.ascontiguousarray(to_gguf_rows(b, b.shape[0] // self.place.heads))
        return a, b


def write_adapter_gguf(adapter_dir: Path, base_gguf: Path, out: Path) -> None:
    """Writes PEFT's adapter as convert_lora_to_gguf.py of llama.cpp would, in float32, for this base's tensors.

    The base's header is read, not its weights; in memory is one pair of matrices. LoRA and rsLoRA, with patterns of
    ranks and alphas too, on linear modules and on an embedding that isn't the head as well.
    Raises InputError for DoRA and modules_to_save, which the format can't say, for an adapter of another base, and
    for weights that are NaN or infinite; AmigoError when the disk is full.
    """
    base = read_header(base_gguf)
    if out.exists() and any(out.samefile(path) for path in base.files):
        raise InputError(f"{out}: is the base itself", "give another file to write to")
    family = architecture_of(base)
    mapped, _ = map_tensors(family.normalize(base), family)
    changes = check_adapter_fits(read_adapter(adapter_dir), {tensor.name: tensor.source.shape for tensor in mapped})
    pairs = [_Pair(tensor, _low_rank(adapter_dir, changes[tensor.name])) for tensor in mapped if tensor.name in changes]
    alpha = _shared_alpha(pairs)
    tensors = [planned for pair in pairs for planned in pair.planned()]
    fields = [
        encode_field("general.architecture", base.architecture),
        encode_field("general.type", "adapter"),
        encode_field("adapter.type", "lora"),
        encode_field("adapter.lora.alpha", alpha),
    ]
    with (
        partial_file(out, file_bytes(fields, tensors)) as partial,
        GgufWriter(partial, fields, tensors) as writer,
    ):
        for pair in pairs:
            for planned, rows in zip(pair.planned(), pair.factors(alpha), strict=True):
                if count := count_nonfinite(rows):
                    raise InputError(
                        f"{adapter_dir}: holds {count} values for {planned.name} that are NaN or infinite",
                        "train or download the adapter again",
                    )
                writer.write(planned.name, to_bytes(rows, "f32"))


def _low_rank(adapter_dir: Path, change: WeightChange) -> LoraModule | EmbeddingLora:
    if isinstance(change, LoraModule) and change.magnitude is not None:
        raise InputError(
            f"{adapter_dir}: is DoRA, which rescales whole rows of {change.name}; llama.cpp only adds low-rank changes "
            "to a base",
            _EXPORT_HINT,
        )
    if not isinstance(change, LoraModule | EmbeddingLora):
        raise InputError(
            f"{adapter_dir}: replaces {change.name} (modules_to_save); llama.cpp only adds low-rank changes to a base",
            _EXPORT_HINT,
        )
    return change


def _shared_alpha(pairs: Sequence[_Pair]) -> float:
    """The format has one alpha: the first that isn't 0, which llama.cpp would take for a scale of 1.

    The others' difference from it goes into their B. rsLoRA's is alpha * sqrt(rank).
    """
    return next((pair.alpha for pair in pairs if pair.alpha), 1.0)
