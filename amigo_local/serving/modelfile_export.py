"""The Modelfile written next to an exported model, for the person: `ollama create NAME -f Modelfile`."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from amigo_local.domain.events import Emit, Note
from amigo_local.domain.modelfile import Modelfile


def write_modelfile(path: Path, gguf_path: Path, definition: Modelfile, emit: Emit) -> None:
    """FROM names the GGUF relative to the Modelfile's folder when it lies there.

    What Ollama's grammar can't carry (registering through the API can) is left out, with a comment in
    the file and a Note.
    """
    from_ = f"./{gguf_path.name}" if gguf_path.parent.resolve() == path.parent.resolve() else str(gguf_path.resolve())
    whole = msgspec.structs.replace(definition, from_=from_, adapter="")
    carried, lost = _without_what_is_lost(whole)
    comments = "".join(f"# Left out: {problem}\n" for problem in lost)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(comments + carried.render())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    for problem in lost:
        emit(Note(f"{path}: left out, as a Modelfile can't carry it: {problem}", level="warning"))


def _without_what_is_lost(definition: Modelfile) -> tuple[Modelfile, tuple[str, ...]]:
    lost = definition.inexpressible()
    if not lost:
        return definition, ()
    keep = {}
    for name in ("template", "system", "renderer", "parser", "requires"):
        part = Modelfile(**{name: getattr(definition, name)})
        keep[name] = "" if part.inexpressible() else getattr(definition, name)
    return (
        Modelfile(
            from_=definition.from_,
            parameters=tuple(p for p in definition.parameters if not Modelfile(parameters=(p,)).inexpressible()),
            messages=() if Modelfile(messages=definition.messages).inexpressible() else definition.messages,
            license=tuple(text for text in definition.license if not Modelfile(license=(text,)).inexpressible()),
            **keep,
        ),
        lost,
    )
