from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from amigo_local.domain.errors import InputError
from amigo_local.weights.imatrix import (
    ImportanceEntry,
    ImportanceMatrix,
    read_importance_matrix,
    write_importance_matrix,
)
from tests.support.tiny_gguf import _finish


def _matrix() -> ImportanceMatrix:
    chance = np.random.default_rng(0)
    return ImportanceMatrix(
        entries={
            "blk.0.ffn_up_exps.weight": ImportanceEntry(
                chance.random((3, 8), np.float32) * 1000, np.array([7, 0, 12345])
            ),
            "blk.0.attn_k.weight": ImportanceEntry(chance.random((1, 5), np.float32) * 1e-9, np.array([51200])),
        },
        datasets=("texte für alle.txt",),
        chunk_count=100,
        chunk_size=512,
    )


def test_the_file_is_laid_out_as_llama_imatrix_writes_it(tmp_path: Path) -> None:
    """Byte for byte what gguf_write_to_file makes of save_imatrix's fields and tensors."""
    matrix = _matrix()
    write_importance_matrix(matrix, tmp_path / "imatrix.gguf")

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    fields = text("general.type") + struct.pack("<I", 8) + text("imatrix")
    fields += text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text("texte für alle.txt")
    fields += text("imatrix.chunk_count") + struct.pack("<II", 4, 100)
    fields += text("imatrix.chunk_size") + struct.pack("<II", 4, 512)
    dense, experts = (matrix.entries[f"blk.0.{part}.weight"].sums for part in ("attn_k", "ffn_up_exps"))
    table = text("blk.0.attn_k.weight.in_sum2") + struct.pack("<IQIQ", 1, 5, 0, 0)
    table += text("blk.0.attn_k.weight.counts") + struct.pack("<IQIQ", 1, 1, 0, 32)
    table += text("blk.0.ffn_up_exps.weight.in_sum2") + struct.pack("<IQQIQ", 2, 8, 3, 0, 64)
    table += text("blk.0.ffn_up_exps.weight.counts") + struct.pack("<IQQIQ", 2, 1, 3, 0, 160)
    expected = b"GGUF" + struct.pack("<IQQ", 3, 4, 4) + fields + table
    for values in (dense, np.float32([51200]), experts, np.float32([7, 0, 12345])):
        expected += bytes(-len(expected) % 32) + values.tobytes()
    assert (tmp_path / "imatrix.gguf").read_bytes() == expected + bytes(-len(expected) % 32)
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.gguf"]

    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert np.array_equal(reader.tensors[2].data, experts)


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    matrix, path = _matrix(), tmp_path / "imatrix.gguf"
    write_importance_matrix(matrix, path)
    found = read_importance_matrix(path)
    assert (found.datasets, found.chunk_count, found.chunk_size) == (matrix.datasets, 100, 512)
    assert found.path == path
    assert list(found.entries) == sorted(matrix.entries)
    for name, entry in matrix.entries.items():
        assert np.array_equal(found.entries[name].sums, entry.sums)
        assert np.array_equal(found.entries[name].counts, entry.counts)


def test_rows_are_weighted_as_llama_quantize_reads_the_file() -> None:
    matrix = _matrix()
    experts = matrix.entries["blk.0.ffn_up_exps.weight"]
    weights = matrix.row_weights("blk.0.ffn_up_exps.weight", 8, 3)
    assert weights is not None
    assert np.array_equal(weights[0], experts.sums[0] / np.float32(7))
    assert np.array_equal(weights[1], np.ones(8))  # never chosen: all columns alike
    assert np.array_equal(weights[2], experts.sums[2] / np.float32(12345))
    assert matrix.row_weights("blk.1.attn_k.weight", 5) is None
    with pytest.raises(InputError, match=r"blk\.0\.attn_k\.weight has 5 values, its rows in this model are 6 long"):
        matrix.row_weights("blk.0.attn_k.weight", 6)
    embedding = ImportanceMatrix(entries={"token_embd.weight": experts})
    assert embedding.row_weights("token_embd.weight", 4) is None


