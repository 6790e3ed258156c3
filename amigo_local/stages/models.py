"""models: Ollama's tags and our artifacts, everything known about one of them, and removing one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, Table
from amigo_local.domain.model_ref import parse_model_ref
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument, option
from amigo_local.stages._lineage import lineage
from amigo_local.stages._models import ResolvedModel, resolve
from amigo_local.stages._removal import remove_model
from amigo_local.stages._serving import library, ollama_server, reachable

if TYPE_CHECKING:
    from amigo_local.weights.gguf_header import TensorInfo


class ModelsParams(Params, frozen=True, kw_only=True):
    action: Annotated[Literal["ls", "show", "rm"], argument("ls, show or rm.")] = "ls"
    ref: Annotated[str | None, argument("REF to show or remove.")] = None
    yes: Annotated[bool, option("rm: remove what was shown.")] = False


_COLUMNS = (
    Column("model"),
    Column("where"),
    Column("size", "bytes"),
    Column("architecture"),
    Column("quantization"),
    Column("context", "count"),
    Column("made from"),
    Column("ref"),
)
_PROPERTIES = (Column("property"), Column("value"))
Row = tuple[Figure, ...]


def run(params: ModelsParams, context: StageContext) -> StageResult:
    if params.action == "ls":
        _list(context)
        return StageResult()
    if not params.ref:
        raise InputError(f"models {params.action} needs a REF", f"amigo-local models {params.action} REF")
    if params.action == "rm":
        remove_model(params.ref, params.yes, context)
    else:
        _show(params.ref, context)
    return StageResult()


def _list(context: StageContext) -> None:
    """The last column is what `show` and `rm` take."""
    artifacts = list(context.workspace.artifacts())
    rows: list[Row] = _ollama_rows(artifacts, context)
    for entry in library(context).entries():
        rows.append(
            (entry.tag, "library", *_header_figures(Path(entry.gguf_path)), entry.gguf_path, f"ollama:{entry.tag}")
        )
    for artifact in artifacts:
        if artifact.kind in ("gguf", "checkpoint", "adapter"):
            known = _header_figures(Path(artifact.path)) if artifact.kind == "gguf" else None
            about = known or (artifact.size_bytes, None, None, None)
            rows.append((artifact.path, artifact.kind, *about, _sources(artifact), artifact.path))
    context.emit(Table("Models", _COLUMNS, tuple(rows)))


def _ollama_rows(artifacts: list[Artifact], context: StageContext) -> list[Row]:
    from amigo_local.serving.context_lengths import ContextLengths

    server = reachable(context.settings)
    if server is None:
        if context.settings.ollama.use:
            context.note("no Ollama server answers; its tags are not listed", "warning", "ollama serve")
        return []
    origins = {a.figures.get("tag"): str(a.figures.get("gguf")) for a in artifacts if a.kind == "registration"}
    tags = server.tags()
    lengths = ContextLengths(context.workspace.cache_dir / "context_lengths.json").of(server, tags)
    return [
        (
            *(tag.name, "remote" if tag.remote else "Ollama", tag.size_bytes, tag.family, tag.quantization),
            *(lengths.get(tag.digest), origins.get(tag.name), f"ollama:{tag.name}"),
        )
        for tag in tags
    ]


def _header_figures(path: Path) -> tuple[Figure, Figure, Figure, Figure]:
    """(bytes, architecture, quantization, context length) of a GGUF; dashes when it is gone."""
    from amigo_local.weights.gguf_header import read_header

    try:
        header = read_header(path)
    except InputError:
        return (None, "missing or damaged", None, None)
    return (header.file_size, header.architecture, header.quantization, header.context_length)


def _sources(artifact: Artifact) -> str:
    return ", ".join(f"{name} {digest.removeprefix('sha256:')[:12]}" for name, digest in artifact.sources.items())


def _show(text: str, context: StageContext) -> None:
    if artifact := _other_artifact(text, context):
        _show_artifact(artifact, text, context)
        return
    model = _from_library(text, context) or resolve(text, context)
    if model.unreadable:
        _show_served(text, model, model.unreadable, context)
    else:
        context.emit(Table(text, _PROPERTIES, tuple(_about(model))))
        if model.gguf:
            context.emit(_tensor_types(model.gguf))
    if found := lineage(text, model.digest, model.tag, context):
        context.emit(found)


def _from_library(text: str, context: StageContext) -> ResolvedModel | None:
    """A tag of our library that the server doesn't have: listed as well, though the server alone is asked to talk."""
    ref = parse_model_ref(text)
    if ref.kind != "ollama" or (server := reachable(context.settings)) is None or server.has(ref.value):
        return None
    own = library(context)
    if not any(entry.tag in (ref.value, f"{ref.value}:latest") for entry in own.entries()):
        return None
    entry = own.get(ref.value)
    gguf = entry.usable_gguf()
    digest = context.workspace.digests.digest(gguf)
    return ResolvedModel(ref, digest, gguf=gguf, tag=entry.tag, definition=entry.definition)


