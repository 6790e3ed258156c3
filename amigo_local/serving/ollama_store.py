"""Ollama's models folder, read in place: manifests, and the blobs that they name."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.ollama_details import OllamaTag, messages_from_json, parameters_from_json
from amigo_local.serving.tag_name import parse_tag_name

_LAYER = "application/vnd.ollama.image."  # server/layer.go, server/images.go
_SERVICE_STORE = Path("/usr/share/ollama/.ollama/models")  # what install.sh makes on Linux


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    """One tag as it lies on disk. The blobs may be read, mapped and kept open, never written."""

    name: str
    manifest_digest: str
    gguf_path: Path
    gguf_digest: str
    size_bytes: int
    """Of the GGUF."""
    definition: Modelfile
    architecture: str
    quantization: str
    projectors: tuple[Path, ...]
    adapters: tuple[Path, ...]


class _Layer(msgspec.Struct, frozen=True, rename={"media_type": "mediaType"}):
    digest: str
    size: int
    media_type: str = ""


class _Manifest(msgspec.Struct, frozen=True):
    config: _Layer
    layers: tuple[_Layer, ...] = ()


class TagLister(Protocol):
    """What find_store_of asks of a server."""

    url: str

    def tags(self) -> tuple[OllamaTag, ...]: ...


def store_candidates(
    environment: Mapping[str, str] = os.environ, home: Path | None = None, root: Path = Path("/")
) -> tuple[Path, ...]:
    """Folders where a store may be, likeliest first; they need not exist. `root` is the root of the file system."""
    home = home or Path.home()
    found = [Path(environment["OLLAMA_MODELS"])] if environment.get("OLLAMA_MODELS") else []
    found += [home / ".ollama" / "models", root / _SERVICE_STORE.relative_to("/")]
    with contextlib.suppress(OSError):  # WSL: the Windows side's homes
        found += sorted((root / "mnt/c/Users").glob("*/.ollama/models"))
    return tuple(dict.fromkeys(found))


def find_store_of(server: TagLister, explicit: Path | None = None, candidates: tuple[Path, ...] | None = None) -> Path:
    """The models folder of this very server: some manifest in it has the digest that the server tells.

    Raises InputError when no folder proves itself, naming each that was tried.
    """
    tags = [tag for tag in server.tags() if not tag.remote]
    tried = (explicit,) if explicit else candidates if candidates is not None else store_candidates()
    if not tags:
        raise InputError(
            f"the Ollama server at {server.url} has no models, so its folder can't be recognized",
            "amigo-local pull TAG",
        )
    refused: InputError | None = None
    for root in tried:
        try:
            if any(_manifest_digest(root, tag.name) == tag.digest for tag in tags):
                return root
        except InputError as error:  # unreadable: another folder may still be the one
            refused = refused or error
    if refused:
        raise refused
    folders = ", ".join(map(str, tried))
    raise InputError(
        f"none of these is the models folder of the Ollama server at {server.url}: {folders}",
        "name it: set OLLAMA_MODELS as the server has it; a server on another machine has its files there",
    )


def open_tag(store_root: Path, tag: str) -> StoredModel:
    """Reads a tag's manifest and small layers; the GGUF is found and its size checked, not read.

    Raises InputError when the tag isn't in this store, has no weights here, or a file is missing or unreadable.
    """
    name = parse_tag_name(tag)
    path = store_root / name.manifest
    with _readable(store_root):
        if not path.is_file():
            raise InputError(f"{store_root} holds no {name}", f"amigo-local pull {tag}")
        raw = path.read_bytes()
    try:
        manifest = msgspec.json.decode(raw, type=_Manifest)
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is no manifest of a model: {error}", f"amigo-local pull {tag}") from error
    config = _json_blob(store_root, manifest.config)
    weights = _layers(manifest, "model")
    if config.get("remote_host") or config.get("remote_model") or not weights:
        where = f"it runs at {config['remote_host']}" if config.get("remote_host") else "it holds no GGUF"
        raise InputError(f"{name} has no weights in {store_root}: {where}", "take a tag that runs on this machine")
    gguf = weights[0]
    return StoredModel(
        name=str(name),
        manifest_digest=f"sha256:{hashlib.sha256(raw).hexdigest()}",
        gguf_path=_blob(store_root, gguf),
        gguf_digest=gguf.digest,
        size_bytes=gguf.size,
        definition=_definition(store_root, manifest, str(name)),
        architecture=config.get("model_family", ""),
        quantization=config.get("file_type", ""),
        projectors=tuple(_blob(store_root, layer) for layer in _layers(manifest, "projector")),
        adapters=tuple(_blob(store_root, layer) for layer in _layers(manifest, "adapter")),
    )


def _definition(store_root: Path, manifest: _Manifest, name: str) -> Modelfile:
    def texts(kind: str) -> tuple[str, ...]:
        return tuple(_read(store_root, layer).decode() for layer in _layers(manifest, kind))

    parameters: dict[str, Any] = {}
    for layer in _layers(manifest, "params"):
        parameters |= _json_blob(store_root, layer)
    messages = [entry for layer in _layers(manifest, "messages") for entry in _json_blob(store_root, layer)]
    config = _json_blob(store_root, manifest.config)
    return Modelfile(
        from_=name,
        template="".join(texts("template")[-1:]),
        system="".join(texts("system")[-1:]),
        parameters=parameters_from_json(parameters),
        messages=messages_from_json(messages),
        license=texts("license"),
        renderer=config.get("renderer", ""),
        parser=config.get("parser", ""),
        requires=config.get("requires", ""),
    )


def remove_broken_partials(store_root: Path) -> int:
    """Deletes the unfinished files of each blob that has an empty `-partial-N`; returns how many.

    A killed server can leave one, and from then on every pull of that blob answers EOF
    (server/download.go: blobDownload.Prepare reads each as JSON).
    """
    removed = 0
    with contextlib.suppress(OSError):
        for part in list((store_root / "blobs").glob("sha256-*-partial-*")):
            if part.exists() and part.stat().st_size == 0:
                blob = part.name.partition("-partial")[0]
                for file in part.parent.glob(f"{blob}-partial*"):
                    file.unlink()
                    removed += 1
    return removed


def _manifest_digest(store_root: Path, tag: str) -> str | None:
    path = store_root / parse_tag_name(tag).manifest
    with _readable(store_root):
        return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else None


def _layers(manifest: _Manifest, kind: str) -> tuple[_Layer, ...]:
    return tuple(layer for layer in manifest.layers if layer.media_type == _LAYER + kind)


def _blob(store_root: Path, layer: _Layer) -> Path:
    path = store_root / "blobs" / layer.digest.replace(":", "-")
    with _readable(store_root):
        found = path.stat().st_size if path.is_file() else None
        if found is not None:
            path.open("rb").close()
    if found != layer.size:
        told = "is missing" if found is None else f"has {found} bytes, its manifest says {layer.size}"
        raise InputError(f"the store's blob {path} {told}", "pull or create the model again")
    return path


def _read(store_root: Path, layer: _Layer) -> bytes:
    path = _blob(store_root, layer)
    with _readable(store_root):
        return path.read_bytes()


def _json_blob(store_root: Path, layer: _Layer) -> Any:
    try:
        return msgspec.json.decode(_read(store_root, layer))
    except msgspec.DecodeError as error:
        raise InputError(f"the store's blob {layer.digest} is no JSON: {error}", "pull the model again") from error


@contextlib.contextmanager
def _readable(store_root: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise InputError(
            f"no permission to read {error.filename or store_root}, in Ollama's models folder {store_root}",
            f"sudo setfacl -R -m u:$USER:rX {store_root}, or join its group: sudo usermod -aG ollama $USER",
        ) from error
