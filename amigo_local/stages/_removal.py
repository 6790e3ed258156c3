"""What `models rm` takes away: an Ollama tag, a tag of our library, or an artifact of this home."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, Table
from amigo_local.domain.model_ref import parse_model_ref
from amigo_local.domain.units import format_size
from amigo_local.engine.contract import StageContext
from amigo_local.engine.lock import hold_home
from amigo_local.stages._serving import library, ollama_server, reachable

Dependent = tuple[str, str]
"""What it is, and what becomes of it."""


@dataclass(frozen=True)
class Removal:
    """One thing to remove."""

    name: str
    where: str
    size_bytes: int
    remove: Callable[[], None]
    dependents: tuple[Dependent, ...] = ()
    blocked_by: InputError | None = None
    """Why it can't be removed before something else is."""


def remove_model(text: str, yes: bool, context: StageContext) -> None:
    """Says what goes and what depends on it; removes it with `yes` alone, under the home's lock.

    Raises InputError when there is no such thing, it isn't ours to remove, or a run is going on.
    """
    removal = find_removal(text, context)
    columns = (Column("what"), Column("where"), Column("size", "bytes"))
    row = (removal.name, removal.where, removal.size_bytes)
    context.emit(Table("To be removed" if yes else "Would be removed", columns, (row,)))
    if removal.dependents:
        context.emit(Table("Depends on it", (Column("what"), Column("what becomes of it")), removal.dependents))
    if removal.blocked_by:
        raise removal.blocked_by
    if not yes:
        context.note("nothing was removed", fix=f"amigo-local models rm {text} --yes")
        return
    context.workspace.prepare()
    with hold_home(context.workspace.root, f"amigo-local models rm {text}"):
        removal.remove()
    context.note(f"removed {removal.name} ({format_size(removal.size_bytes)})", "good")


def find_removal(text: str, context: StageContext) -> Removal:
    """Raises InputError when nothing of that name is here, or it lies where we have no say."""
    path = Path(text).expanduser().absolute()
    for artifact in context.workspace.artifacts():
        if Path(artifact.path) == path:
            return _artifact(artifact, context)
    ref = parse_model_ref(text)
    if ref.kind == "ollama":
        return _tag(ref.value, context)
    if ref.kind in ("gguf", "checkpoint") and Path(ref.value).exists():
        raise InputError(
            f"{ref.value} is no artifact of {context.workspace.root}: it isn't removed", "remove it yourself"
        )
    raise InputError(f"there is no {text} to remove", "amigo-local models ls shows what there is")


def _artifact(artifact: Artifact, context: StageContext) -> Removal:
    workspace = context.workspace
    folder = workspace.default_path(artifact.stage, artifact.fingerprint)
    if folder not in (Path(artifact.path), *Path(artifact.path).parents):
        raise InputError(
            f"{artifact.path} was written with --out, not among {workspace.root}'s own: it isn't removed",
            "remove it yourself; amigo-local runs clean then forgets it",
        )
    dependents: list[Dependent] = []
    by_it = [
        entry.tag for entry in library(context).entries() if Path(artifact.path).resolve() == Path(entry.gguf_path)
    ]
    dependents += [(tag, "our library serves this very file") for tag in by_it]
    for other in workspace.artifacts():
        if artifact.digest in " ".join(other.sources.values()).split():
            tag = other.figures.get("tag")
            fate = (
                "stays, Ollama has a copy" if other.figures.get("manifest") else "stays; to make it anew, this is too"
            )
            if tag not in by_it:
                dependents.append((str(tag or other.path), fate))
    blocked = None
    if by_it:
        blocked = InputError(
            f"our library serves {artifact.path} as {by_it[0]}", f"amigo-local models rm {by_it[0]} --yes"
        )
    return Removal(
        artifact.path,
        f"{artifact.kind} in this home",
        artifact.size_bytes,
        lambda: workspace.forget(artifact),
        tuple(dict.fromkeys(dependents)),
        blocked,
    )


def _tag(name: str, context: StageContext) -> Removal:
    server = reachable(context.settings)
    if server and (found := server.find(name)):
        alike = [tag.name for tag in server.tags() if tag.name != found.name and tag.digest == found.digest]
        dependents = [(tag, "stays: the same model under another name, so nothing is freed") for tag in alike]
        dependents += _made_by(found.name, context)
        return Removal(
            found.name,
            f"Ollama at {server.url}",
            found.size_bytes,
            lambda: server.delete(found.name),
            tuple(dependents),
        )
    own = library(context)
    if any(entry.tag in (name, f"{name}:latest") for entry in own.entries()):
        entry = own.get(name)
        stays: Dependent = (entry.gguf_path, "stays: only the name is forgotten")
        return Removal(entry.tag, f"library in {own.root}", 0, lambda: own.remove(entry.tag), (stays,))
    if server:
        raise InputError(server.unknown(name).message, "amigo-local models ls shows what there is")
    if not context.settings.ollama.use:
        own.get(name)  # raises, with the nearest names
    raise InputError(
        f"our library has no {name}, and no Ollama server answers at {ollama_server(context.settings).url}",
        "ollama serve, then the same command",
    )


def _made_by(tag: str, context: StageContext) -> list[Dependent]:
    """What was made from the weights of that tag, by the settings that name it."""
    names = {f"ollama:{tag}", f"ollama:{tag.removesuffix(':latest')}"}
    return [
        (artifact.path, "stays; to go on with it, the tag must be pulled again")
        for artifact in context.workspace.artifacts()
        if names & {str(value) for key, value in artifact.params.items() if key in ("ref", "source", "base")}
    ]
