"""What a REF means here and now: files, digest, shape and definition, wherever the model lives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import InputError
from amigo_local.domain.model_ref import ModelRef, parse_model_ref
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Chain, StageContext, Step
from amigo_local.engine.fingerprint import digest_of_parts
from amigo_local.engine.journal import JOURNAL_NAME, read_journal
from amigo_local.engine.workspace import Workspace
from amigo_local.stages._serving import library, ollama_server, reachable
from amigo_local.stages._shapes import checkpoint_shape, config_shape

if TYPE_CHECKING:
    from amigo_local.domain.modelfile import Modelfile


@dataclass(frozen=True)
class ResolvedModel:
    """`gguf`, `checkpoint` or `config` is set; `tag` too when a server or our library serves it by that name."""

    ref: ModelRef
    digest: str
    """Of the weights: the GGUF, or the checkpoint directory."""
    gguf: Path | None = None
    checkpoint: Path | None = None
    config: Path | None = None
    """A config.json alone: dimensions to plan with, no weights."""
    tag: str | None = None
    definition: Modelfile | None = None
    unreadable: InputError | None = None
    """Why the weights of a served tag can't be read here (a remote server, a folder of another
    user): it can still talk."""

    @property
    def files(self) -> Path:
        """The GGUF or the checkpoint directory. Raises InputError when they can't be read here."""
        if self.unreadable:
            raise self.unreadable
        path = self.gguf or self.checkpoint
        if path is None:
            raise InputError(
                f"{self.config} holds no weights", "give an Ollama tag or a .gguf file; plan can do with it"
            )
        return path

    def need_gguf(self, why: str) -> Path:
        """The GGUF. Raises InputError saying what it is needed for when there is only a checkpoint."""
        _ = self.files
        if self.gguf is None:
            raise InputError(f"{self.ref} is a checkpoint; {why} needs a GGUF", "give the Ollama tag or the .gguf file")
        return self.gguf

    def shape(self) -> ModelShape:
        """Dimensions from the header or the config, without reading a weight."""
        if self.gguf:
            from amigo_local.weights.gguf_header import model_shape, read_header

            return model_shape(read_header(self.gguf))
        return config_shape(self.config) if self.config else checkpoint_shape(self.files)

    def table_type(self) -> str:
        """ggml type of the head, which is the embedding where they are tied: it stays on the host in training."""
        if self.gguf:
            from amigo_local.weights.gguf_header import read_header

            header = read_header(self.gguf)
            head = "output.weight" if "output.weight" in header.tensor_names else "token_embd.weight"
            return header.tensor(head).type_name
        from amigo_local.training.memory_plan import DEFAULT_TABLE_TYPE

        return DEFAULT_TABLE_TYPE if self.config else "BF16"


def step_by_ref(verb: str) -> Callable[[Any, StageContext], Chain]:
    """The chain of a verb that takes a `ref`: its one step, with the REF spelled as the loop spells it. Settings are
    part of a fingerprint, so that `quantize model.gguf` and a recipe's run then find each other's work done."""

    def steps(params: Any, context: StageContext) -> Chain:
        yield Step(verb, msgspec.structs.replace(params, ref=str(parse_model_ref(params.ref))))

    return steps


def resolve(text: str, context: StageContext) -> ResolvedModel:
    """Finds the model that a REF names. Raises InputError when it isn't there or can't be read."""
    ref = parse_model_ref(text)
    match ref.kind:
        case "ollama":
            return _tag(ref, context)
        case "gguf":
            return _gguf(ref, context)
        case "checkpoint":
            return _checkpoint(ref, Path(ref.value), context)
        case "hf":
            return _checkpoint(ref, _hub_snapshot(ref.value), context)
        case "run":
            return _from_run(ref, context)


