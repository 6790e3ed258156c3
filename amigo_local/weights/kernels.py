"""ggml's own C kernels, from the libraries that llama-cpp-python ships: dequantize, quantize, convert, validate."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.weights.ggml_types import GGML_TYPES, GgmlType

Rows = npt.NDArray[np.float32]
"""(rows, row length) float32."""
Bytes = npt.NDArray[np.uint8]

TESTED_BUILD = "0.3.36"  # of llama-cpp-python: the layout of `_Traits` is this build's
_INSTALL = f"pip install --force-reinstall --no-deps llama-cpp-python=={TESTED_BUILD}"
# By the soname: after `import llama_cpp` the plain name would map a second copy of the library.
_LIBRARIES = {"linux": "libggml-base.so.0", "darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}
# Values given to one call of a slow kernel: long enough that handing it to a thread (50 µs) doesn't count, short
# enough to share evenly. Decoding is so fast that each thread gets one slice.
_SLICE_ELEMENTS = 1 << 17

_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """struct ggml_type_traits in ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


class Kernels:
    """ggml's kernels over numpy arrays; they release the GIL, so that `threads` of them run at once.

    Rows are independent of each other, so the bytes are the same for any number of threads.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._library, self.threads = library, threads
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        self._to_float = {kind.id: self._checked_traits(kind) for kind in GGML_TYPES.values()}
        self._check_arithmetic()

    def _checked_traits(self, kind: GgmlType) -> Callable[[int, int, int], None] | None:
        traits = self._library.ggml_get_type_traits(kind.id).contents
        found = (traits.type_name or b"?").decode("ascii", "replace").upper(), traits.blck_size, traits.type_size
        if found != (kind.name, kind.block_size, kind.block_bytes):
            raise _another_build(f"type {kind.id} is {found}, expected {kind[1:]}")
        return _ToFloat(traits.to_float) if traits.to_float else None

    def _check_arithmetic(self) -> None:
        """Two blocks of known bytes: enough to notice a library whose structs lie elsewhere than believed."""
        scale = np.float16(0.5).tobytes()
        q8_0 = np.frombuffer(scale + bytes(range(32)), np.uint8)
        expected = np.arange(32, dtype=np.float32) / 2
        decoded = self.dequantize(8, q8_0, 32)
        if not np.array_equal(decoded, expected):
            raise _another_build("a Q8_0 block is decoded to other numbers")
        rows = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 256)
        again = self.dequantize(14, self.quantize(14, rows), 256)
        if float(np.abs(again - rows.reshape(-1)).max()) > 0.05:
            raise _another_build("Q6_K does not survive its own round trip")

    def can_dequantize(self, type_id: int) -> bool:
        return type_id == 0 or self._to_float[type_id] is not None

    def dequantize(self, type_id: int, source: Bytes, elements: int, out: Rows | None = None) -> Rows:
        """`source`: contiguous uint8 of whole blocks. Returns (elements,) float32, in `out` when it is given."""
        kind, function = GGML_TYPES[type_id], self._to_float[type_id]
        if source.nbytes * kind.block_size != elements * kind.block_bytes or not source.flags.c_contiguous:
            raise ValueError(f"{source.nbytes} bytes are not {elements} values of {kind.name}")
        target = np.empty(elements, np.float32) if out is None else out.reshape(-1)
        if type_id == 0:
            target.view(np.uint8)[:] = source.reshape(-1)
            return target
        if function is None:
            raise ValueError(f"{kind.name} has no dequantizer")
        start, end = source.ctypes.data, target.ctypes.data

        def work(first: int, count: int) -> None:
            function(start + first // kind.block_size * kind.block_bytes, end + 4 * first, count)

        self.share(elements, kind.block_size, work, max(_SLICE_ELEMENTS, -(-elements // self.threads)))
        return target

    def quantize(self, type_id: int, rows: Rows, weights: Rows | None = None) -> Bytes:
        """(rows, row length) float32 -> (rows, row bytes) uint8. `weights`: (row length,) importance of each column.

        F16 and BF16 round to nearest even. What isn't finite goes in unseen: ask `is_valid` afterwards.
        """
        kind = GGML_TYPES[type_id]
        count, length = rows.shape
        source = np.ascontiguousarray(rows, np.float32)
        out = np.empty((count, length // kind.block_size * kind.block_bytes), np.uint8)
        if length % kind.block_size:
            raise ValueError(f"rows of {length} values are no whole blocks of {kind.name}")
        if weights is None and self._library.ggml_quantize_requires_imatrix(type_id):
            raise ValueError(f"{kind.name} needs an importance matrix")  # ggml would abort the process
        if weights is not None:
            weights = np.ascontiguousarray(weights, np.float32)
            if weights.shape != (length,):
                raise ValueError(f"{weights.shape} importances for rows of {length} values")
        importance = None if weights is None else weights.ctypes.data
        start, end = source.ctypes.data, out.ctypes.data
        self._library.ggml_quantize_init(type_id)  # before threads: it fills tables of the IQ types

        def work(first: int, values: int) -> None:
            self._library.ggml_quantize_chunk(type_id, start, end, first, values // length, length, importance)

        self.share(source.size, length, work)
        return out

    def is_valid(self, type_id: int, data: Bytes) -> bool:
        """Whether all values, or the scales of all blocks, are finite (ggml_validate_row_data; it tells stderr too)."""
        return bool(self._library.ggml_validate_row_data(type_id, data.ctypes.data, data.nbytes))

    def share(
        self,
        elements: int,
        multiple_of: int,
        work: Callable[[int, int], object],
        slice_elements: int = _SLICE_ELEMENTS,
    ) -> None:
        """Calls work(first, count) over [0, elements) in slices of whole rows or blocks, on all threads.

        A kernel called by `work` on no more than its slice runs where it is called.
        """
        step = max(1, -(-slice_elements // multiple_of)) * multiple_of
        starts = range(0, elements, step)
        if self._pool is None or len(starts) < 2:
            work(0, elements)
            return
        list(self._pool.map(lambda first: work(first, min(step, elements - first)), starts))


def _another_build(what: str) -> AmigoError:
    return AmigoError(f"libggml is another build than this program knows: {what}", _INSTALL)


def library_path() -> Path:
    """Of libggml-base. Raises InputError when llama-cpp-python isn't installed, AmigoError when it has no library."""
    found = importlib.util.find_spec("llama_cpp")  # finds without importing: half a second saved
    if found is None or not found.submodule_search_locations:
        raise InputError("llama-cpp-python is not installed: nothing can be dequantized", _INSTALL)
    directory = Path(found.submodule_search_locations[0]) / "lib"
    name = _LIBRARIES.get(sys.platform, _LIBRARIES["linux"])
    if not (directory / name).exists():
        present = ", ".join(sorted(path.name for path in directory.glob("*ggml*"))) or "no libggml"
        raise AmigoError(f"{directory} has no {name}, only: {present}", _INSTALL)
    return directory / name


def load_kernels(threads: int | None = None) -> Kernels:
    """Loads and checks the library once a process and number of threads; None: one for each core.

    Raises InputError when llama-cpp-python is missing, AmigoError when it is a build of another layout.
    """
    return _load(threads or os.cpu_count() or 1)


@functools.cache
def _load(threads: int) -> Kernels:
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        library.ggml_get_type_traits.argtypes = [ctypes.c_int]
        library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
        pointer, number, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
        library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
        library.ggml_quantize_chunk.restype = size
        library.ggml_quantize_init.argtypes = [ctypes.c_int]
        library.ggml_quantize_init.restype = None
        library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
        library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, size]
        library.ggml_validate_row_data.restype = ctypes.c_bool
    except (OSError, AttributeError) as error:
        raise AmigoError(f"{path} can't be used: {error}", _INSTALL) from error
    return Kernels(library, threads)
