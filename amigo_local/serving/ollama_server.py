"""OllamaServer: what the program asks of a running Ollama besides talking to its models."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import ollama

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, LoadedModel, Note, Progress
from amigo_local.domain.modelfile import Modelfile
from amigo_local.domain.units import format_size
from amigo_local.serving.ollama_connection import is_loopback, ollama_errors, server_url
from amigo_local.serving.ollama_details import (
    OllamaTag,
    TagDetails,
    details_from_json,
    parameters_to_json,
    tag_from_json,
)
from amigo_local.serving.ollama_state import loaded_model
from amigo_local.serving.ollama_store import remove_broken_partials, store_candidates
from amigo_local.serving.tag_name import parse_tag_name

_CHUNK = 4 << 20  # bytes between two progress events of an upload
_UNLOAD_SECONDS = 60.0  # a runner that doesn't end in this time never will


class OllamaServer:
    """One server. Every method raises InputError when it doesn't answer."""

    def __init__(self, host: str | None = None, store: Path | None = None) -> None:
        """`host`: else OLLAMA_HOST, else 127.0.0.1:11434. `store`: its models folder, when not a usual place."""
        self.url = server_url(host)
        self._store = store
        direct = is_loopback(self.url)
        timeout = httpx.Timeout(None, connect=10)  # loading a large model may take minutes
        self.client = ollama.Client(self.url, timeout=timeout, trust_env=not direct)
        # For what the client's types drop (show: system, messages; tags: remote_host) or can't do (upload progress).
        self._http = httpx.Client(base_url=self.url, timeout=timeout, trust_env=not direct)

    def version(self) -> str:
        return str(self._get("/api/version")["version"])

    def is_reachable(self) -> bool:
        """Asks once, for at most two seconds."""
        try:
            return "version" in self._http.get("/api/version", timeout=2).json()
        except (httpx.HTTPError, ValueError):
            return False

    def tags(self) -> tuple[OllamaTag, ...]:
        """Newest first, as the server lists them."""
        return tuple(tag_from_json(entry) for entry in self._get("/api/tags").get("models") or ())

    def find(self, tag: str) -> OllamaTag | None:
        """The entry of that name, which the server keeps in any case of letters."""
        name = str(parse_tag_name(tag)).casefold()
        return next((entry for entry in self.tags() if entry.name.casefold() == name), None)

    def has(self, tag: str) -> bool:
        return self.find(tag) is not None

    def show(self, tag: str) -> TagDetails:
        name = str(parse_tag_name(tag))
        with ollama_errors(self.url, f"describing {tag}"):
            reply = self._http.post("/api/show", json={"model": name})
            if reply.status_code == httpx.codes.NOT_FOUND:
                raise self.unknown(tag)
            _raise_for_status(reply)
            return details_from_json(name, reply.json())

    def unknown(self, tag: str) -> InputError:
        """The error for a tag that the server doesn't have, with the nearest that it has."""
        names = [entry.name.removesuffix(":latest") for entry in self.tags()]
        near = difflib.get_close_matches(tag.removesuffix(":latest"), names, n=3, cutoff=0.5)
        nearest = f"; the nearest are {', '.join(near)}" if near else ""
        return InputError(f"the Ollama server at {self.url} has no {tag}{nearest}", f"amigo-local pull {tag}")

    def pull(self, tag: str, emit: Emit, insecure: bool = False) -> OllamaTag:
        """Layer by layer; a pull that was cut goes on where it stopped. `insecure` allows a plain-HTTP registry."""
        name = str(parse_tag_name(tag))
        try:
            self._pull(name, emit, insecure)
        except _BrokenPartial:
            if not (removed := self._mend_partials()):
                raise InputError(
                    f"pulling {tag}: the server answers EOF, because a kill left an empty file of an unfinished layer",
                    "delete blobs/*-partial* in the server's models folder, then pull again",
                ) from None
            emit(Note(f"removed {removed} unfinished files that a kill had left empty; pulling again", level="warning"))
            self._pull(name, emit, insecure)
        return self._made(name)

    def _pull(self, name: str, emit: Emit, insecure: bool) -> None:
        # A starting server deletes unfinished layers (server/images.go: PruneLayers) unless told not to.
        kept = "the same command goes on; with OLLAMA_NOPRUNE=1 a restarted server keeps the unfinished layer"
        status = None
        throttle = _Throttle(emit)
        with ollama_errors(self.url, f"pulling {name}", kept):
            try:
                with contextlib.closing(self.client.pull(name, insecure=insecure, stream=True)) as statuses:  # type: ignore[type-var]  # it is a generator
                    for status in statuses:
                        throttle(_pull_progress(status))
            except ollama.ResponseError as error:
                if error.error.strip().endswith("EOF"):
                    raise _BrokenPartial from error
                if "file does not exist" in error.error:
                    raise InputError(f"the registry has no {name}", "see https://ollama.com/library") from error
                hint = "see the address and the network, then run the same command: what came is kept"
                raise InputError(f"pulling {name}: {error.error}", hint) from error
            if status is None or status.status != "success":
                raise httpx.RemoteProtocolError("the stream ended before success")

    def _mend_partials(self) -> int:
        roots = [self._store] if self._store else store_candidates() if is_loopback(self.url) else []
        return sum(remove_broken_partials(root) for root in roots)

    def create(self, tag: str, gguf_path: Path, definition: Modelfile, emit: Emit) -> OllamaTag:
        """Registers a finished GGUF under `tag` with the definition's template, parameters, system and messages.

        The server writes the manifest last: when anything fails, an older model of that name stays as it was.
        `definition.from_` and `.adapter` aren't used: the file is the whole model.
        """
        name = str(parse_tag_name(tag))
        older = self.find(name)
        digest = self._upload(gguf_path, emit)
        request: dict[str, Any] = {"model": name, "files": {"model.gguf": digest}, "stream": True}
        request |= {key: getattr(definition, key) for key in ("template", "system", "renderer", "parser", "requires")}
        request["parameters"] = parameters_to_json(definition.parameters)
        if definition.template:  # else the server adds the stops of the template that it detects in the file
            request["parameters"].setdefault("stop", [])
        request["messages"] = [msgspec.to_builtins(message) for message in definition.messages]
        request["license"] = list(definition.license)
        self._create(name, {key: value for key, value in request.items() if value}, emit)
        if older:
            emit(Note(f"{name} was there already ({older.digest[:19]}) and is replaced"))
        return self._made(name)

    def create_checked(
        self, tag: str, gguf_path: Path, definition: Modelfile, context_length: int, emit: Emit
    ) -> tuple[OllamaTag, float]:
        """`create`, but under a passing name until the server has loaded the model and had it answer.

        A file that the server can't load never takes the place of an older model. Returns the entry and the
        seconds that loading took.
        """
        name = str(parse_tag_name(tag))
        unchecked = f"{name}-unchecked"
        self.create(unchecked, gguf_path, definition, emit)
        try:
            load_seconds = self.load(unchecked, context_length)
            self.unload(unchecked)
            if older := self.find(name):
                emit(Note(f"{name} was there already ({older.digest[:19]}) and is replaced"))
            with ollama_errors(self.url, f"naming {name}", "nothing is lost"):
                self.client.copy(unchecked, name)
        finally:
            with contextlib.suppress(InputError):  # the server may be gone; the next run takes the same name
                self.delete(unchecked)
        return self._made(name), load_seconds

    def _made(self, name: str) -> OllamaTag:
        if (entry := self.find(name)) is None:
            raise InputError(
                f"the Ollama server at {self.url} says it has made {name}, but doesn't list it", "ollama ls"
            )
        return entry

    def _create(self, name: str, request: dict[str, Any], emit: Emit) -> None:
        kept = "nothing is lost, and the same command starts over"
        done = False
        with ollama_errors(self.url, f"creating {name}", kept):
            with self._http.stream("POST", "/api/create", json=request) as reply:
                if reply.is_error:
                    reply.read()
                _raise_for_status(reply)
                for line in reply.iter_lines():
                    status = json.loads(line)
                    if "error" in status:
                        raise InputError(f"creating {name}: {status['error']}", "see that the file is a finished GGUF")
                    done = status["status"] == "success"
                    emit(Progress(label=f"creating {name}: {status['status']}", done=0, total=None, unit="bytes"))
            if not done:
                raise httpx.RemoteProtocolError("the stream ended before success")

    def _upload(self, gguf_path: Path, emit: Emit) -> str:
        """Puts a file among the server's blobs unless it is there; returns `sha256:…`."""
        try:
            total = gguf_path.stat().st_size
            gguf_path.open("rb").close()
        except OSError as error:
            raise InputError(f"{gguf_path} can't be read: {error.strerror}", "give the path of a GGUF file") from error
        sha256 = hashlib.sha256()
        for piece in _pieces(gguf_path, total, f"hashing {gguf_path.name}", emit):
            sha256.update(piece)
        digest = f"sha256:{sha256.hexdigest()}"
        with ollama_errors(self.url, f"copying {gguf_path.name} to the server", "nothing is lost"):
            if self._http.head(f"/api/blobs/{digest}").status_code != httpx.codes.OK:
                pieces = _pieces(gguf_path, total, f"copying {gguf_path.name} to the server", emit)
                _raise_for_status(self._http.post(f"/api/blobs/{digest}", content=pieces))
        return digest

    def load(self, tag: str, context_length: int) -> float:
        """Loads the model and has it answer one token; returns the seconds that loading took.

        A truncated or unsupported GGUF creates without complaint and fails only here, with an InputError.
        """
        name = str(parse_tag_name(tag))
        options = {"num_ctx": context_length, "num_predict": 1, "temperature": 0.0}
        with ollama_errors(self.url, f"loading {name}"):
            try:
                reply = self.client.chat(name, [{"role": "user", "content": "Hi"}], options=options)
            except ollama.ResponseError as error:
                if error.status_code == httpx.codes.NOT_FOUND:
                    raise self.unknown(tag) from error
                raise InputError(
                    f"the Ollama server has {name} but can't load it: {error.error}",
                    f"the file is damaged or this server doesn't know its architecture; remove it: ollama rm {name}",
                ) from error
        if not reply.eval_count:
            raise InputError(f"{name} loads but generates nothing", "see the server's log")
        return (reply.load_duration or 0) / 1e9

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The models in the server's memory now."""
        return tuple(map(loaded_model, self._get("/api/ps").get("models") or ()))

    def unload(self, tag: str) -> None:
        """Returns when the server has let go of the model's memory; nothing happens when it isn't loaded."""
        name = str(parse_tag_name(tag))
        if name not in {model.name for model in self.loaded()}:
            return
        with ollama_errors(self.url, f"unloading {name}"):
            self.client.generate(name, "", keep_alive=0)
        deadline = time.monotonic() + _UNLOAD_SECONDS
        while name in {model.name for model in self.loaded()}:
            if time.monotonic() > deadline:
                raise InputError(f"the Ollama server doesn't let go of {name}", f"ollama stop {name}")
            time.sleep(0.05)

    def unload_all(self, emit: Emit) -> tuple[LoadedModel, ...]:
        """Frees the server's memory, before training starts. Returns what was loaded, with what it held."""
        models = self.loaded()
        for model in models:
            self.unload(model.name)
            where = f", {format_size(model.size_vram_bytes)} of it VRAM" if model.size_vram_bytes else ""
            emit(Note(f"unloaded {model.name} from Ollama, which held {format_size(model.size_bytes)}{where}"))
        return models

    def delete(self, tag: str) -> None:
        name = str(parse_tag_name(tag))
        with ollama_errors(self.url, f"deleting {name}"):
            try:
                self.client.delete(name)
            except ollama.ResponseError as error:
                if error.status_code == httpx.codes.NOT_FOUND:
                    raise self.unknown(tag) from error
                raise

    def _get(self, path: str) -> dict[str, Any]:
        with ollama_errors(self.url, f"asking {path}"):
            reply = self._http.get(path)
            _raise_for_status(reply)
            answer = reply.json()
        if not isinstance(answer, dict):
            raise InputError(f"what answers at {self.url} is no Ollama server", "set OLLAMA_HOST to where it runs")
        return answer


