"""Files that are wrong on purpose: whatever their bytes, reading ends soon, stays small, and fails by InputError."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.weights.gguf_cursor import MAX_FIELDS, MAX_STRINGS, MAX_TENSORS, Source
from amigo_local.weights.gguf_header import parse, read_header
from tests.support.gguf_bytes import (
    ARCHITECTURE,
    ARRAY,
    BOOL,
    FLOAT32,
    INT8,
    INT32,
    LAYOUTS,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    array_field,
    field,
    gguf_file,
    integers,
    tensor_entry,
    text,
)
from tests.support.small_gguf import write_small_model

pytestmark = pytest.mark.usefixtures("garbage_of_others_stays")

DEFAULT_CASES, MANY_CASES = 20_000, 220_000
SECONDS = 1.0
TIMES_THE_FILE = 10
FLOOR_BYTES = 64 << 10  # what an empty file takes: exceptions, their messages, the interpreter's own
BOUNDARIES = (0, 1, 2, 255, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)

Mutator = Callable[[random.Random, bytearray, Sequence[tuple[int, int]], int], None]


# ---- valid files to begin with -------------------------------------------------------------------------------------


def _every_type() -> bytes:
    """Every type of value, alone, in a short array and in a long one; every type of tensor."""
    fields = [ARCHITECTURE, field("a.text", STRING, "ü東🙂"), field("general.alignment", UINT32, 64)]
    for kind, layout in LAYOUTS.items():
        value: float = 1.5 if layout in "fd" else layout == "?" or 1
        fields += [field(f"a.{kind}", kind, value)]
        fields += [array_field(f"a.{kind}.{count}", kind, [value] * count) for count in (0, 3, 70)]
    fields += [array_field(f"a.texts.{count}", STRING, ["", "ab", "ü"] * count) for count in (0, 2, 30)]
    kinds = [(0, 4), (1, 2), (2, 18), (8, 34), (12, 144), (14, 210), (24, 1), (30, 2), (39, 17)]
    tensors = [tensor_entry(f"t{i}", (256, 1, 1, 1)[: 1 + i % 4], kind, 1024 * i) for i, (kind, _) in enumerate(kinds)]
    return gguf_file(fields, tensors, data=1024 * len(kinds), alignment=64)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    files = [
        write_small_model(folder / "llama.gguf", "llama", "gpt2"),
        write_small_model(folder / "gemma.gguf", "gemma3", "llama"),
        write_small_model(folder / "split.gguf", "llama", "gpt2", split_max_tensors=6),
        _every_type(),
        gguf_file([ARCHITECTURE], [tensor_entry("a", (32,))], data=128),
    ]
    for data in files:
        assert max(offset + size for offset, size in integers(data)) < len(data)
        parse(Source.of_bytes(data, Path("seed.gguf")))
    return files


# ---- ways to break them --------------------------------------------------------------------------------------------


def _flip_bits(chance: random.Random, data: bytearray, places: Sequence[tuple[int, int]], end: int) -> None:
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(end)] ^= 1 << chance.randrange(8)


def _set_bytes(chance: random.Random, data: bytearray, places: Sequence[tuple[int, int]], end: int) -> None:
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(end)] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))


def _overwrite_integer(chance: random.Random, data: bytearray, places: Sequence[tuple[int, int]], end: int) -> None:
    offset, size = chance.randrange(end), chance.choice((1, 2, 4, 8))
    data[offset : offset + size] = (chance.choice(BOUNDARIES) % (1 << 8 * size)).to_bytes(size, "little")


def _bend_a_length(chance: random.Random, data: bytearray, places: Sequence[tuple[int, int]], end: int) -> None:
    """One of the integers that the structure hangs on: a boundary, a small step, or a factor of two."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        offset, size = chance.choice(places)
        old = int.from_bytes(data[offset : offset + size], "little")
        new = chance.choice((chance.choice(BOUNDARIES), old + chance.randint(-9, 9), old * 2, old // 2, old << 32))
        data[offset : offset + size] = (new % (1 << 8 * size)).to_bytes(size, "little")


def _retype(chance: random.Random, data: bytearray, places: Sequence[tuple[int, int]], end: int) -> None:
    """Four-byte integers are types of values and tensors, ranks, and the version."""
    offset, _ = chance.choice([place for place in places if place[1] == 4])
    data[offset : offset + 4] = struct.pack("<I", chance.randrange(48))


def _truncate(chance: random.Random, data: bytearray, places: Sequence[tuple[int, int]], end: int) -> None:
    del data[chance.choice((chance.randrange(end), chance.choice(places)[0], chance.randrange(len(data)))) :]


def _duplicate(chance: random.Random, data: bytearray, places: Sequence[tuple[int, int]], end: int) -> None:
    start, length, target = chance.randrange(end), chance.randint(1, 64), chance.randrange(end)
    data[target:target] = data[start : start + length] * chance.choice((1, 1, 2, 100))


def _remove(chance: random.Random, data: bytearray, places: Sequence[tuple[int, int]], end: int) -> None:
    start = chance.randrange(end)
    del data[start : start + chance.randint(1, 64)]


MUTATORS: tuple[Mutator, ...] = (
    *(_flip_bits, _set_bytes, _overwrite_integer, _bend_a_length, _bend_a_length, _bend_a_length),
    *(_retype, _retype, _truncate, _duplicate, _remove),
)


def _mutated(chance: random.Random, seeds: list[bytes], places: list[list[tuple[int, int]]]) -> bytes:
    number = chance.randrange(len(seeds))
    data, end = bytearray(seeds[number]), sum(places[number][-1])  # the header: its last integer is an offset
    if chance.random() < 0.05:  # splice two files
        other = chance.choice(seeds)
        return bytes(data[: chance.randrange(end)] + other[chance.randrange(len(other)) :])
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if len(data) > end:
            chance.choice(MUTATORS)(chance, data, places[number], end)
    return bytes(data)


# ---- what must hold ------------------------------------------------------------------------------------------------


def _peak_bytes(data: bytes) -> int:
    tracemalloc.start()
    try:
        parse(Source.of_bytes(data, Path("fuzz.gguf")))
    except InputError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def _assert_bounded(data: bytes, what: object) -> None:
    """Traced allocation is four times slower, so that time is taken without it."""
    start = time.process_time()
    try:
        parse(Source.of_bytes(data, Path("fuzz.gguf")))
    except InputError as error:
        assert error.hint and len(error.message) < 1000 and error.message.isprintable(), what
    assert time.process_time() - start < SECONDS, what
    peak = _peak_bytes(data)
    assert peak <= TIMES_THE_FILE * len(data) + FLOOR_BYTES, (what, peak, len(data))


def _fuzz(seeds: list[bytes], cases: int, seed: int) -> Counter[str]:
    chance, outcomes = random.Random(seed), Counter[str]()
    places = [list(integers(data)) for data in seeds]
    for case in range(cases):
        data = _mutated(chance, seeds, places)
        if case % 50 == 0:
            _assert_bounded(data, (seed, case))
        start = time.process_time()
        try:
            parse(Source.of_bytes(data, Path("fuzz.gguf")))
            outcomes["read"] += 1
        except InputError as error:
            outcomes[error.message.split(": ")[1].split(" ")[0]] += 1
        except Exception as error:
            raise AssertionError(f"case {case} of seed {seed} ended in {error!r}") from error
        assert time.process_time() - start < SECONDS, (seed, case)
    return outcomes


def test_no_mutated_file_ends_in_anything_but_a_header_or_an_input_error(seeds: list[bytes]) -> None:
    outcomes = _fuzz(seeds, DEFAULT_CASES, seed=1)
    assert sum(outcomes.values()) == DEFAULT_CASES
    # The mutations reach everywhere: neither all refused at the door nor mostly harmless.
    assert min(outcomes["read"], outcomes["truncated"], outcomes["damaged"]) > DEFAULT_CASES // 10, outcomes


@pytest.mark.slow
def test_no_mutated_file_of_very_many_does_either(seeds: list[bytes]) -> None:
    assert sum(_fuzz(seeds, MANY_CASES, seed=2).values()) == MANY_CASES


def test_no_cut_of_a_file_is_taken_for_a_whole_one(seeds: list[bytes]) -> None:
    for data in seeds:
        header = parse(Source.of_bytes(data, Path("whole.gguf")))[0]
        used = max(tensor.offset + tensor.nbytes for tensor in header.tensors)  # after it comes padding
        for cut in {*range(0, used, 11), used - 1, header.data_offset}:
            with pytest.raises(InputError):
                parse(Source.of_bytes(data[:cut], Path("cut.gguf")))


# ---- files that would become more than they are --------------------------------------------------------------------


def _short_names(count: int) -> list[str]:
    letters = [chr(code) for code in range(33, 127)]
    return [a + b + c for a in ("", *letters) for b in ("", *letters) for c in letters][:count]


def _many_fields(make: Callable[[str, int], bytes]) -> bytes:
    return gguf_file([make(name, i) for i, name in enumerate(dict.fromkeys(_short_names(2 * MAX_FIELDS)))][:MAX_FIELDS])


def _many_tensors(rank: int) -> bytes:
    names = list(dict.fromkeys(_short_names(4 * MAX_TENSORS)))[:MAX_TENSORS]
    entries = [tensor_entry(name, (1,) * rank, 24, i) for i, name in enumerate(names)]
    return gguf_file([field("general.alignment", UINT32, 1)], entries, data=len(names), alignment=1)


def _strings(count: int, value: bytes = b"") -> bytes:
    return gguf_file([text("a") + struct.pack("<IIQ", ARRAY, STRING, count) + text(value) * count])


AMPLIFIERS: dict[str, Callable[[], bytes]] = {
    "empty file": lambda: b"",
    "fields of one byte": lambda: _many_fields(lambda name, i: field(name, UINT8, i % 256)),
    "fields of two bytes": lambda: _many_fields(lambda name, i: field(name, UINT16, 300 + i)),
    "fields of a replaced byte": lambda: _many_fields(lambda name, i: field(name, STRING, b"\xff")),
    "empty arrays": lambda: _many_fields(lambda name, i: array_field(name, UINT32, ())),
    "short arrays of bytes": lambda: _many_fields(lambda name, i: array_field(name, INT8, [-100] * 64)),
    "short arrays of flags": lambda: _many_fields(lambda name, i: array_field(name, BOOL, [True] * 64)),
    "short arrays of integers": lambda: _many_fields(lambda name, i: array_field(name, INT32, [-70000] * 64)),
    "short arrays of reals": lambda: _many_fields(lambda name, i: array_field(name, FLOAT32, [1.5] * 64)),
    "short arrays of texts": lambda: _many_fields(lambda name, i: array_field(name, STRING, [b"\xff"] * 64)),
    "a text that widens at its end": lambda: gguf_file([field("a", STRING, "aĀ" + "a" * 2_000_000 + "🙂")]),
    "a text of wrong bytes": lambda: gguf_file([field("a", STRING, "🙂".encode() + b"\xff" * 2_000_000)]),
    "long keys": lambda: gguf_file([field(letter * 65535, UINT8, 1) for letter in "abcdefghijklmnopqrstuvwxyz"]),
    "tensors of a byte": lambda: _many_tensors(1),
    "tensors of a byte in four dimensions": lambda: _many_tensors(4),
    "empty strings": lambda: _strings(100_000),
    "strings as long as the window": lambda: _strings(60, bytes(64 << 10)),
    "fields that are not there": lambda: b"GGUF" + struct.pack("<IQQ", 3, 0, MAX_FIELDS) + bytes(20000),
}


def test_as_many_of_everything_as_is_taken_is_read_in_a_second() -> None:
    for data in (_strings(MAX_STRINGS), _strings(MAX_STRINGS, b"abcdefg"), _many_tensors(4)):
        start = time.process_time()
        parse(Source.of_bytes(data, Path("large.gguf")))
        assert time.process_time() - start < SECONDS
    with pytest.raises(InputError, match=f"{MAX_STRINGS + 1} texts, more than {MAX_STRINGS} in a header"):
        parse(Source.of_bytes(_strings(MAX_STRINGS + 1), Path("large.gguf")))


@pytest.mark.parametrize("name", AMPLIFIERS)
def test_no_file_takes_ten_times_its_bytes_or_a_second(name: str) -> None:
    _assert_bounded(AMPLIFIERS[name](), name)


@pytest.mark.parametrize("kind", [UINT8, BOOL, UINT16, INT32, STRING])
def test_a_whole_array_takes_less_than_ten_times_its_bytes(kind: int, tmp_path: Path) -> None:
    values = ["é"] * 400_000 if kind == STRING else [1] * 400_000
    (tmp_path / "a.gguf").write_bytes(gguf_file([ARCHITECTURE, array_field("a", kind, values)]))
    header = read_header(tmp_path / "a.gguf")
    tracemalloc.start()
    assert len(header.array("a")) == 400_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 5 * header.file_size
