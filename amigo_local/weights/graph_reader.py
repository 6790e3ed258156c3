"""Tensors of llama.cpp's graphs as they lie in memory, through ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from amigo_local.domain.errors import AmigoError
from amigo_local.weights.kernels import TESTED_BUILD, library_path

F32, I32 = 0, 26  # enum ggml_type
_OBJECT_BYTES = 32  # GGML_OBJECT_SIZE


class Tensor(ctypes.Structure):
    """struct ggml_tensor in ggml.h."""


Tensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
)


class _InitParams(ctypes.Structure):
    """struct ggml_init_params in ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class GraphReader:
    """Reads nodes of a graph that llama.cpp evaluates.

    Raises AmigoError when the library's struct ggml_tensor is not the one above.
    """

    def __init__(self) -> None:
        self._library = library = ctypes.CDLL(str(library_path()))
        pointer, number = ctypes.POINTER(Tensor), ctypes.c_int64
        library.ggml_init.argtypes, library.ggml_init.restype = [_InitParams], ctypes.c_void_p
        library.ggml_free.argtypes, library.ggml_free.restype = [ctypes.c_void_p], None
        library.ggml_new_tensor_3d.argtypes = [ctypes.c_void_p, ctypes.c_int, number, number, number]
        library.ggml_new_tensor_3d.restype = pointer
        library.ggml_mul_mat.argtypes, library.ggml_mul_mat.restype = [ctypes.c_void_p, pointer, pointer], pointer
        library.ggml_mul_mat_id.argtypes = [ctypes.c_void_p, pointer, pointer, pointer]
        library.ggml_mul_mat_id.restype = pointer
        library.ggml_set_name.argtypes, library.ggml_set_name.restype = [pointer, ctypes.c_char_p], pointer
        library.ggml_op_name.argtypes, library.ggml_op_name.restype = [ctypes.c_int], ctypes.c_char_p
        library.ggml_nbytes.argtypes, library.ggml_nbytes.restype = [pointer], ctypes.c_size_t
        library.ggml_tensor_overhead.argtypes, library.ggml_tensor_overhead.restype = [], ctypes.c_size_t
        library.ggml_backend_tensor_get.argtypes = [pointer, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        library.ggml_backend_tensor_get.restype = None
        context = library.ggml_init(_InitParams(1 << 16, None, True))
        try:
            self.multiply, self.multiply_by_expert = self._check_layout(context)
        finally:
            library.ggml_free(context)

    def _check_layout(self, context: int) -> tuple[int, int]:
        """Has the library make tensors of known kinds and looks for them through the struct. Returns the ids of
        GGML_OP_MUL_MAT and GGML_OP_MUL_MAT_ID."""
        library = self._library
        weight = library.ggml_new_tensor_3d(context, F32, 4, 6, 3)
        given = library.ggml_new_tensor_3d(context, F32, 4, 2, 5)
        experts = library.ggml_new_tensor_3d(context, I32, 2, 5, 1)
        library.ggml_set_name(weight, b"blk.0.probe.weight")
        plain = library.ggml_mul_mat(context, library.ggml_new_tensor_3d(context, F32, 4, 6, 1), given)[0]
        chosen = library.ggml_mul_mat_id(context, weight, given, experts)[0]
        if not (
            library.ggml_tensor_overhead() == ctypes.sizeof(Tensor) + _OBJECT_BYTES
            and library.ggml_op_name(plain.op) == b"MUL_MAT"
            and library.ggml_op_name(chosen.op) == b"MUL_MAT_ID"
            and [_address(chosen.src[i]) for i in range(4)] == [*map(_address, (weight, given, experts)), None]
            and (list(chosen.ne), list(plain.ne)) == ([6, 2, 5, 1], [6, 2, 5, 1])
            and (list(weight[0].nb), experts[0].type) == ([4, 16, 96, 288], I32)
            and weight[0].name == b"blk.0.probe.weight"
        ):
            raise AmigoError(
                f"llama.cpp's struct ggml_tensor is laid out otherwise than in llama-cpp-python {TESTED_BUILD}",
                f"pip install --force-reinstall --no-deps llama-cpp-python=={TESTED_BUILD}",
            )
        return plain.op, chosen.op

    def values(self, pointer: Any, dtype: type[np.float32] | type[np.int32]) -> npt.NDArray[Any]:
        """A copy of a tensor of 4-byte numbers, wherever it lies: (ne[3], ne[2], ne[1], ne[0])."""
        tensor = pointer[0]
        raw = np.empty(self._library.ggml_nbytes(pointer), np.uint8)
        self._library.ggml_backend_tensor_get(pointer, raw.ctypes.data, 0, raw.nbytes)
        return np.ndarray(tuple(tensor.ne)[::-1], dtype, raw.data, strides=tuple(tensor.nb)[::-1])


def _address(pointer: Any) -> int | None:
    return ctypes.cast(pointer, ctypes.c_void_p).value
