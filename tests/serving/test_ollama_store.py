from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import Message
from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.ollama_details import definition_from_show
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.serving.ollama_store import find_store_of, open_tag, remove_broken_partials, store_candidates
from tests.serving.conftest import Events
from tests.support.ollama_server import RealOllama

NOBODY = 65534


@pytest.fixture
def stored(server: OllamaServer, tiny_gguf: Path, events: Events) -> str:
    definition = Modelfile(
        template="{{ .Prompt }}\n",
        system='"sys"\t',
        parameters=(("stop", "a"), ("stop", "b"), ("top_k", 7)),
        messages=(Message("user", "hi"),),
        license=("one", "two"),
    )
    server.create("me/stored:v1", tiny_gguf, definition, events)
    return "me/stored:v1"


@pytest.fixture
def a_copy(ollama_server: RealOllama, stored: str, tmp_path: Path) -> Path:
    """A store of ours, to break."""
    return Path(shutil.copytree(ollama_server.models, tmp_path / "store", copy_function=os.link))


def test_a_tag_is_read_in_place(server: OllamaServer, ollama_server: RealOllama, stored: str, tiny_gguf: Path) -> None:
    model = open_tag(ollama_server.models, stored)
    assert model.gguf_path.read_bytes() == tiny_gguf.read_bytes()
    assert model.gguf_digest == f"sha256:{hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()}"
    assert model.size_bytes == tiny_gguf.stat().st_size
    assert model.manifest_digest == next(tag.digest for tag in server.tags() if tag.name == stored)
    assert (model.architecture, model.quantization) == ("llama", "Q8_0")
    assert (model.projectors, model.adapters) == ((), ())
    shown = definition_from_show(server.show(stored))
    assert model.definition == Modelfile(
        **{**{f: getattr(shown, f) for f in shown.__struct_fields__}, "license": ("one", "two")}
    )


def test_the_manifest_digest_proves_the_store(
    server: OllamaServer, ollama_server: RealOllama, stored: str, tmp_path: Path
) -> None:
    candidates = (tmp_path / "absent", tmp_path, ollama_server.models)
    assert find_store_of(server, candidates=candidates) == ollama_server.models
    assert find_store_of(server, explicit=ollama_server.models) == ollama_server.models


def test_a_folder_that_is_not_the_servers_is_refused(server: OllamaServer, a_copy: Path, stored: str) -> None:
    manifests = [path for path in (a_copy / "manifests").rglob("*") if path.is_file()]
    for path in manifests:
        text = path.read_text()
        path.unlink()  # it is a hard link
        path.write_text(text + "\n")
    with pytest.raises(InputError, match="none of these is the models folder of the Ollama server") as caught:
        find_store_of(server, explicit=a_copy)
    assert str(a_copy) in caught.value.message and "OLLAMA_MODELS" in caught.value.hint


def test_a_server_without_models_has_no_provable_store(own_server: RealOllama) -> None:
    with pytest.raises(InputError, match="has no models"):
        find_store_of(OllamaServer(own_server.host), explicit=own_server.models)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Permissions don't bind root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("folder", ["manifests", "blobs"])
def test_a_store_that_may_not_be_read_says_which_folder_and_what_to_do(
    server: OllamaServer, stored: str, a_copy: Path, folder: str, request: pytest.FixtureRequest
) -> None:
    for parent in (a_copy, *a_copy.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    (a_copy / folder).chmod(0o000)
    request.getfixturevalue("unprivileged")
    with pytest.raises(InputError, match="no permission to read") as caught:
        open_tag(find_store_of(server, explicit=a_copy), stored)
    assert str(a_copy) in caught.value.message
    assert f"setfacl -R -m u:$USER:rX {a_copy}" in caught.value.hint and "usermod -aG ollama" in caught.value.hint


def edit_manifest(store: Path, tag: str, change: dict[str, object]) -> None:
    path = store / "manifests/registry.ollama.ai/me/stored/v1"
    manifest = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(manifest | change))


def test_a_remote_entry_has_no_weights(a_copy: Path, stored: str) -> None:
    config = json.dumps({"remote_host": "https://ollama.com:443", "remote_model": "big"}).encode()
    digest = hashlib.sha256(config).hexdigest()
    (a_copy / "blobs" / f"sha256-{digest}").write_bytes(config)
    edit_manifest(a_copy, stored, {"config": {"digest": f"sha256:{digest}", "size": len(config)}, "layers": []})
    with pytest.raises(InputError, match=r"has no weights in .*: it runs at https://ollama.com:443"):
        open_tag(a_copy, stored)


def test_damage_is_told(a_copy: Path, stored: str) -> None:
    with pytest.raises(InputError, match="holds no me/absent:latest"):
        open_tag(a_copy, "me/absent")
    blob = open_tag(a_copy, stored).gguf_path
    data = blob.read_bytes()
    blob.unlink()
    with pytest.raises(InputError, match=f"blob {blob} is missing"):
        open_tag(a_copy, stored)
    blob.write_bytes(data[:-1])
    with pytest.raises(InputError, match=f"has {len(data) - 1} bytes, its manifest says {len(data)}"):
        open_tag(a_copy, stored)
    edit_manifest(a_copy, stored, {"layers": "none"})
    with pytest.raises(InputError, match="is no manifest of a model"):
        open_tag(a_copy, stored)


def test_where_stores_are_looked_for(tmp_path: Path) -> None:
    windows = tmp_path / "mnt/c/Users/Ana/.ollama/models"
    windows.mkdir(parents=True)
    home = tmp_path / "home/ana"
    assert store_candidates({"OLLAMA_MODELS": "/data/models"}, home, tmp_path) == (
        Path("/data/models"),
        home / ".ollama/models",
        tmp_path / "usr/share/ollama/.ollama/models",
        windows,
    )


def test_only_blobs_with_an_empty_part_lose_their_unfinished_files(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name, text in {"sha256-a-partial": "data", "sha256-a-partial-0": "", "sha256-a-partial-1": "{}"}.items():
        (blobs / name).write_text(text)
    for name, text in {"sha256-b-partial": "data", "sha256-b-partial-0": "{}", "sha256-c": ""}.items():
        (blobs / name).write_text(text)
    assert remove_broken_partials(tmp_path) == 3
    assert sorted(path.name for path in blobs.iterdir()) == ["sha256-b-partial", "sha256-b-partial-0", "sha256-c"]
    assert remove_broken_partials(tmp_path / "absent") == 0