class _BrokenPartial(Exception):
    """A pull answered EOF: an empty `-partial-N` file (server/download.go: readPart)."""


class _Throttle:
    """Passes on what is new, and at most four events a second: the server repeats itself every 60 ms."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._last: Progress | None = None
        self._at = 0.0

    def __call__(self, event: Progress) -> None:
        now, last = time.monotonic(), self._last
        completes = event.done == event.total and last != event
        if last is None or last.label != event.label or completes or now - self._at >= 0.25:
            self._last, self._at = event, now
            self._emit(event)


def _pull_progress(status: ollama.ProgressResponse) -> Progress:
    if status.digest and status.total:
        layer = status.digest.removeprefix("sha256:")[:12]
        return Progress(label=f"layer {layer}", done=status.completed or 0, total=status.total, unit="bytes")
    return Progress(label=status.status or "", done=0, total=None, unit="bytes")


def _pieces(path: Path, total: int, label: str, emit: Emit) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece
            done += len(piece)
            emit(Progress(label=label, done=done, total=total, unit="bytes"))


def _raise_for_status(reply: httpx.Response) -> None:
    if reply.is_error:
        try:
            message = str(reply.json()["error"])
        except (ValueError, KeyError, TypeError):
            message = f"{reply.status_code} {reply.reason_phrase}: is that an Ollama server?"
        raise ollama.ResponseError(message, reply.status_code)
