"""Where a model comes from, by the records of this home: which recipe of which run made it from what."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Ancestor, LineageShown
from amigo_local.engine.contract import StageContext
from amigo_local.engine.journal import JOURNAL_NAME
from amigo_local.engine.run_record import read_run
from amigo_local.engine.workspace import Workspace
from amigo_local.stages._serving import library, reachable

# Settings that name what a source was: input name -> params, first found wins.
_NAMED_BY = {"model": ("ref", "file"), "base": ("source", "base"), "dataset": ("dataset",), "adapter": ("adapter",)}


def lineage(ref: str, digest: str, tag: str | None, context: StageContext) -> LineageShown | None:
    """Of the weights with that digest; `tag` puts its registration on top. None where this home knows nothing."""
    tree = _Tree(context)
    origin = tree.of_tag(tag, digest) or tree.of_digest(digest, "model", ref)
    children = tuple(tree.made_from(digest))
    if not origin.stage and not children:
        return None
    return LineageShown(ref=ref, origin=origin, made_from_it=children)


def served_digests(context: StageContext) -> dict[str, tuple[str, ...]]:
    """Digest of a GGUF -> tags that serve it now, as far as that can be told without reading a weight."""
    found: dict[str, list[str]] = {}
    registrations = [artifact for artifact in context.workspace.artifacts() if artifact.kind == "registration"]
    for tag, manifest in _ollama_manifests(context).items():
        digest = _stored_digest(tag, manifest, context) or next(
            (
                a.sources["model"]
                for a in registrations
                if a.figures.get("manifest") == manifest and "model" in a.sources
            ),
            None,
        )
        if digest:
            found.setdefault(digest, []).append(tag)
    for entry in library(context).entries():
        for artifact in reversed(registrations):
            if artifact.figures.get("tag") == entry.tag and artifact.figures.get("gguf") == entry.gguf_path:
                found.setdefault(artifact.sources.get("model", ""), []).append(entry.tag)
                break
    return {digest: tuple(sorted(set(tags))) for digest, tags in found.items()}


def _ollama_manifests(context: StageContext) -> dict[str, str]:
    with contextlib.suppress(InputError):  # it went away meanwhile
        if server := reachable(context.settings):
            return {tag.name: tag.digest for tag in server.tags() if not tag.remote}
    return {}


def _stored_digest(tag: str, manifest: str, context: StageContext) -> str | None:
    """From the manifest in the server's folder; None where that can't be read here, or is another server's."""
    from amigo_local.serving.ollama_store import open_tag, store_candidates

    explicit = context.settings.ollama.store
    for root in (Path(explicit),) if explicit else store_candidates():
        with contextlib.suppress(InputError):
            stored = open_tag(root, tag)
            if stored.manifest_digest == manifest:
                return stored.gguf_digest
    return None


class _Tree:
    """Builds the nodes; a thing that comes twice has its sources at the first place only."""

    def __init__(self, context: StageContext) -> None:
        self._workspace = context.workspace
        self._artifacts = list(context.workspace.artifacts())
        self._by_digest = {a.digest: a for a in self._artifacts if a.kind != "report"}
        self._served = served_digests(context)
        self._recipes: dict[str, str] = {}
        self._seen: set[str] = set()

    def of_tag(self, tag: str | None, digest: str) -> Ancestor | None:
        """The newest registration of those weights under that tag."""
        for artifact in reversed(self._artifacts):
            registers = artifact.kind == "registration" and artifact.figures.get("tag") == tag
            if registers and digest in _digests(artifact).values():
                return self._node(artifact, "tag", str(tag))
        return None

    def of_digest(self, digest: str, role: str, name: str) -> Ancestor:
        artifact = self._by_digest.get(digest)
        if artifact is None:
            return Ancestor(role=role, name=name, digest=digest, tags=self._served.get(digest, ()))
        return self._node(artifact, role, Path(artifact.path).name)

    def made_from(self, digest: str) -> Iterator[Ancestor]:
        for artifact in self._artifacts:
            if digest in _digests(artifact).values():
                name = str(artifact.figures.get("tag") or Path(artifact.path).name)
                yield self._node(artifact, artifact.kind, name, deep=False)

    def _node(self, artifact: Artifact, role: str, name: str, *, deep: bool = True) -> Ancestor:
        above = artifact.digest in self._seen
        sources: tuple[Ancestor, ...] = ()
        if deep and not above:
            self._seen.add(artifact.digest)
            sources = tuple(
                self.of_digest(digest, source, _name_of(artifact, source))
                for source, digest in _digests(artifact).items()
            )
        return Ancestor(
            role=role,
            name=name,
            digest=artifact.digest,
            path=artifact.path,
            stage=artifact.stage,
            recipe=self._recipe(artifact),
            run_id=artifact.run_id,
            tags=self._served.get(artifact.digest, ()),
            sources=sources,
            is_above=deep and above and bool(_digests(artifact)),
        )

    def _recipe(self, artifact: Artifact) -> str:
        if artifact.fingerprint not in self._recipes:
            self._recipes[artifact.fingerprint] = recipe_of(artifact, self._workspace)
        return self._recipes[artifact.fingerprint]


def _digests(artifact: Artifact) -> dict[str, str]:
    """Its sources that are things; versions of packages and the like aren't."""
    return {name: digest.split()[0] for name, digest in artifact.sources.items() if digest.startswith("sha256:")}


def _name_of(artifact: Artifact, source: str) -> str:
    """What a person called that source, from the settings of what was made."""
    for key in _NAMED_BY.get(source, (source,)):
        value = artifact.params.get(key)
        if isinstance(value, str):
            return value
    _, colon, rest = source.partition(":")
    return rest if colon else ""


def recipe_of(artifact: Artifact, workspace: Workspace) -> str:
    """Name of the recipe that the run worked from; of a chain the one whose stage made it; empty without any."""
    try:
        asked = read_run(workspace, artifact.run_id).params.get("recipe") if artifact.run_id else None
    except InputError:
        return ""
    recipes = [asked] if isinstance(asked, str) else asked if isinstance(asked, list) else []
    names = [Path(str(recipe)).stem for recipe in recipes]
    if len(names) < 2:
        return "".join(names)
    return _stage_recipe(artifact, workspace) or " + ".join(names)


def _stage_recipe(artifact: Artifact, workspace: Workspace) -> str:
    """From the journal, of which only the lines that begin this artifact's stage are decoded."""
    from amigo_local.domain.events import StageStarted, decode_record

    mark = artifact.fingerprint.encode()
    with (
        contextlib.suppress(OSError, ValueError),
        (workspace.runs_dir / artifact.run_id / JOURNAL_NAME).open("rb") as f,
    ):
        for line in f:
            if mark in line and b'"stage_started"' in line:
                event = decode_record(line).event
                if isinstance(event, StageStarted):
                    return event.of
    return ""
