from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from amigo_local.domain.errors import InputError
from amigo_local.weights import tensor_rows
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.tensor_rows import TensorFile, count_nonfinite, to_bytes


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tiny tensors take many of them."""
    monkeypatch.setattr(tensor_rows, "CHUNK_ELEMENTS", 1 << 13)
    monkeypatch.setattr(tensor_rows, "COPY_BYTES", 1 << 13)


def _reference(path: Path, name: str) -> np.ndarray:
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def test_chunks_rows_and_raw_bytes_are_gguf_pys(tiny_llama: Path) -> None:
    header = read_header(tiny_llama)
    tensor = header.tensor("token_embd.weight")
    expected = _reference(tiny_llama, tensor.name)
    with TensorFile(header) as file:
        chunks = list(file.chunks(tensor, 3))
        assert len(chunks) == 35  # 1024 rows of 256, 30 at a time
        assert [start for start, _ in chunks] == list(range(0, 1024, 30))
        assert np.array_equal(np.concatenate([rows for _, rows in chunks]), expected)
        assert np.array_equal(file.rows(tensor, 100, 107), expected[100:107])
        pieces = list(file.raw(tensor))
    assert all(piece.nbytes % (256 // 32 * 34) == 0 for piece in pieces)  # whole rows
    raw = b"".join(piece.tobytes() for piece in pieces)
    assert raw == tiny_llama.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]


def test_query_rows_are_moved_before_they_are_decoded(tiny_llama: Path) -> None:
    header = read_header(tiny_llama)
    tensor = header.tensor("blk.1.attn_q.weight")
    with TensorFile(header) as file:
        ours = np.concatenate([rows for _, rows in file.chunks(tensor, 64, unpermute=64)])
    stored = _reference(tiny_llama, tensor.name)
    # LlamaModel.permute in convert_hf_to_gguf.py turns the checkpoint's rows into the stored ones.
    assert np.array_equal(ours.reshape(4, 2, 32, 256).swapaxes(1, 2).reshape(256, 256), stored)


def test_a_file_deleted_while_it_is_read_is_read_to_the_end(tiny_llama: Path, tmp_path: Path) -> None:
    """Ollama removes a blob with its last tag; the open file keeps the data."""
    blob = tmp_path / "blob"
    blob.write_bytes(tiny_llama.read_bytes())
    header = read_header(blob)
    tensor = header.tensor("token_embd.weight")
    with TensorFile(header) as file:
        chunks = file.chunks(tensor)
        found = [next(chunks)[1]]
        blob.unlink()
        found += [rows for _, rows in chunks]
    assert np.array_equal(np.concatenate(found), _reference(tiny_llama, tensor.name))
    with pytest.raises(InputError, match=r"blob: can't be read: No such file") as caught:
        TensorFile(header)
    assert caught.value.hint


def test_a_file_cut_short_while_it_is_read_is_an_error_and_no_signal(tiny_llama: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(tiny_llama.read_bytes())
    header = read_header(blob)
    tensor = header.tensor("token_embd.weight")
    with TensorFile(header) as file:
        chunks = file.chunks(tensor)
        next(chunks)
        os.truncate(blob, tensor.offset + tensor.nbytes // 2)
        with pytest.raises(InputError, match=r"became shorter while it was read, at tensor token_embd\.weight"):
            list(chunks)


def test_what_is_not_finite_is_counted_over_the_whole_tensor(exact_llama: Path, tmp_path: Path) -> None:
    header = read_header(exact_llama)
    tensor = header.tensor("blk.0.ffn_up.weight")
    data = bytearray(exact_llama.read_bytes())
    for place, value in ((3, np.nan), (40_000, np.inf), (100_000, -np.inf)):
        data[tensor.offset + 4 * place : tensor.offset + 4 * place + 4] = np.float32(value).tobytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    header = read_header(bad)
    with TensorFile(header) as file, pytest.raises(InputError, match=r"holds 3 values that are NaN or infinite"):
        list(file.chunks(tensor))
    with TensorFile(header, allow_nonfinite=True) as file:
        rows = np.concatenate([rows for _, rows in file.chunks(tensor)])
        assert file.nonfinite == {"blk.0.ffn_up.weight": 3}
    assert np.isnan(rows.reshape(-1)[3]) and np.isinf(rows.reshape(-1)[100_000])


def test_large_finite_values_are_not_taken_for_infinite_ones() -> None:
    values = np.full((2, 4), 3e38, np.float32)  # their squares overflow
    assert count_nonfinite(values) == 0
    values[1, 1] = np.nan
    assert count_nonfinite(values) == 1


def test_bytes_are_little_endian_and_rounded_to_even() -> None:
    values = np.array([[1.0, -2.5, 1 + 2**-8, 1e-8, 70000.0]], np.float32)
    assert to_bytes(values, "f32").tobytes() == values.astype("<f4").tobytes()
    with np.errstate(over="ignore"):
        assert to_bytes(values, "f16").tobytes() == values.astype("<f2").tobytes()
    assert to_bytes(values, "bf16").view("<u2").tolist() == [0x3F80, 0xC020, 0x3F80, 0x322C, 0x4789]