def _legacy(entries: list[tuple[bytes, int, np.ndarray]], tail: bytes = b"", count: int | None = None) -> bytes:
    """As save_imatrix_legacy writes it."""
    data = struct.pack("<i", len(entries) if count is None else count)
    for name, evaluations, values in entries:
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", evaluations, len(values))
        data += values.astype("<f4").tobytes()
    return data + tail


def test_a_file_of_the_old_format_is_read(tmp_path: Path) -> None:
    means = np.linspace(0.1, 3, 6, dtype=np.float32)
    entries = [(b"blk.0.attn_q.weight", 4, means * 4), (b"blk.0.attn_k.weight", 0, means)]
    path = tmp_path / "old.dat"
    path.write_bytes(_legacy(entries, struct.pack("<ii", 4, 9) + b"wiki.text"))
    found = read_importance_matrix(path)
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("wiki.text",), 4, 0)
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight"):
        weights = found.row_weights(name, 6)
        assert weights is not None and np.array_equal(weights, means), name
    write_importance_matrix(found, tmp_path / "new.gguf")
    again = read_importance_matrix(tmp_path / "new.gguf").row_weights("blk.0.attn_q.weight", 6)
    assert again is not None and np.array_equal(again, means)
    path.write_bytes(_legacy(entries))  # the first versions wrote nothing after the entries
    assert read_importance_matrix(path).datasets == ()


ONE = np.ones(4, np.float32)
BAD_LEGACY = {
    "empty": (b"", "the number of entries takes 4 bytes"),
    "no entries": (_legacy([]), "0 entries"),
    "negative count": (struct.pack("<i", -1) + bytes(64), "-1 entries"),
    "countless entries": (struct.pack("<i", 2**31 - 1) + bytes(64), "2147483647 entries"),
    "text": (b"once upon a time, there was a text file that is no imatrix" * 9, "neither a GGUF nor"),
    "more announced than there": (_legacy([(b"a", 1, ONE)], count=2), "takes 4 bytes"),
    "endless name": (struct.pack("<ii", 1, 2**31 - 1) + bytes(64), "a name takes 2147483647 bytes"),
    "negative name": (struct.pack("<ii", 1, -5) + bytes(64), "a name takes -5 bytes"),
    "endless values": (struct.pack("<iicii", 1, 1, b"a", 1, 2**31 - 1) + bytes(64), "a takes 8589934588 bytes"),
    "no values": (_legacy([(b"a", 1, ONE[:0])]) + bytes(64), "a has 0 values"),
    "negative values": (struct.pack("<iicii", 1, 1, b"a", 1, -4) + bytes(64), "a has -4 values"),
    "an entry twice": (_legacy([(b"a", 1, ONE)] * 2), "a is there twice"),
    "NaN": (_legacy([(b"blk.7", 1, ONE * np.nan)]), "the sums of blk.7 hold nan"),
    "infinity": (_legacy([(b"blk.7", 1, ONE * np.inf)]), "the sums of blk.7 hold inf"),
    "negative": (_legacy([(b"blk.7", 1, -ONE)]), "the sums of blk.7 hold -1"),
    "endless data set": (_legacy([(b"a", 1, ONE)], struct.pack("<ii", 1, 2**30)), "data set's name takes"),
}


@pytest.mark.parametrize("name", BAD_LEGACY)
def test_a_bad_file_of_the_old_format_is_refused_by_what_is_wrong(name: str, tmp_path: Path) -> None:
    data, reason = BAD_LEGACY[name]
    (tmp_path / "bad.dat").write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        read_importance_matrix(tmp_path / "bad.dat")
    assert str(tmp_path / "bad.dat") in caught.value.message
    assert caught.value.hint


