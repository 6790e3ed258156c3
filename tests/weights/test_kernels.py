from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.weights import kernels
from amigo_local.weights.ggml_types import GGML_TYPES, TYPES_BY_NAME
from amigo_local.weights.kernels import Kernels, load_kernels

WRITABLE = [
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ3_XXS", "IQ4_NL", "IQ3_S", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"),
    # ggml builds tables of neighbours for these: 8 and 17 seconds.
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("IQ2_S", "IQ1_M")),
]


def _rows(count: int = 24, length: int = 512) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.standard_normal((count, length), dtype=np.float32) * np.float32(0.05)


@pytest.mark.parametrize("name", WRITABLE)
def test_decoding_is_gguf_pys_bit_for_bit(name: str) -> None:
    kind, rows = TYPES_BY_NAME[name], _rows()
    data = load_kernels().quantize(kind.id, rows)
    decoded = load_kernels().dequantize(kind.id, data, rows.size).reshape(rows.shape)
    reference = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.id))
    assert np.array_equal(decoded, reference.astype(np.float32))
    assert data.shape == (24, 512 // kind.block_size * kind.block_bytes)
    # IQ1_M, at 1.75 bits, is the worst; TQ1_0 and TQ2_0 are for weights that are ternary already.
    assert np.linalg.norm(decoded - rows) < (1.0 if name.startswith("TQ") else 0.7) * np.linalg.norm(rows)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_quantizing_is_gguf_pys_where_it_can(name: str) -> None:
    kind, rows = TYPES_BY_NAME[name], _rows()
    reference = gguf.quants.quantize(rows, gguf.GGMLQuantizationType(kind.id)).view(np.uint8)
    ours = load_kernels().quantize(kind.id, rows)
    # Where the compiler fused a multiplication and an addition, a value halfway between two steps may go the other way.
    assert (ours != reference.reshape(ours.shape)).mean() < 0.005


def test_halves_round_to_nearest_even_as_torch_does() -> None:
    bits = np.concatenate([np.arange(0, 1 << 32, 65521, dtype=np.uint64), [0x3F808000, 0x3F818000, 0x33000000]])
    values = bits.astype(np.uint32).view(np.float32)
    values = np.ascontiguousarray(values[np.isfinite(values)])
    for kind, dtype in ((TYPES_BY_NAME["F16"], torch.float16), (TYPES_BY_NAME["BF16"], torch.bfloat16)):
        ours = load_kernels().quantize(kind.id, values.reshape(1, -1)).view(np.uint16).reshape(-1)
        theirs = torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16)
        assert np.array_equal(ours, theirs), kind.name


def test_threads_change_no_byte() -> None:
    rows = _rows(4096, 768)  # 24 slices
    for name in ("Q4_K", "Q6_K", "Q8_0", "BF16"):
        kind = TYPES_BY_NAME[name]
        one, three = (load_kernels(threads).quantize(kind.id, rows) for threads in (1, 3))
        assert np.array_equal(one, three)
        decoded = [load_kernels(threads).dequantize(kind.id, one, rows.size) for threads in (1, 3)]
        assert np.array_equal(*decoded)


def test_importance_moves_the_error_away_from_what_counts() -> None:
    rows = _rows()
    weights = np.full(512, 1e-3, np.float32)
    weights[::8] = 1.0
    kind = TYPES_BY_NAME["Q4_K"]
    errors = []
    for given in (None, weights):
        data = load_kernels().quantize(kind.id, rows, given)
        decoded = load_kernels().dequantize(kind.id, data, rows.size).reshape(rows.shape)
        errors.append(float(np.linalg.norm((decoded - rows)[:, ::8])))
    assert errors[1] < 0.8 * errors[0]


def test_what_is_not_finite_is_noticed() -> None:
    """Not in K-quants, which swallow an infinity in silence: what goes into them is looked at before."""
    for name in ("F32", "F16", "BF16", "Q8_0"):
        kind = TYPES_BY_NAME[name]
        rows = _rows()
        assert load_kernels().is_valid(kind.id, load_kernels().quantize(kind.id, rows))
        rows[3, 7] = np.inf
        assert not load_kernels().is_valid(kind.id, load_kernels().quantize(kind.id, rows)), name


def test_impossible_sizes_never_reach_the_library() -> None:
    q4_k, iq2 = TYPES_BY_NAME["Q4_K"].id, TYPES_BY_NAME["IQ2_XXS"].id
    with pytest.raises(ValueError, match="no whole blocks of Q4_K"):
        load_kernels().quantize(q4_k, _rows(2, 320))
    with pytest.raises(ValueError, match="143 bytes are not 256 values of Q4_K"):
        load_kernels().dequantize(q4_k, np.zeros(143, np.uint8), 256)
    with pytest.raises(ValueError, match="importances for rows of 512"):
        load_kernels().quantize(q4_k, _rows(), np.ones(256, np.float32))
    with pytest.raises(ValueError, match="IQ2_XXS needs an importance matrix"):
        load_kernels().quantize(iq2, _rows())


def test_the_table_of_types_is_gguf_pys() -> None:
    sizes = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    ours = {kind.id: (kind.block_size, kind.block_bytes) for kind in GGML_TYPES.values()}
    both = set(ours) & set(sizes) - {9}  # gguf-py says 40 bytes for Q8_1, the library 36
    assert {key: ours[key] for key in both} == {key: sizes[key] for key in both}
    assert len(both) >= 30


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernels._load.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="llama-cpp-python is not installed") as caught:
        load_kernels()
    assert "pip install" in caught.value.hint and "llama-cpp-python==0.3.36" in caught.value.hint
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libggml-other.so").touch()

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(AmigoError, match=r"has no libggml-base\S*, only: libggml-other\.so"):
        load_kernels()


def test_another_build_is_refused_at_load(tmp_path: Path) -> None:
    """A real library with the same functions but another layout of the struct: the pointers must not be believed."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler: apt-get install gcc")
    source = tmp_path / "other.c"
    source.write_text(
        'struct traits { long long version; const char * name; long long block; } t = {7, "q4_K", 256};\n'
        "void * ggml_get_type_traits(int type) { return &t.name; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(tmp_path / "other.so")], check=True)
    library = ctypes.CDLL(str(tmp_path / "other.so"))
    library.ggml_get_type_traits.restype = ctypes.POINTER(kernels._Traits)
    with pytest.raises(AmigoError, match=r"another build than this program knows: type 0 is \('Q4_K', 256") as caught:
        Kernels(library, 1)
    assert "--force-reinstall" in caught.value.hint