def _tag(ref: ModelRef, context: StageContext) -> ResolvedModel:
    server = reachable(context.settings)
    if server is None:
        local = library(context)
        if any(entry.tag in (ref.value, f"{ref.value}:latest") for entry in local.entries()):
            entry = local.get(ref.value)
            gguf = entry.usable_gguf()
            digest = context.workspace.digests.digest(gguf)
            return ResolvedModel(ref, digest, gguf=gguf, tag=entry.tag, definition=entry.definition)
        if not context.settings.ollama.use:
            raise InputError(f"our own library has no {ref.value}", "amigo-local models ls")
        # Says why and how to mend it: nothing answers at that address.
        ollama_server(context.settings).version()
    assert server is not None
    served = server.find(ref.value)
    if served is None:
        raise server.unknown(ref.value)
    from amigo_local.serving.ollama_store import find_store_of, open_tag

    explicit = Path(context.settings.ollama.store) if context.settings.ollama.store else None
    try:
        stored = open_tag(find_store_of(server, explicit), ref.value)
    except InputError as error:
        return ResolvedModel(ref, served.digest, tag=served.name, unreadable=error)
    return ResolvedModel(ref, stored.gguf_digest, gguf=stored.gguf_path, tag=stored.name, definition=stored.definition)


def _gguf(ref: ModelRef, context: StageContext) -> ResolvedModel:
    path = Path(ref.value)
    if not path.is_file():
        raise InputError(f"there is no file {path}", "give the path of a GGUF file, or an Ollama tag")
    if path.suffix == ".json":
        return ResolvedModel(ref, "sha256:no-weights", config=path)
    from amigo_local.weights.gguf_header import read_header

    header = read_header(path)  # refuses what is no GGUF before gigabytes are hashed
    digests = [context.workspace.digests.digest(part) for part in header.files]
    digest = digests[0] if len(digests) == 1 else digest_of_parts(digests)
    return ResolvedModel(ref, digest, gguf=header.path)


def _checkpoint(ref: ModelRef, path: Path, context: StageContext) -> ResolvedModel:
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path} is no checkpoint directory: it has no config.json", "give a directory with config.json"
        )
    if not any(path.glob("*.safetensors")):
        raise InputError(f"{path} holds no .safetensors files", "give a checkpoint in safetensors format")
    return ResolvedModel(ref, context.workspace.digests.digest(path), checkpoint=path)


def _hub_snapshot(name: str) -> Path:
    """The newest snapshot of a hub repository that is on this disk already."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise InputError("hf: needs the hub client", "pip install 'amigo-local[train]'") from error
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError) as error:
        raise InputError(
            f"hf:{name} is not in the hub's cache on this machine",
            f"hf download {repository}, or amigo-local base REF --repo {repository}",
        ) from error


def _from_run(ref: ModelRef, context: StageContext) -> ResolvedModel:
    found = [a for a in run_artifacts(context.workspace, ref.value) if a.kind in ("gguf", "checkpoint")]
    if not found:
        raise InputError(f"run {ref.value} has made no model yet", f"amigo-local runs show {ref.value}")
    newest = next((a for a in reversed(found) if a.kind == "gguf"), found[-1])
    path = Path(newest.path)
    if newest.kind == "gguf":
        return ResolvedModel(ref, newest.digest, gguf=path)
    return ResolvedModel(ref, newest.digest, checkpoint=path)


def run_artifacts(workspace: Workspace, run_id: str) -> list[Artifact]:
    """What a run made or found done, in order. Raises InputError for an unknown run."""
    journal = workspace.runs_dir / run_id / JOURNAL_NAME
    if not journal.is_file():
        raise InputError(f"there is no run {run_id}", "amigo-local runs ls")
    found = [getattr(record.event, "artifact", None) for record in read_journal(journal)]
    return [artifact for artifact in found if artifact is not None]


def newest_run_with(workspace: Workspace, kind: str) -> tuple[str, list[Artifact]]:
    """The newest run that made an artifact of that kind. Raises InputError when there is none."""
    journals = workspace.runs_dir.glob(f"*/{JOURNAL_NAME}")
    for journal in sorted(journals, key=lambda path: path.stat().st_mtime, reverse=True):
        found = run_artifacts(workspace, journal.parent.name)
        if any(artifact.kind == kind for artifact in found):
            return journal.parent.name, found
    raise InputError(f"no run in {workspace.root} has made a {kind} yet", "amigo-local run RECIPE, or give --run ID")