def _write_gguf(path: Path, **changed: object) -> Path:
    """An importance matrix by gguf-py, with fields and tensors changed; None leaves one out."""
    writer = gguf.GGUFWriter(path, "llama")
    fields = {"datasets": ["a"], "chunk_count": 1, "chunk_size": 512} | changed
    tensors = {"in_sum2": ONE, "counts": ONE[:1]} | changed
    for key in ("datasets", "chunk_count", "chunk_size"):
        value = fields[key]
        if isinstance(value, int):
            writer.add_uint32(f"imatrix.{key}", value)
        elif value is not None:
            writer.add_array(f"imatrix.{key}", value)
    for key in ("in_sum2", "counts"):
        if tensors[key] is not None:
            writer.add_tensor(f"blk.7.{key}", tensors[key])
    _finish(writer)
    return path


BAD_GGUF: dict[str, tuple[dict[str, object], str]] = {
    "no data sets": ({"datasets": None}, "no importance matrix: it has no imatrix.datasets"),
    "no chunk size": ({"chunk_size": None}, "it has no imatrix.chunk_size"),
    "chunks in words": ({"chunk_count": ["many"]}, "imatrix.chunk_count or imatrix.chunk_size is no uint32"),
    "no counts": ({"counts": None}, "has no tensor blk.7.counts"),
    "no sums": ({"in_sum2": None}, "has no tensor blk.7.in_sum2"),
    "neither": ({"in_sum2": None, "counts": None}, "holds no entries"),
    "half precision": ({"in_sum2": ONE.astype(np.float16)}, "blk.7.in_sum2 is F16, expected F32"),
    "3 counts for 4 sums": ({"counts": ONE[:3]}, "blk.7 has 4 sums for 3 counts"),
    "8 counts for 4 sums": ({"counts": np.ones(8, np.float32)}, "blk.7 has 4 sums for 8 counts"),
    "NaN": ({"in_sum2": ONE * np.nan}, "the sums of blk.7 hold nan"),
    "infinity": ({"in_sum2": ONE * np.inf}, "the sums of blk.7 hold inf"),
    "negative": ({"in_sum2": -ONE}, "the sums of blk.7 hold -1"),
    "NaN counts": ({"counts": ONE[:1] * np.nan}, "the counts of blk.7 hold nan"),
    "negative count": ({"counts": -ONE[:1]}, "the counts of blk.7 hold -1"),
    "endless count": ({"counts": ONE[:1] * 1e30}, "the counts of blk.7 hold 1e[+]30"),
}


@pytest.mark.parametrize("name", BAD_GGUF)
def test_a_bad_gguf_is_refused_by_what_is_wrong(name: str, tmp_path: Path) -> None:
    changed, reason = BAD_GGUF[name]
    assert read_importance_matrix(_write_gguf(tmp_path / "good.gguf")).entries["blk.7"].sums.tolist() == [[1] * 4]
    path = _write_gguf(tmp_path / "bad.gguf", **changed)
    with pytest.raises(InputError, match=reason) as caught:
        read_importance_matrix(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_model_is_no_importance_matrix(exact_llama: Path) -> None:
    with pytest.raises(InputError, match=r"no importance matrix: it has no imatrix\.datasets"):
        read_importance_matrix(exact_llama)


def test_no_cut_and_no_flipped_byte_gets_past_as_another_error(tmp_path: Path) -> None:
    chance = random.Random(0)
    path = tmp_path / "damaged"
    write_importance_matrix(_matrix(), tmp_path / "imatrix.gguf")
    old = _legacy([(b"blk.0", 3, ONE), (b"blk.1", 3, ONE)], struct.pack("<ii", 4, 4) + b"wiki")
    for whole in ((tmp_path / "imatrix.gguf").read_bytes(), old):
        for cut in range(0, len(whole) - 32, 5):
            path.write_bytes(whole[:cut])
            with pytest.raises(InputError):
                read_importance_matrix(path)
        for _ in range(200):
            data = bytearray(whole)
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
            try:
                for entry in read_importance_matrix(path).entries.values():
                    assert (entry.means >= 0).all()
            except InputError:
                continue
