from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest

from amigo_local.domain.errors import InputError
from amigo_local.weights.gguf_header import GgufHeader, model_shape, read_header
from tests.support.gguf_bytes import ARCHITECTURE, INT32, STRING, UINT16, field, gguf_file, tensor_entry
from tests.support.tiny_gguf import write_tiny_llama

PARTS = 3


def _split(folder: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> list[Path]:
    """The tiny llama in parts, as gguf-py writes them for convert_hf_to_gguf.py --split-max-tensors."""
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", functools.partial(gguf.GGUFWriter, **how))
        write_tiny_llama(folder / "tiny.gguf")
    return sorted(folder.glob("tiny-*.gguf"))


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    written = _split(tmp_path, monkeypatch, split_max_tensors=16)
    assert [path.name for path in written] == [f"tiny-0000{i}-of-0000{PARTS}.gguf" for i in (1, 2, 3)]
    return written


def _logits(path: Path) -> np.ndarray:
    model = llama_cpp.Llama(str(path), n_ctx=16, n_threads=1, logits_all=True, verbose=False)
    model.eval([5, 6, 7, 8])
    return np.array(model.scores[:4])


def _data(header: GgufHeader) -> dict[str, bytes]:
    found = {}
    for tensor in header.tensors:
        with header.files[tensor.file].open("rb") as file:
            file.seek(tensor.offset)
            found[tensor.name] = file.read(tensor.nbytes)
    return found


@pytest.mark.parametrize("empty_first", [False, True])
def test_from_any_part_the_whole_model_is_read(
    empty_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    parts = _split(tmp_path, monkeypatch, split_max_tensors=16, small_first_shard=empty_first)
    whole = read_header(tiny_llama)
    for part in parts:
        header = read_header(part)
        assert header.path == parts[0] and header.files == tuple(parts)
        assert header.file_size == sum(path.stat().st_size for path in parts)
        assert {tensor.file for tensor in header.tensors} == set(range(empty_first, len(parts)))
        assert [(t.name, t.dimensions, t.type_id) for t in header.tensors] == [
            (t.name, t.dimensions, t.type_id) for t in whole.tensors
        ]
        assert model_shape(header) == model_shape(whole) and header.quantization == whole.quantization
    assert _data(header) == _data(whole)


def test_llama_cpp_takes_the_same_parts_for_the_same_model(parts: list[Path], tiny_llama: Path) -> None:
    assert np.array_equal(_logits(parts[0]), _logits(tiny_llama))


def test_metadata_is_that_of_the_model_and_tells_nothing_of_parts(parts: list[Path], tiny_llama: Path) -> None:
    header, whole = read_header(parts[1]), read_header(tiny_llama)
    assert {key: header.array(key) for key in header.metadata} == {key: whole.array(key) for key in whole.metadata}
    stored, expected = parts[0].read_bytes(), tiny_llama.read_bytes()
    assert list(header.raw_fields) == list(whole.raw_fields)
    for key, (start, end) in header.raw_fields.items():
        assert stored[start:end] == expected[slice(*whole.raw_fields[key])]


def test_parts_that_links_bring_together_are_read(parts: list[Path], tmp_path: Path) -> None:
    """As in the cache of Hugging Face's hub: links with the right names to files with others."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for i, part in enumerate(parts):
        (snapshot / part.name).symlink_to(part.rename(blobs / str(i)))
    assert len(read_header(snapshot / parts[2].name).files) == PARTS


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    for given in (parts[0], parts[2]):
        with pytest.raises(InputError, match=r"tiny-00002-of-00003\.gguf: is missing; .* one of 3 parts") as caught:
            read_header(given)
        assert "one folder" in caught.value.hint


def test_a_renamed_part_is_named(parts: list[Path]) -> None:
    other = parts[1].rename(parts[1].with_name("model.gguf"))
    with pytest.raises(InputError, match=r"model\.gguf: is part 2 of 3 .* doesn't end in -00002-of-00003\.gguf"):
        read_header(other)
    shutil.copy(parts[2], parts[1])
    with pytest.raises(InputError, match=r"tiny-00002-of-00003\.gguf: is part 3 of its model, not 2: renamed"):
        read_header(parts[0])
    with pytest.raises(InputError, match=r"tiny-00002-of-00003\.gguf: is part 3 of 3 of a model, but its name"):
        read_header(parts[1])


def test_a_damaged_part_is_named(parts: list[Path]) -> None:
    os.truncate(parts[2], parts[2].stat().st_size - 4096)
    with pytest.raises(InputError, match=r"tiny-00003-of-00003\.gguf: truncated"):
        read_header(parts[0])


def _part(
    number: int, names: str = "ab", *, count: int = 3, total: int = 6, architecture: str | None = None, fields: Any = ()
) -> bytes:
    stated = [field("split.no", UINT16, number), field("split.count", UINT16, count)]
    stated += [field("split.tensors.count", INT32, total), *fields]
    if architecture:
        stated.append(field("general.architecture", STRING, architecture))
    return gguf_file(stated, [tensor_entry(name, (8,), offset=32 * i) for i, name in enumerate(names)], data=64)


SECOND_PARTS = {
    "of its own": (gguf_file([ARCHITECTURE]), "is a model of its own, not part 2 of 3"),
    "count 0": (_part(0, count=0), "is a model of its own, not part 2 of 3"),
    "of four": (_part(1, "cd", count=4), "part of another model: of 4 parts with 6 tensors, where m-00001-of-00003"),
    "of more tensors": (_part(1, "cd", total=9), "part of another model: of 3 parts with 9 tensors, where m-00001"),
    "of another architecture": (_part(1, "cd", architecture="qwen2"), "is a part of another model than m-00001"),
    "the same number": (_part(0, "cd"), "is part 1 of its model, not 2: renamed"),
    "number past the count": (_part(3, "cd"), r"split\.no is 3, expected a whole number from 0 to 2"),
    "no GGUF": (b"PK", "not a GGUF file"),
}


@pytest.mark.parametrize("name", SECOND_PARTS)
def test_a_part_that_does_not_belong_is_refused_by_name(name: str, tmp_path: Path) -> None:
    data, reason = SECOND_PARTS[name]
    paths = [tmp_path / f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for path, content in zip(paths, (_part(0, architecture="llama"), data, _part(2, "ef")), strict=True):
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_header(paths[0])
    assert str(paths[1]) in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("second", "third", "reason"),
    [
        ("cd", "e", "has 6 tensors, but up to m-00003-of-00003.gguf the parts hold 5"),
        ("cdefg", "hij", "has 6 tensors, but up to m-00002-of-00003.gguf the parts hold 7"),
        ("cb", "ef", "two parts of its model hold the tensor b"),
    ],
)
def test_tensors_that_do_not_add_up_are_refused(second: str, third: str, reason: str, tmp_path: Path) -> None:
    for i, (names, architecture) in enumerate((("ab", "llama"), (second, None), (third, None))):
        data = _part(i, names, architecture=architecture)
        (tmp_path / f"m-0000{i + 1}-of-00003.gguf").write_bytes(data + bytes(32 * len(names)))
    with pytest.raises(InputError, match=reason):
        read_header(tmp_path / "m-00001-of-00003.gguf")


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ([field("split.count", UINT16, 65535)], r"split\.count is 65535, expected a whole number from 0 to 1024"),
        ([field("split.count", STRING, "3")], r"split\.count is '3'"),
        ([field("split.count", UINT16, 3)], r"split\.no is None, expected a whole number from 0 to 2"),
        ([field("split.count", UINT16, 3), field("split.no", UINT16, 0)], r"split\.tensors\.count is None"),
        (
            [field("split.count", UINT16, 3), field("split.no", UINT16, 0), field("split.tensors.count", INT32, -1)],
            r"split\.tensors\.count is -1, expected a whole number from 1",
        ),
    ],
)
def test_absurd_split_keys_are_refused(stated: list[bytes], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00003.gguf"
    path.write_bytes(gguf_file([ARCHITECTURE, *stated]))
    with pytest.raises(InputError, match=reason):
        read_header(path)


def test_what_gguf_split_joined_is_one_file(tmp_path: Path) -> None:
    """`llama-gguf-split --merge` leaves split.count at 0; splitting into one part leaves 1."""
    for count in (0, 1):
        path = tmp_path / "any name.gguf"
        path.write_bytes(gguf_file([ARCHITECTURE, field("split.count", UINT16, count)], [tensor_entry("a", (8,))]))
        header = read_header(path)
        assert header.files == (path,) and list(header.metadata) == list(header.raw_fields) == ["general.architecture"]


def test_the_first_part_has_to_tell_the_architecture(tmp_path: Path) -> None:
    for i, names in enumerate(("ab", "cd", "ef")):
        (tmp_path / f"m-0000{i + 1}-of-00003.gguf").write_bytes(_part(i, names))
    with pytest.raises(InputError, match=r"m-00001-of-00003\.gguf: the GGUF doesn't say its general\.architecture"):
        read_header(tmp_path / "m-00003-of-00003.gguf")


def test_a_later_part_alone_has_the_default_alignment(tmp_path: Path) -> None:
    """general.alignment is in the first part only, and llama.cpp reads each by its own."""
    alignment = [field("general.alignment", 4, 8)]
    first = _part(0, "a", count=2, total=3, architecture="llama", fields=alignment)
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(first)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(_part(1, "bc", count=2, total=3))
    header = read_header(tmp_path / "m-00002-of-00002.gguf")
    assert header.alignment == 8
    assert [(tensor.file, tensor.offset % 32) for tensor in header.tensors][1:] == [(1, 0), (1, 0)]
