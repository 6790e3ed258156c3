"""models: Ollama's tags and our artifacts, and everything known about one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, Table
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument
from amigo_local.stages._models import resolve
from amigo_local.stages._serving import library, reachable


class ModelsParams(Params, frozen=True, kw_only=True):
    action: Annotated[Literal["ls", "show"], argument("ls or show.")] = "ls"
    ref: Annotated[str | None, argument("REF to show.")] = None


_COLUMNS = (
    Column("model"),
    Column("where"),
    Column("size", "bytes"),
    Column("architecture"),
    Column("quantization"),
    Column("context", "count"),
    Column("made from"),
)


def run(params: ModelsParams, context: StageContext) -> StageResult:
    if params.action == "show":
        if not params.ref:
            raise InputError("models show needs a REF", "amigo-local models show REF")
        _show(params.ref, context)
    else:
        _list(context)
    return StageResult()


def _list(context: StageContext) -> None:
    rows: list[tuple[Figure, ...]] = []
    if server := reachable(context.settings):
        for tag in server.tags():
            length = None if tag.remote else server.show(tag.name).context_length
            where = "remote" if tag.remote else "Ollama"
            origin = _registered_from(tag.name, context)
            rows.append((tag.name, where, tag.size_bytes, tag.family, tag.quantization, length, origin))
    elif context.settings.ollama.use:
        context.note("no Ollama server answers; its tags are not listed", "warning", "ollama serve")
    for entry in library(context).entries():
        rows.append((entry.tag, "library", *_header_figures(Path(entry.gguf_path)), entry.gguf_path))
    for artifact in context.workspace.artifacts():
        if artifact.kind in ("gguf", "checkpoint", "adapter"):
            known = _header_figures(Path(artifact.path)) if artifact.kind == "gguf" else None
            about = known or (artifact.size_bytes, None, None, None)
            rows.append((artifact.path, artifact.kind, *about, _lineage(artifact)))
    context.emit(Table("Models", _COLUMNS, tuple(rows)))


def _header_figures(path: Path) -> tuple[Figure, Figure, Figure, Figure]:
    """(bytes, architecture, quantization, context length) of a GGUF; dashes when it is gone."""
    from amigo_local.weights.gguf_header import read_header

    try:
        header = read_header(path)
    except InputError:
        return (None, "missing or damaged", None, None)
    return (header.file_size, header.architecture, header.quantization, header.context_length)


def _registered_from(tag: str, context: StageContext) -> str | None:
    for artifact in reversed(list(context.workspace.artifacts())):  # the newest of that name holds
        if artifact.kind == "registration" and artifact.figures.get("tag") == tag:
            return str(artifact.figures.get("gguf"))
    return None


def _lineage(artifact: Artifact) -> str:
    return ", ".join(f"{name} {digest.removeprefix('sha256:')[:12]}" for name, digest in artifact.sources.items())


def _show(text: str, context: StageContext) -> None:
    model = resolve(text, context)
    if model.unreadable:
        raise model.unreadable
    rows: list[tuple[Figure, ...]] = [
        ("reference", str(model.ref)),
        ("files", str(model.files)),
        ("digest", model.digest),
    ]
    shape = model.shape()
    if model.gguf:
        size, architecture, quantization, length = _header_figures(model.gguf)
        rows += [("size", f"{size:,} bytes"), ("architecture", architecture), ("quantization", quantization)]
        rows += [("context length", length)]
    rows += [
        ("parameters", f"{shape.parameters:,}"),
        ("layers", shape.layers),
        ("hidden size", shape.hidden_size),
        ("heads (KV heads)", f"{shape.heads} ({shape.kv_heads})"),
        ("vocabulary", f"{shape.vocabulary:,}"),
    ]
    if definition := model.definition:
        rows += [("template", definition.template or "none"), ("system", definition.system or "none")]
        rows += [(f"parameter {name}", str(value)) for name, value in definition.parameters]
    context.emit(Table(text, (Column("property"), Column("value")), tuple(rows)))
    by_digest = {artifact.digest: artifact for artifact in context.workspace.artifacts()}
    lineage: list[tuple[Figure, ...]] = []
    _walk(model.digest, by_digest, 0, lineage)
    if lineage:
        context.emit(Table("Lineage", (Column("made by"), Column("digest"), Column("path")), tuple(lineage)))


def _walk(digest: str, known: dict[str, Artifact], depth: int, rows: list[tuple[Figure, ...]]) -> None:
    """The artifact of that digest and, indented below it, what it was made from."""
    artifact = known.get(digest)
    if artifact is None:
        return
    rows.append(("  " * depth + artifact.stage, artifact.digest[:19], artifact.path))
    for name, source in artifact.sources.items():
        if source in known:
            _walk(source, known, depth + 1, rows)
        else:
            rows.append(("  " * (depth + 1) + name, source[:19], None))


STAGE = Stage(
    "models", "Ollama's tags and our artifacts; `show REF` for one.", ModelsParams, run, place="here", locks=False
)
