"""base: finds the checkpoint that a GGUF was made from, fetches it, and proves that it is the one."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError, Cancelled, InputError
from amigo_local.domain.plan import Needs
from amigo_local.engine.contract import Chain, Params, Stage, StageContext, StageResult, Step, argument, option
from amigo_local.engine.workspace import remove
from amigo_local.stages._models import ResolvedModel, resolve

if TYPE_CHECKING:
    from amigo_local.serving.hub import Hub, HubFile, HubSnapshot
    from amigo_local.weights.base_candidates import Candidate
    from amigo_local.weights.compare_base import BaseComparison
    from amigo_local.weights.gguf_header import GgufHeader

_COMMIT = re.compile(r"[0-9a-f]{40}")
_RAM_BYTES = 256 << 20  # 114 MB at the peak for SmolLM2-135M, and nothing of it grows with the model
_BYTES_PER_SECOND = 20e6  # of the checkpoint: the download on a line of 200 Mbit/s, beside which comparing is short
# Beside the weights, what a checkpoint needs to be loaded.
_COMPANIONS = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|tokenizer\.model|merges\.txt|chat_template\.jinja|model\.safetensors\.index\.json|(LICENSE|NOTICE)(\.\w+)?"
)
REPORT = "base_comparison.json"


class BaseRequest(Params, frozen=True, kw_only=True):
    ref: Annotated[str, argument("REF of the model whose original is looked for.")]
    repo: Annotated[str | None, option("ORG/NAME to fetch and compare; default: only list candidates.")] = None
    revision: Annotated[str | None, option("Branch, tag or commit of it; default: the newest.")] = None
    out: Annotated[str | None, option("Directory to write; default: in the home folder.")] = None
    accept: Annotated[bool, option("Take it even if the weights say that it is another model.")] = False


class BaseParams(Params, frozen=True, kw_only=True):
    ref: str
    repo: str
    revision: str
    """The commit, so that the same settings always fetch the same files."""
    out: str | None = None
    accept: bool = False


def steps(params: BaseRequest, context: StageContext) -> Chain:
    model = resolve(params.ref, context)
    gguf = model.need_gguf("looking for its original")
    if params.repo is None:
        _list_candidates(params.ref, model, gguf, context)
        return
    from amigo_local.serving.hub import Hub

    revision = params.revision
    if revision is None or not _COMMIT.fullmatch(revision):
        revision = Hub().snapshot(params.repo, revision).revision
        context.note(f"{params.repo} is at {revision}")
    made = yield Step(
        "base",
        BaseParams(ref=params.ref, repo=params.repo, revision=revision, out=params.out, accept=params.accept),
    )
    context.note(f"to train on it, in the recipe: model.base: {made.path}", "good")


def inputs(params: BaseParams, context: StageContext) -> dict[str, str]:
    return {"model": resolve(params.ref, context).digest}


def needs(params: BaseParams, context: StageContext) -> Needs:
    from amigo_local.serving.hub import Hub

    hub = Hub()
    size = sum(file.size_bytes for file in _wanted(hub, hub.snapshot(params.repo, params.revision)))
    header = _header(resolve(params.ref, context).need_gguf("looking for its original"))
    # A multimodal checkpoint is there a second time while its language model is taken out.
    twice = 2 if header.architecture == "gemma3" else 1
    return Needs(disk_bytes=twice * size, ram_bytes=_RAM_BYTES, seconds=size / _BYTES_PER_SECOND)


def run(params: BaseParams, context: StageContext) -> StageResult:
    """Looks at tables, then at a few rows, and only then downloads: no 24 GB to be told no."""
    from amigo_local.serving.hub import Hub
    from amigo_local.weights.compare_base import compare, pair_tensors
    from amigo_local.weights.language_checkpoint import is_multimodal, write_language_checkpoint
    from amigo_local.weights.safetensors_file import read_checkpoint

    build = context.build_dir()
    fetched, checkpoint = build / "fetched", build / "checkpoint"
    if checkpoint.exists():  # renamed when it was complete
        return StageResult(_read_figures(checkpoint), payload=checkpoint.name)
    header = _header(resolve(params.ref, context).need_gguf("looking for its original"))
    hub = Hub()
    snapshot = hub.snapshot(params.repo, params.revision)
    if not fetched.exists():
        try:
            _refuse_another(look(hub, snapshot, header, build / "outline", context), params, header)
        except AmigoError:
            remove(build)  # nothing worth resuming
            raise
        remove(build / "outline")
        fetched.mkdir()
    _download(hub, snapshot, fetched, context)
    stored = read_checkpoint(fetched)
    pairs = pair_tensors(header, stored, params.repo)
    comparison = compare(header, [(pair, pair.rows) for pair in pairs], context.emit, "comparing")
    _refuse_another(comparison, params, header)
    context.note(sentence(comparison, params.repo, header), "warning" if comparison.verdict == "another" else "good")
    finished = fetched
    if is_multimodal(stored):
        finished = build / "language"
        remove(finished)
        write_language_checkpoint(header, fetched, stored, finished, context.emit)
        context.note("its vision tower was left out: training and merging take the language model")
    figures = _write_report(comparison, params, finished)
    finished.rename(checkpoint)
    remove(fetched)
    return StageResult(figures, payload=checkpoint.name)


def _write_report(comparison: BaseComparison, params: BaseParams, directory: Path) -> dict[str, Figure]:
    """Writes the figures and every tensor's error beside the weights."""
    figures: dict[str, Figure] = {
        "repo": params.repo,
        "revision": params.revision,
        "verdict": comparison.verdict,
        "tensors": len(comparison.tensors),
        "changed_tensors": len(comparison.changed),
        "change": comparison.change,
        "worst_tensor": comparison.worst.name,
        "worst_error": comparison.worst.error,
        "mean_error": comparison.mean_error,
    }
    report = {"figures": figures, "tensors": comparison.tensors}
    (directory / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    return figures


def _read_figures(directory: Path) -> dict[str, Figure]:
    report = msgspec.json.decode((directory / REPORT).read_bytes(), type=dict[str, Any])
    figures: dict[str, Figure] = report["figures"]
    return figures


def _header(gguf: Path) -> GgufHeader:
    from amigo_local.weights.gguf_header import read_header

    return read_header(gguf)


def look(hub: Hub, snapshot: HubSnapshot, header: GgufHeader, outline: Path, context: StageContext) -> BaseComparison:
    """What tables and a few rows say, at the cost of kilobytes. Raises InputError for another shape."""
    from amigo_local.weights.checkpoint_outline import fetch_outline, fetch_rows
    from amigo_local.weights.compare_base import compare, pair_tensors, probe

    def read(path: str, start: int, stop: int) -> bytes:
        return hub.read(snapshot, path, start, stop)

    stored = fetch_outline(outline, snapshot.repo, snapshot.sizes(), read)
    parts = probe(pair_tensors(header, stored, snapshot.repo))
    for done, (pair, rows) in enumerate(parts):
        fetch_rows(pair.stored, rows, read)
        context.progress(f"looking at {snapshot.repo}", done + 1, len(parts), "tensors")
    return compare(header, parts, lambda event: None, "")


def _wanted(hub: Hub, snapshot: HubSnapshot) -> list[HubFile]:
    """The checkpoint and what belongs to it: not the copies in other formats that many repositories hold."""
    from amigo_local.weights.checkpoint_outline import weight_files

    def read(path: str, start: int, stop: int) -> bytes:
        return hub.read(snapshot, path, start, stop)

    weights = weight_files(snapshot.repo, snapshot.sizes(), read)
    return [file for file in snapshot.files if file.path in weights or _COMPANIONS.fullmatch(file.path)]


def _download(hub: Hub, snapshot: HubSnapshot, directory: Path, context: StageContext) -> None:
    files = _wanted(hub, snapshot)
    total, done = sum(file.size_bytes for file in files), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        context.progress(f"fetching {snapshot.repo}", done, total, "bytes")

    for file in files:
        hub.download(snapshot, file, directory, on_bytes)


def _refuse_another(comparison: BaseComparison, params: BaseParams, header: GgufHeader) -> None:
    if comparison.verdict == "another" and not params.accept:
        raise AmigoError(
            sentence(comparison, params.repo, header),
            f"other candidates: amigo-local base {params.ref}; to take it all the same: --accept",
        )


def sentence(comparison: BaseComparison, repo: str, header: GgufHeader) -> str:
    """The verdict with its evidence."""
    count, changed, worst = len(comparison.tensors), comparison.changed, comparison.worst
    name = header.path.name
    if comparison.verdict == "identical":
        return (
            f"{repo} is what {name} was made from: all {count} tensors compared are its own up to quantization"
            f" (largest error {worst.error:.2%}, in {worst.name}; the type {worst.type} alone costs"
            f" {worst.quantization:.2%})"
        )
    layers = ", ".join(f"{layer} by {change:.2%}" for layer, change in comparison.most_changed_layers())
    if comparison.verdict == "fine-tuned":
        return (
            f"{name} was tuned from {repo}, or requantized from a coarser copy: {len(changed)} of {count} tensors"
            f" compared differ by more than quantization explains, all weights by {comparison.change:.2%};"
            f" most: {layers}"
        )
    return (
        f"{repo} is not what {name} was made from: its weights differ by {comparison.change:.0%} of their size,"
        f" where quantization alone costs {worst.quantization:.0%} at most; most: {layers}"
    )


def _list_candidates(ref: str, model: ResolvedModel, gguf: Path, context: StageContext) -> None:
    """A note for each candidate and what to run next. A hub that answers is asked which of them it is."""
    from amigo_local.weights.base_candidates import base_candidates

    header = _header(gguf)
    found = base_candidates(header, model.tag)
    if not found:
        context.note(
            "nothing in the file says what it was made from, and no well-known model has its shape",
            "warning",
            f"amigo-local base {ref} --repo ORG/NAME",
        )
        return
    gates = {True: " (gated)", False: "", None: " (may be gated)"}
    for candidate in found:
        context.note(f"{candidate.repo}{gates[candidate.gated]}: {candidate.reason}")
    best = _ask_hub(found, header, context) or found[0].repo
    context.note("to fetch one and compare it tensor by tensor:", fix=f"amigo-local base {ref} --repo {best}")


def _ask_hub(found: tuple[Candidate, ...], header: GgufHeader, context: StageContext) -> str | None:
    """Looks at each candidate until one is the original; else the nearest. None: there is none, or no hub."""
    from amigo_local.serving.hub import Hub, HubUnreachable

    nearest: tuple[float, str] | None = None
    try:
        hub = Hub()
        for candidate in found:
            try:
                with tempfile.TemporaryDirectory(prefix="amigo-base-") as folder:
                    snapshot = hub.snapshot(candidate.repo)
                    comparison = look(hub, snapshot, header, Path(folder) / "outline", context)
            except (HubUnreachable, Cancelled):
                raise
            except AmigoError as error:
                context.note(error.message, "warning", error.hint)
                continue
            context.note(f"at a glance, {sentence(comparison, candidate.repo, header)}")
            if comparison.verdict == "identical":
                return candidate.repo
            if comparison.verdict == "fine-tuned" and (nearest is None or comparison.change < nearest[0]):
                nearest = comparison.change, candidate.repo
    except InputError as error:  # no client, or no hub
        context.note(f"not looked at: {error.message}", "warning", error.hint)
    return nearest[1] if nearest else None


STAGE = Stage(
    "base",
    "Find, fetch and prove the original checkpoint that a model was made from.",
    BaseParams,
    run,
    steps,
    BaseRequest,
    produces="checkpoint",
    resumable=True,
    inputs=inputs,
    needs=needs,
)