def _about(model: ResolvedModel) -> list[Row]:
    rows: list[Row] = [("reference", str(model.ref)), ("files", str(model.gguf or model.checkpoint or model.config))]
    rows.append(("digest", model.digest))
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
    if model.gguf:
        from amigo_local.weights.gguf_header import read_header

        rows.append(("chat template of the file", read_header(model.gguf).chat_template or "none"))
    if definition := model.definition:
        rows += [("template", definition.template or "none"), ("system", definition.system or "none")]
        rows += [(f"parameter {name}", str(value)) for name, value in definition.parameters]
    return rows


def _tensor_types(gguf: Path) -> Table:
    """Of each ggml type what it holds, the most bytes first."""
    from amigo_local.weights.gguf_header import read_header

    tensors = read_header(gguf).tensors
    total = sum(tensor.nbytes for tensor in tensors)
    held: dict[str, list[TensorInfo]] = {}
    for tensor in tensors:
        held.setdefault(tensor.type_name, []).append(tensor)
    rows: list[tuple[str, int, int, int, float]] = []
    for name, own in held.items():
        nbytes = sum(tensor.nbytes for tensor in own)
        rows.append((name, len(own), sum(tensor.elements for tensor in own), nbytes, nbytes / total))
    columns = (
        Column("type"),
        Column("tensors", "count"),
        Column("parameters", "count"),
        Column("bytes", "bytes"),
        Column("share", "ratio"),
    )
    rows.sort(key=lambda row: (-row[3], row[0]))
    return Table("Tensors by type", columns, tuple(rows))


def _show_served(text: str, model: ResolvedModel, why: InputError, context: StageContext) -> None:
    """What the server says of a tag whose weights can't be read here."""
    details = ollama_server(context.settings).show(model.ref.value)
    context.note(f"its weights can't be read here: {why.message}", "warning", why.hint)
    rows: list[Row] = [
        ("reference", str(model.ref)),
        ("digest", model.digest),
        ("architecture", details.architecture or None),
        ("quantization", details.quantization or None),
        ("context length", details.context_length),
        ("parameters", f"{details.parameter_count:,}" if details.parameter_count else None),
        ("template", details.template or "none"),
        ("system", details.system or "none"),
    ]
    rows += [(f"parameter {name}", str(value)) for name, value in details.parameters]
    context.emit(Table(text, _PROPERTIES, tuple(rows)))


def _other_artifact(text: str, context: StageContext) -> Artifact | None:
    """What lies there and is no model by itself: an adapter, a set, a report."""
    path = Path(text).expanduser().absolute()
    found = [artifact for artifact in context.workspace.artifacts() if Path(artifact.path) == path]
    return found[-1] if found and found[-1].kind not in ("gguf", "checkpoint") else None


def _show_artifact(artifact: Artifact, text: str, context: StageContext) -> None:
    rows: list[Row] = [
        ("kind", artifact.kind),
        ("files", artifact.path),
        ("digest", artifact.digest),
        ("size", f"{artifact.size_bytes:,} bytes"),
    ]
    rows += [(name, f"{value:.6g}" if isinstance(value, float) else value) for name, value in artifact.figures.items()]
    context.emit(Table(text, _PROPERTIES, tuple(rows)))
    if found := lineage(text, artifact.digest, None, context):
        context.emit(found)


STAGE = Stage(
    "models",
    "Ollama's tags and our artifacts; `show REF` for one, `rm REF` removes one.",
    ModelsParams,
    run,
    place="here",
    locks=False,
)
