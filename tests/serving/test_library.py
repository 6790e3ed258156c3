from __future__ import annotations

import os
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import Message
from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.library import Library

DEFINITION = Modelfile(
    template="{{ .Prompt }}",
    system='"\t\u200d',
    parameters=(("temperature", 1.0), ("top_k", 1), ("use_mmap", True), ("stop", "1")),
    messages=(Message("user", "hi"),),
)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and more")
    return path


def test_an_entry_comes_back_as_it_was_registered(tmp_path: Path, gguf: Path) -> None:
    library = Library(tmp_path / "library", clock=lambda: 12.5)
    entry = library.register("me/model:v1", gguf, DEFINITION)
    assert Library(tmp_path / "library").get("me/model:v1") == entry
    assert (entry.tag, entry.gguf_path, entry.size_bytes, entry.created) == ("me/model:v1", str(gguf), 13, 12.5)
    assert entry.definition == DEFINITION
    assert [type(value) for _, value in entry.definition.parameters] == [float, int, bool, str]
    assert entry.usable_gguf() == gguf
    assert [path.name for path in (tmp_path / "library").iterdir()] == ["me%2Fmodel%3Av1.json"]


def test_entries_are_newest_first_and_replaced_and_removed(tmp_path: Path, gguf: Path) -> None:
    times = iter([1.0, 2.0, 3.0])
    library = Library(tmp_path / "library", clock=lambda: next(times))
    assert library.entries() == ()
    for tag in ("a", "b", "a:latest"):
        library.register(tag, gguf, Modelfile(system=tag))
    assert [(entry.tag, entry.definition.system) for entry in library.entries()] == [
        ("a:latest", "a:latest"),
        ("b:latest", "b"),
    ]
    library.remove("a")
    assert [entry.tag for entry in library.entries()] == ["b:latest"]
    assert gguf.exists()
    with pytest.raises(InputError, match="has no a"):
        library.remove("a")


def test_an_unknown_tag_names_the_nearest(tmp_path: Path, gguf: Path) -> None:
    library = Library(tmp_path / "library")
    library.register("smollm2-amigo", gguf, Modelfile())
    with pytest.raises(InputError, match="has no smollm2-amgo; the nearest are smollm2-amigo"):
        library.get("smollm2-amgo")


def test_a_file_that_changed_or_went_is_not_served(tmp_path: Path, gguf: Path) -> None:
    entry = Library(tmp_path / "library").register("m", gguf, Modelfile())
    gguf.write_bytes(b"GGUF other")
    with pytest.raises(InputError, match="was changed after it was registered") as caught:
        entry.usable_gguf()
    assert caught.value.hint == "register it again: amigo-local register FILE --tag m:latest"
    gguf.unlink()
    with pytest.raises(InputError, match="can't be read: No such file"):
        entry.usable_gguf()


def test_what_is_refused(tmp_path: Path, gguf: Path) -> None:
    library = Library(tmp_path / "library")
    text = tmp_path / "text.gguf"
    text.write_text("text")
    with pytest.raises(InputError, match=r"is no GGUF: it begins with b'text'"):
        library.register("m", text, Modelfile())
    with pytest.raises(InputError, match="can't be read"):
        library.register("m", tmp_path / "absent", Modelfile())
    with pytest.raises(InputError, match="is no Ollama model name"):
        library.register("../m", gguf, Modelfile())
    assert not (tmp_path / "library").exists()
    library.register("m", gguf, Modelfile())
    (tmp_path / "library" / "m%3Alatest.json").write_text("{")
    with pytest.raises(InputError, match=r"m%3Alatest.json can't be read"):
        library.entries()


def test_a_folder_that_cannot_be_written_keeps_the_old_entry(tmp_path: Path, gguf: Path) -> None:
    library = Library(tmp_path / "library")
    older = library.register("m", gguf, Modelfile(system="old"))
    (tmp_path / "library" / "m%3Alatest.partial").mkdir()  # stands in the way, also for root
    with pytest.raises(InputError, match="can't be written") as caught:
        library.register("m", gguf, Modelfile(system="new"))
    assert "--home" in caught.value.hint
    assert library.get("m") == older
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match=r"can't be written: Not a directory|can't be written: File exists"):
        Library(blocked / "library").register("m", gguf, Modelfile())
    assert os.path.exists(gguf)
