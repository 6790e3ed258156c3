"""What an adapter does to one weight of its base: LoRA, DoRA, LoRA on an embedding, or a tensor of its own."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from amigo_local.weights.kernels import Rows
from amigo_local.weights.safetensors_file import StoredTensor

Index = slice | npt.NDArray[np.intp]
"""Which rows of the checkpoint's tensor are given, in this order; of a vector, which elements."""
Apply = Callable[[Rows, Index], Rows]
"""(rows of the base in float32, their index) -> the same rows changed; a vector comes as a column."""


def delta(a: Rows, b: Rows, scaling: float) -> Rows:
    """The change of the rows that `b` has, in float32 (Linear.get_delta_weight in peft/tuners/lora/layer.py)."""
    change: Rows = b @ a
    change *= np.float32(scaling)
    return change


class LoraModule(msgspec.Struct, frozen=True):
    """`scaling * B @ A` is added to the (out, in) weight of a linear module; DoRA then rescales each row."""

    name: str
    """Module name without `.weight`: `model.layers.0.self_attn.q_proj`."""
    a: StoredTensor
    """(rank, in)."""
    b: StoredTensor
    """(out, rank)."""
    scaling: float
    magnitude: StoredTensor | None = None
    """DoRA's norm of each row after the change, (out,); None: plain LoRA."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) of the weight that it changes."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def parameters(self) -> int:
        return self.a.elements + self.b.elements + (self.magnitude.elements if self.magnitude else 0)

    def factors(self) -> tuple[Rows, Rows]:
        """(A, B) in float32."""
        return self.a.array(), self.b.array()

    def load(self) -> Apply:
        a, b = self.factors()
        magnitude = self.magnitude.array() if self.magnitude else None

        def apply(rows: Rows, index: Index) -> Rows:
            changed = delta(a, b[index], self.scaling)
            changed += rows
            if magnitude is not None:  # DoraLinearVariant.merge_safe in peft/tuners/lora/variants.py
                norms = np.linalg.norm(changed, axis=1, keepdims=True)
                changed *= magnitude[index][:, None] / norms
            return changed

        return apply


class EmbeddingLora(msgspec.Struct, frozen=True):
    """`scaling * (B @ A).T` is added to a (vocabulary, hidden) embedding."""

    name: str
    a: StoredTensor
    """(rank, vocabulary)."""
    b: StoredTensor
    """(hidden, rank)."""
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.a.shape[1], self.b.shape[0]

    @property
    def parameters(self) -> int:
        return self.a.elements + self.b.elements

    def load(self) -> Apply:
        """Embedding.get_delta_weight in peft/tuners/lora/layer.py, for the rows that are asked for."""
        by_token, b = np.ascontiguousarray(self.a.array().T), np.ascontiguousarray(self.b.array().T)
        return lambda rows, index: rows + delta(b, by_token[index], self.scaling)


class Replacement(msgspec.Struct, frozen=True):
    """A tensor that was trained whole (`modules_to_save`) and takes the base's place."""

    name: str
    tensor: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def parameters(self) -> int:
        return self.tensor.elements

    def load(self) -> Apply:
        if len(self.tensor.shape) == 1:
            column = self.tensor.array().reshape(-1, 1)
            return lambda rows, index: column[index]

        def apply(rows: Rows, index: Index) -> Rows:
            if isinstance(index, slice):
                return self.tensor.rows(index.start, index.stop)
            first = int(index.min())
            return self.tensor.rows(first, int(index.max()) + 1)[index - first]

        return apply


WeightChange = LoraModule | EmbeddingLora | Replacement
