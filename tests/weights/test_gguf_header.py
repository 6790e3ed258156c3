from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest

from amigo_local.domain.errors import InputError
from amigo_local.weights.ggml_types import FILE_TYPES, GGML_TYPES, REMOVED_TYPES
from amigo_local.weights.gguf_cursor import MAX_HEADER_BYTES, MAX_STRINGS, open_source
from amigo_local.weights.gguf_header import ArrayRef, Items, model_shape, parse, read_header
from amigo_local.weights.kernels import load_kernels
from tests.support.gguf_bytes import (
    ARCHITECTURE,
    ARRAY,
    BOOL,
    FLOAT32,
    FLOAT64,
    INT8,
    INT64,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    array_field,
    field,
    gguf_file,
    tensor_entry,
    text,
)
from tests.support.tiny_gguf import CHATML, write_tiny_llama


@pytest.mark.parametrize("model", ["smollm2", "tiny_gemma"])
def test_everything_is_read_as_gguf_py_reads_it(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    header, reference = read_header(path), gguf.GGUFReader(path)
    assert [(t.name, t.dimensions, t.type_id, t.offset, t.nbytes) for t in header.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), int(t.tensor_type), t.data_offset, t.n_bytes)
        for t in reference.tensors
    ]
    assert header.files == (path,) and {tensor.file for tensor in header.tensors} == {0}
    expected = {key: field for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert list(header.metadata) == list(header.raw_fields) == list(expected)
    with path.open("rb") as file:
        head = file.read(header.data_offset)
    for key, stored in expected.items():
        value = stored.contents()
        found = header.metadata[key]
        assert (list(header.array(key)) if isinstance(found, tuple | ArrayRef) else found) == value, key
        start, end = header.raw_fields[key]
        assert head[start:end] == b"".join(part.tobytes() for part in stored.parts), key


def test_types_are_those_of_ggml_and_gguf_py() -> None:
    load_kernels()  # refuses when ggml names or sizes a type otherwise
    sizes = {int(kind): (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    del sizes[9]  # gguf-py takes Q8_1 for 40 bytes; block_q8_1 in ggml-common.h has 36
    ours = {kind.id: kind[1:] for kind in GGML_TYPES.values()}
    assert {number: ours[number] for number in sizes} == sizes
    assert set(ours) - set(sizes) <= {9, 40, 41, 42}  # the last are newer than some gguf-py
    assert not set(REMOVED_TYPES) & set(sizes)
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert {number: name for number, name in FILE_TYPES.items() if number in names} == {
        number: name for number, name in names.items() if number in FILE_TYPES
    }


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


def test_a_vocabulary_of_262144_tokens_is_read_fast_and_stays_small(tmp_path: Path) -> None:
    """Time, and the memory of a whole process, where gguf-py's reader took 20 s and 734 MB."""
    vocabulary = array_field("tokenizer.ggml.tokens", STRING, [f"token{i}" for i in range(262144)])
    merges = array_field("tokenizer.ggml.merges", STRING, [f"left{i} right{i}" for i in range(514906)])
    path = tmp_path / "big.gguf"
    path.write_bytes(gguf_file([ARCHITECTURE, vocabulary, merges]))
    start = time.perf_counter()
    header = read_header(path)
    assert time.perf_counter() - start < 0.7
    assert isinstance(header.metadata["tokenizer.ggml.tokens"], ArrayRef)
    assert header.array("tokenizer.ggml.tokens")[262143] == "token262143"
    code = (
        "import pathlib, resource, sys; from amigo_local.weights.gguf_header import read_header; "
        "read_header(pathlib.Path(sys.argv[1])); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    # 15 MB here; by a shell, since a process has its parent's peak until it starts its own program.
    command = ["sh", "-c", '"$0" -c "$1" "$2"; true', sys.executable, code, str(path)]
    kibibytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert kibibytes < 60 << 10


def test_reading_a_header_imports_neither_numpy_nor_gguf() -> None:
    code = (
        "import sys, amigo_local.weights.gguf_header; "
        "print([name for name in ('numpy', 'gguf', 'torch', 'llama_cpp') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


ARRAYS = {
    "bytes": (UINT8, [0, 200, 255]),
    "small": (INT8, [-128, 127]),
    "flags": (BOOL, [True, False] * 40),
    "few": (UINT32, [1, 2, 1 << 31]),
    "many": (INT64, list(range(-50, 50))),
    "wide": (UINT64, [2**64 - 1] * 65),
    "reals": (FLOAT64, [0.1] * 70),
    "texts": (STRING, ["", "a", "ü", "東京 🙂"] * 20),
    "nothing": (STRING, []),
}


def test_arrays_of_every_kind_are_sequences_of_their_items(tmp_path: Path) -> None:
    fields = [array_field(key, kind, values) for key, (kind, values) in ARRAYS.items()]  # type: ignore[arg-type]
    (tmp_path / "a.gguf").write_bytes(gguf_file([ARCHITECTURE, *fields]))
    header = read_header(tmp_path / "a.gguf")
    for key, (_, expected) in ARRAYS.items():
        found = header.array(key)
        assert list(found) == expected and len(found) == len(expected) and bool(found) == bool(expected)
        assert [type(item) for item in found] == [type(item) for item in expected]
        assert found[:2] == tuple(expected[:2]) and list(found[::-1]) == expected[::-1]
        if expected:
            assert found[-1] == expected[-1] and found.index(expected[0]) == 0
        with pytest.raises(IndexError):
            found[len(expected)]
    assert header.array("none") == () and header.array("general.architecture") == ("llama",)
    assert isinstance(header.array("texts"), Items) and header.array("texts") != header.array("many")


def test_a_torn_text_is_replaced_but_a_torn_token_is_refused(tmp_path: Path) -> None:
    torn = field("general.license", STRING, "ü".encode()[:1] + b"\0")
    tokens = array_field("tokenizer.ggml.tokens", STRING, ["a"] * 70 + [b"\xff"])
    (tmp_path / "a.gguf").write_bytes(gguf_file([ARCHITECTURE, torn, tokens]))
    header = read_header(tmp_path / "a.gguf")
    assert header.metadata["general.license"] == "\ufffd\0"
    tokens_found = header.array("tokenizer.ggml.tokens")
    assert tokens_found[69] == "a"
    with pytest.raises(InputError, match=r"tokenizer\.ggml\.tokens holds a text that is not UTF-8: b'\\xff'"):
        list(tokens_found)


def test_version_2_is_read_as_version_3(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf_file([ARCHITECTURE], [tensor_entry("a", (32,))], version=2))
    header = read_header(tmp_path / "a.gguf")
    assert (header.version, header.tensor("a").elements) == (2, 32)


HUGE = (1 << 62) + 1


def _one(name: str, dimensions: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    return gguf_file([ARCHITECTURE], [tensor_entry(name, dimensions, type_id, offset)])


def _raw_field(layout: str, *values: int) -> bytes:
    return gguf_file([text("a") + struct.pack("<" + layout, *values)])


BAD_FILES = {
    "not GGUF": (b"PK\x03\x04" + bytes(100), "not a GGUF"),
    "empty": (b"", "not a GGUF"),
    "only the magic": (b"GGUF", "truncated"),
    "version 1": (gguf_file(version=1), "version 1, expected 2 or 3"),
    "version 4": (gguf_file(version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "big-endian"),
    "countless tensors": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0) + bytes(64), "truncated"),
    "countless fields": (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE) + bytes(64), "truncated"),
    "more fields than make sense": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1025) + bytes(99999), "1025 fields"),
    "more tensors than make sense": (b"GGUF" + struct.pack("<IQQ", 3, 32769, 0) + bytes(2 << 20), "32769 tensors"),
    "endless key": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE) + bytes(64), "a key is 4611686018427387905 bytes"),
    "empty key": (gguf_file([field("", UINT8, 1)]), "a key is b''"),
    "key that is not UTF-8": (gguf_file([field(b"a\xff", UINT8, 1)]), r"a key is b'a\\xff', expected printable ASCII"),
    "key with a NUL": (gguf_file([field("a\0b", UINT8, 1)]), r"a key is b'a\\x00b'"),
    "key that moves the cursor": (gguf_file([field("\x1b[2J", UINT8, 1)]), r"a key is b'\\x1b\[2J'"),
    "endless string": (_raw_field("IQ", STRING, HUGE), "a is 4611686018427387905 bytes"),
    "string of 2^64-1": (_raw_field("IQ", STRING, (1 << 64) - 1), "a is 18446744073709551615 bytes"),
    "string past the end": (_raw_field("IQ", STRING, 1 << 20), "truncated"),
    "endless array": (_raw_field("IIQ", ARRAY, UINT32, HUGE), "truncated"),
    "array of 2^64-1": (_raw_field("IIQ", ARRAY, UINT8, (1 << 64) - 1), "truncated"),
    "endless array of strings": (_raw_field("IIQ", ARRAY, STRING, HUGE), "truncated"),
    "array of strings past the end": (_raw_field("IIQQ", ARRAY, STRING, 70, 1 << 63), "runs past the end"),
    "array of arrays": (_raw_field("IIQ", ARRAY, ARRAY, 1), "array of arrays"),
    "unknown item type": (_raw_field("IIQ", ARRAY, 13, 1), "unknown item type 13"),
    "unknown value type": (_raw_field("I", 99), "value type 99"),
    "key twice": (gguf_file([ARCHITECTURE, ARCHITECTURE]), r"the key general\.architecture is there twice"),
    "no architecture": (gguf_file([field("general.name", STRING, "x")]), r"general\.architecture"),
    "architecture of another type": (gguf_file([field("general.architecture", UINT8, 1)]), r"general\.architecture"),
    "alignment of 3": (gguf_file([ARCHITECTURE, field("general.alignment", UINT32, 3)]), "is 3, expected a power of"),
    "alignment of 0": (gguf_file([ARCHITECTURE, field("general.alignment", UINT32, 0)]), "is 0, expected a power of"),
    "alignment of 2^31": (gguf_file([ARCHITECTURE, field("general.alignment", UINT32, 1 << 31)]), "is 2147483648"),
    "alignment in words": (gguf_file([ARCHITECTURE, field("general.alignment", STRING, "32")]), "is '32'"),
    "unknown tensor type": (_one("a", (32,), 999), "tensor a has the unknown type 999; known are BF16, F16"),
    "removed tensor type": (_one("a", (32,), 4), "tensor a has the type Q4_2, which llama.cpp no longer reads"),
    "no dimensions": (_one("a", ()), "tensor a has 0 dimensions, expected 1 to 4"),
    "five dimensions": (_one("a", (1, 1, 1, 1, 1)), "tensor a has 5 dimensions"),
    "half a block": (_one("a", (33,), 8), "tensor a has rows of 33, no multiple of Q8_0's 32"),
    "zero dimension": (_one("a", (32, 0)), r"tensor a has the shape \[32, 0\], in which no dimension may be 0"),
    "dimension of 2^63": (_one("a", (1 << 63,)), r"tensor a has the shape \[9223372036854775808\], of more elements"),
    "elements that overflow": (_one("a", (1 << 32, 1 << 32, 1 << 32)), "more elements than the 2"),
    "bytes that overflow": (_one("a", (1 << 62,)), "tensor a ends at byte 18446744073709551744"),
    "tensor past the end": (_one("a", (32, 32), offset=4096), "tensor a ends at byte 8320, the file has 4224"),
    "tensor at the end of the world": (_one("a", (32,), offset=(1 << 64) - 32), "tensor a ends at byte"),
    "misaligned tensor": (_one("a", (32,), offset=4), "tensor a lies at 4, which is not aligned to 32"),
    "name of 64 bytes": (_one("a" * 64, (32,)), "tensor's name is 64 bytes"),
    "name with a newline": (_one("a\n", (32,)), "tensor's name is b'a"),
    "tensor twice": (
        gguf_file([ARCHITECTURE], [tensor_entry("a", (8,)), tensor_entry("a", (8,), offset=32)]),
        "the tensor a is there twice",
    ),
    "overlapping tensors": (
        gguf_file([ARCHITECTURE], [tensor_entry("b", (8,), offset=96), tensor_entry("a", (32,))]),
        "tensors a and b overlap",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_by_what_is_wrong(name: str, tmp_path: Path) -> None:
    data, reason = BAD_FILES[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert caught.value.message.isprintable() and len(caught.value.message) < 500
    assert caught.value.hint


def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A sparse file: its size vouches for lengths that no header has."""
    path = tmp_path / "a.gguf"
    endless = {
        "text": _raw_field("IQ", STRING, MAX_HEADER_BYTES + 1),
        "array": _raw_field("IIQ", ARRAY, FLOAT32, MAX_HEADER_BYTES),
        "texts": _raw_field("IIQ", ARRAY, STRING, MAX_STRINGS + 1),
    }
    for start in endless.values():
        path.write_bytes(start)
        os.truncate(path, 1 << 40)
        begun = time.perf_counter()
        with pytest.raises(InputError, match=r"makes? (no )?sense"):
            read_header(path)
        assert time.perf_counter() - begun < 0.5


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.gguf"))
        begun = time.perf_counter()
        for path in (
            *(tmp_path / name for name in ("none.gguf", "pipe.gguf", "loop.gguf", "socket.gguf", "x" * 300)),
            tmp_path,
            Path("/dev/zero"),
            Path("/dev/null"),
        ):
            with pytest.raises(InputError, match="can't be read"):
                read_header(path)
        assert time.perf_counter() - begun < 1


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_file([ARCHITECTURE]))
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # whom no permission stops
            os.seteuid(65534)
        with pytest.raises(InputError, match="can't be read: Permission denied"):
            read_header(path)
    finally:
        os.seteuid(user)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_signal(tmp_path: Path) -> None:
    tokens = array_field("tokens", STRING, [f"token{i}" for i in range(100_000)])
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_file([ARCHITECTURE, tokens], [tensor_entry("a", (32,))]))
    header = read_header(path)
    with open_source(path) as source:
        os.truncate(path, 500_000)
        with pytest.raises(InputError, match="became shorter while it was read"):
            parse(source)
    with pytest.raises(InputError, match="became shorter while it was read"):
        header.array("tokens")
    path.write_bytes(bytes(header.file_size))
    with pytest.raises(InputError, match="tokens became another array while it was read"):
        header.array("tokens")


def test_a_shape_that_is_not_stated_is_named(tmp_path: Path) -> None:
    data = write_tiny_llama(tmp_path / "a.gguf").read_bytes()
    (tmp_path / "b.gguf").write_bytes(data.replace(b"llama.block_count", b"llama.block_counx"))
    with pytest.raises(InputError, match=r"llama\.block_count is None"):
        model_shape(read_header(tmp_path / "b.gguf"))


SIZES = {
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "context_length": 512,
}


def _model(tmp_path: Path, **changed: bytes) -> Path:
    fields = {key: field(f"llama.{key}", UINT32, value) for key, value in SIZES.items()} | changed
    (tmp_path / "a.gguf").write_bytes(
        gguf_file([ARCHITECTURE, *fields.values()], [tensor_entry("token_embd.weight", (4, 4))])
    )
    return tmp_path / "a.gguf"


@pytest.mark.parametrize(
    ("key", "stored", "reason"),
    [
        ("block_count", field("llama.block_count", STRING, "two"), r"llama\.block_count is 'two', expected"),
        ("block_count", field("llama.block_count", BOOL, True), r"llama\.block_count is True"),
        ("block_count", field("llama.block_count", UINT32, 513), "513 layers, llama.cpp takes at most 512"),
        ("block_count", array_field("llama.block_count", STRING, ["2"] * 70), r"llama\.block_count is '2'"),
        ("embedding_length", field("llama.embedding_length", UINT64, 1 << 63), "is 9223372036854775808, expected"),
        ("embedding_length", field("llama.embedding_length", UINT32, 3), r"attention\.key_length is 0"),
        ("context_length", field("llama.context_length", INT64, -1), r"context_length is -1"),
        ("context_length", field("llama.context_length", FLOAT32, 512.0), r"context_length is 512\.0"),
    ],
)
def test_an_absurd_shape_is_refused_by_its_key(key: str, stored: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        model_shape(read_header(_model(tmp_path, **{key: stored})))


@pytest.mark.parametrize("layers", [2, 80])
def test_where_a_size_differs_by_layer_the_largest_counts(layers: int, tmp_path: Path) -> None:
    heads = [4] * (layers - 1) + [8]
    header = read_header(
        _model(tmp_path, **{"attention.head_count": array_field("llama.attention.head_count", 5, heads)})
    )
    assert model_shape(header).heads == 8


def test_a_real_number_is_finite_and_fits_float32(tmp_path: Path) -> None:
    header = read_header(
        _model(
            tmp_path,
            theta=field("llama.theta", FLOAT32, 1e6),
            whole=field("llama.whole", UINT32, 8),
            nan=field("llama.nan", FLOAT32, float("nan")),
            vast=field("llama.vast", FLOAT64, 1e300),
            word=field("llama.word", STRING, "8"),
        )
    )
    assert (header.real("theta"), header.real("whole"), header.real("none", 1.0)) == (1e6, 8.0, 1.0)
    for key, shown in (("nan", "nan"), ("vast", r"1e\+300"), ("word", "'8'"), ("none", "None")):
        with pytest.raises(InputError, match=rf"llama\.{key} is {shown}, expected a finite number"):
            header.real(key)
