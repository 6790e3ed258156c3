"""register: gives a finished GGUF a tag, with template, parameters and system of the source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.errors import InputError
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument, option
from amigo_local.stages._models import resolve
from amigo_local.stages._serving import library, reachable, served_by

if TYPE_CHECKING:
    from amigo_local.domain.modelfile import Modelfile

_DEFAULT_CONTEXT = 4096  # what Ollama takes without num_ctx; written down so that both sides have the same


class RegisterParams(Params, frozen=True, kw_only=True):
    file: Annotated[str, argument("The GGUF file.")]
    tag: Annotated[str, option("Name to register it under.")]
    like: Annotated[str | None, option("Tag whose template, parameters and system it takes.")] = None
    context_length: Annotated[int | None, option("num_ctx to write; default: the source's, else 4096.")] = None


def inputs(params: RegisterParams, context: StageContext) -> dict[str, str]:
    model = resolve(_path(params), context)
    _refuse_split(model.need_gguf("register"))
    found = {"model": model.digest, "server": served_by(context.settings)}
    if params.like:
        found["like"] = _digest_of(definition_like(params.like, context))
    return found


def still_holds(params: RegisterParams, artifact: Artifact, context: StageContext) -> bool:
    """Someone may have removed or replaced the tag since."""
    server = reachable(context.settings)
    if server is None:
        found = [entry for entry in library(context).entries() if entry.tag == artifact.figures.get("tag")]
        if not found or Path(found[0].gguf_path) != Path(_path(params)).resolve():
            return False
        try:
            found[0].usable_gguf()
        except InputError:
            return False  # made anew at the same place
        return True
    return any(
        entry.name == artifact.figures.get("tag") and entry.digest == artifact.figures.get("manifest")
        for entry in server.tags()
    )


def run(params: RegisterParams, context: StageContext) -> StageResult:
    from amigo_local.serving.modelfile_export import write_modelfile

    gguf = resolve(_path(params), context).need_gguf("register")
    definition = definition_like(params.like, context) if params.like else definition_for(gguf, context)
    length = params.context_length or int(definition.parameter("num_ctx") or _DEFAULT_CONTEXT)
    definition = msgspec.structs.replace(definition.with_parameter("num_ctx", length), from_=str(gguf))
    figures: dict[str, Figure] = {"gguf": str(gguf), "size_bytes": gguf.stat().st_size, "context_length": length}
    if server := reachable(context.settings):
        created, seconds = server.create_checked(params.tag, gguf, definition, length, context.emit)
        figures |= {"tag": created.name, "manifest": created.digest, "served_by": f"Ollama at {server.url}"}
        figures["load_seconds"] = seconds
        context.note(f"registered {created.name} with Ollama; it loads and answers: ollama run {created.name}", "good")
    else:
        entry = library(context).register(params.tag, gguf, definition)
        figures |= {"tag": entry.tag, "served_by": "our own library (no Ollama server answers)"}
        context.note(f"registered {entry.tag} in our own library: amigo-local chat {entry.tag}", "good")
    write_modelfile(context.build_dir() / "Modelfile", gguf, definition, context.emit)
    (context.build_dir() / "registration.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1))
    return StageResult(figures)


def definition_like(tag: str, context: StageContext) -> Modelfile:
    """What that tag is besides its weights. Raises InputError for an unknown tag."""
    if server := reachable(context.settings):
        from amigo_local.serving.ollama_details import definition_from_show

        return definition_from_show(server.show(tag))
    return library(context).get(tag).definition


def definition_for(gguf: Path, context: StageContext) -> Modelfile:
    """The family's definition from `modelfiles/`, for a file that has no tag to take one from."""
    from amigo_local.serving.templates import choose_template
    from amigo_local.weights.gguf_header import read_header

    header = read_header(gguf)
    chosen = choose_template(header.chat_template, header.architecture)
    proof = "renders the same prompts as the model's own" if chosen.exact else "is the nearest known"
    context.note(f"chat template: {chosen.family}, which {proof}", "info" if chosen.exact else "warning")
    return chosen.definition


def _refuse_split(gguf: Path) -> None:
    """Ollama and our library keep one file for a tag."""
    from amigo_local.weights.gguf_header import read_header

    if (parts := len(read_header(gguf).files)) > 1:
        raise InputError(
            f"{gguf} is the first of {parts} parts, a tag takes one file",
            f"join them: amigo-local export --base {gguf} --out joined.gguf",
        )


def _path(params: RegisterParams) -> str:
    path = str(Path(params.file).expanduser().absolute())
    if not path.lower().endswith(".gguf") and not Path(path).is_file():
        raise InputError(f"there is no file {path}", "give the path of a GGUF file")
    return path


def _digest_of(definition: Modelfile) -> str:
    import hashlib

    return f"sha256:{hashlib.sha256(msgspec.json.encode(definition)).hexdigest()}"


STAGE = Stage(
    "register",
    "Give a GGUF a tag, with template, parameters and system of the source.",
    RegisterParams,
    run,
    produces="registration",
    inputs=inputs,
    still_holds=still_holds,
)
