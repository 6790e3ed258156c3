from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest

from amigo_local.domain.errors import InputError
from amigo_local.weights.gguf_header import ArrayRef, model_shape, read_header
from tests.support.tiny_gguf import CHATML, write_tiny_llama


def _file(fields: list[bytes] = (), tensors: list[bytes] = (), *, version: int = 3, data: int = 4096) -> bytes:  # type: ignore[assignment]
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields)) + b"".join(fields) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _string(key: str, value: str) -> bytes:
    return _text(key) + struct.pack("<I", 8) + _text(value)


def _tensor(name: str, dimensions: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, type_id, offset)


ARCHITECTURE = _string("general.architecture", "llama")


@pytest.mark.parametrize("model", ["smollm2", "tiny_gemma"])
def test_everything_is_read_as_gguf_py_reads_it(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    header, reference = read_header(path), gguf.GGUFReader(path)
    assert [(t.name, t.dimensions, t.type_id, t.offset, t.nbytes) for t in header.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), int(t.tensor_type), t.data_offset, t.n_bytes)
        for t in reference.tensors
    ]
    expected = {key: field for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert list(header.metadata) == list(expected)
    for key, field in expected.items():
        value = field.contents()
        found = header.metadata[key]
        assert (list(header.array(key)) if isinstance(found, tuple | ArrayRef) else found) == value, key


def test_smollm2_is_described(smollm2: Path) -> None:
    header = read_header(smollm2)
    assert (header.architecture, header.quantization, header.context_length) == ("llama", "Q4_1", 8192)
    assert (header.parameters, len(header.tensors), header.file_size) == (134515008, 272, 98362432)
    assert header.chat_template is not None and header.chat_template.startswith("{% for message in messages %}")
    assert header.tensor("blk.0.attn_k.weight").shape == (192, 576)
    shape = model_shape(header)
    assert (shape.hidden_size, shape.intermediate_size, shape.layers) == (576, 1536, 30)
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.vocabulary) == (9, 3, 64, 49152)
    assert shape.tied_embeddings
    assert shape.parameters == 134515008 - 61 * 576  # all but the norms


def test_quantization_without_a_stated_file_type_is_the_type_of_most_bytes(tmp_path: Path) -> None:
    data = write_tiny_llama(tmp_path / "a.gguf").read_bytes().replace(b"general.file_type", b"general.file_typo")
    (tmp_path / "b.gguf").write_bytes(data)
    assert read_header(tmp_path / "b.gguf").quantization == "Q8_0"
    assert read_header(tmp_path / "b.gguf").chat_template == CHATML


def test_a_vocabulary_of_262144_tokens_is_read_in_well_under_a_second(tmp_path: Path) -> None:
    tokens = b"".join(_text(f"token{i}") for i in range(262144))
    vocabulary = _text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 262144) + tokens
    (tmp_path / "big.gguf").write_bytes(_file([ARCHITECTURE, vocabulary]))
    start = time.perf_counter()
    header = read_header(tmp_path / "big.gguf")
    assert time.perf_counter() - start < 0.7
    assert isinstance(header.metadata["tokenizer.ggml.tokens"], ArrayRef)
    assert header.array("tokenizer.ggml.tokens")[262143] == "token262143"


def test_reading_a_header_imports_neither_numpy_nor_gguf() -> None:
    code = (
        "import sys, amigo_local.weights.gguf_header; "
        "print([name for name in ('numpy', 'gguf', 'torch', 'llama_cpp') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


HUGE = (1 << 62) + 1
BAD_FILES = {
    "not GGUF": (b"PK\x03\x04" + bytes(100), "not a GGUF"),
    "empty": (b"", "not a GGUF"),
    "only the magic": (b"GGUF", "truncated"),
    "version 1": (_file(version=1), "version 1"),
    "version 4": (_file(version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "big-endian"),
    "countless tensors": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0) + bytes(64), "truncated"),
    "countless fields": (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE) + bytes(64), "truncated"),
    "endless key": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE) + bytes(64), "a key is"),
    "endless string": (_file([_text("a") + struct.pack("<IQ", 8, HUGE)]), "make sense"),
    "string past the end": (_file([_text("a") + struct.pack("<IQ", 8, 1 << 20)]), "truncated"),
    "endless array": (_file([_text("a") + struct.pack("<IIQ", 9, 4, HUGE)]), "truncated"),
    "endless array of strings": (_file([_text("a") + struct.pack("<IIQ", 9, 8, HUGE)]), "truncated"),
    "array of arrays": (_file([_text("a") + struct.pack("<IIQ", 9, 9, 1)]), "item type 9"),
    "unknown value type": (_file([_text("a") + struct.pack("<I", 99)]), "value type 99"),
    "key twice": (_file([ARCHITECTURE, ARCHITECTURE]), "twice"),
    "no architecture": (_file([_string("general.name", "x")]), "general.architecture"),
    "alignment": (_file([ARCHITECTURE, _text("general.alignment") + struct.pack("<II", 4, 3)]), "power of two"),
    "unknown tensor type": (_file([ARCHITECTURE], [_tensor("a", (32,), 999)]), "unknown type 999"),
    "five dimensions": (_file([ARCHITECTURE], [_tensor("a", (1, 1, 1, 1, 1))]), "5 dimensions"),
    "half a block": (_file([ARCHITECTURE], [_tensor("a", (33,), 8)]), "impossible shape"),
    "empty tensor": (_file([ARCHITECTURE], [_tensor("a", (0,))]), "impossible shape"),
    "giant tensor": (_file([ARCHITECTURE], [_tensor("a", (1 << 40, 1 << 40))]), "tensor a ends at byte"),
    "tensor past the end": (_file([ARCHITECTURE], [_tensor("a", (32, 32), offset=4096)]), "tensor a ends at byte"),
    "misaligned tensor": (_file([ARCHITECTURE], [_tensor("a", (32,), offset=4)]), "aligned"),
    "tensor twice": (_file([ARCHITECTURE], [_tensor("a", (8,)), _tensor("a", (8,), offset=32)]), "twice"),
    "overlapping": (_file([ARCHITECTURE], [_tensor("a", (32,)), _tensor("b", (32,), offset=32)]), "overlap"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_by_what_is_wrong(name: str, tmp_path: Path) -> None:
    data, reason = BAD_FILES[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(InputError, match="can't be read"):
            read_header(path)


def test_no_cut_and_no_flipped_byte_gets_past_as_another_error(tiny_llama: Path, tmp_path: Path) -> None:
    whole = tiny_llama.read_bytes()
    data_offset = read_header(tiny_llama).data_offset
    chance = random.Random(0)
    path = tmp_path / "cut.gguf"
    for cut in [*range(64), *(chance.randrange(len(whole)) for _ in range(150)), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError):
            read_header(path)
    for _ in range(400):
        place = chance.randrange(data_offset)
        path.write_bytes(whole[:place] + bytes([chance.randrange(256)]) + whole[place + 1 :])
        try:
            read_header(path)
        except InputError:
            continue


def test_a_shape_that_is_not_stated_is_named(tmp_path: Path) -> None:
    data = write_tiny_llama(tmp_path / "a.gguf").read_bytes()
    (tmp_path / "b.gguf").write_bytes(data.replace(b"llama.block_count", b"llama.block_counx"))
    with pytest.raises(InputError, match=r"llama\.block_count is None"):
        model_shape(read_header(tmp_path / "b.gguf"))
