"""evaluate: the same prompts to one or two models; directness, correctness in a sandbox, speed."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import EvaluateSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Chain, Params, Stage, StageContext, StageResult, Step, argument, option
from amigo_local.stages._models import newest_run_with, resolve
from amigo_local.stages._shapes import gguf_bytes
from amigo_local.stages._talk import choose_backend

_READ_BYTES_PER_SECOND = 65 * 103.7e6  # of weights, once a token: SmolLM2-135M Q4_1, one thread (docs/measurements.md)
_RUNTIME_BYTES = 300 << 20  # interpreter, llama.cpp, KV cache of 4096 tokens


class EvaluateRequest(Params, frozen=True, kw_only=True):
    ref: Annotated[tuple[str, ...], argument("REF of one model, or of two to compare.")]
    suite: Annotated[
        tuple[Literal["directness", "humaneval"], ...], option("Suite to run; may be given several times.")
    ] = ()
    problems: Annotated[int | None, option("HumanEval problems to put, evenly spread; default: all.")] = None
    prompts: Annotated[str | None, option("JSON-lines file with a `prompt` column for directness.")] = None
    max_tokens: Annotated[int, option("Longest answer.")] = 512


class EvaluateParams(Params, frozen=True, kw_only=True):
    refs: tuple[str, ...]
    settings: EvaluateSettings
    dataset: str | None = None
    """Directory with held_out.jsonl, or such a file."""
    places: dict[str, str] = {}
    """For the report: what lies where."""


def steps(request: EvaluateRequest, context: StageContext) -> Chain:
    if not 1 <= len(request.ref) <= 2:
        raise InputError(f"evaluate takes one or two models, not {len(request.ref)}", "amigo-local evaluate REF [REF]")
    defaults = EvaluateSettings()
    settings = msgspec.structs.replace(
        defaults,
        suites=request.suite or defaults.suites,
        humaneval_problems=request.problems,
        max_answer_tokens=request.max_tokens,
    )
    dataset = request.prompts
    if dataset is None and "directness" in settings.suites:
        run_id, found = newest_run_with(context.workspace, "dataset")
        dataset = next(a.path for a in reversed(found) if a.kind == "dataset")
        context.note(f"directness prompts: the held-out ones of run {run_id}")
    yield Step("evaluate", EvaluateParams(refs=request.ref, settings=settings, dataset=dataset))


def inputs(params: EvaluateParams, context: StageContext) -> dict[str, str]:
    found = {f"model {i}": resolve(ref, context).digest for i, ref in enumerate(params.refs)}
    found["served by"] = choose_backend(params.refs, context).place
    if params.dataset:
        found["prompts"] = context.workspace.digests.digest(_prompt_file(params.dataset))
    return found


def needs(params: EvaluateParams, context: StageContext) -> Needs:
    sizes = []
    for ref in params.refs:
        with contextlib.suppress(InputError):  # planned before it is made: about as large as its source
            sizes.append(resolve(ref, context).files.stat().st_size)
    return _needs(params, max(sizes, default=0), context)


def outlook(params: EvaluateParams, shape: ModelShape, context: StageContext) -> Needs:
    return _needs(params, gguf_bytes(shape), context)


def _needs(params: EvaluateParams, file_bytes: int, context: StageContext) -> Needs:
    """How fast a card would answer isn't known."""
    settings = params.settings
    asked = settings.directness_prompts * ("directness" in settings.suites)
    asked += (settings.humaneval_problems or 164) * ("humaneval" in settings.suites)
    tokens = (
        asked * len(params.refs) * settings.max_answer_tokens * 0.5
    )  # 7,400 of 15,360 in the demo: answers end before the limit
    seconds = None if context.machine.gpu_name else tokens * file_bytes / _READ_BYTES_PER_SECOND
    return Needs(ram_bytes=file_bytes + _RUNTIME_BYTES, disk_bytes=16 << 20, seconds=seconds)


def run(params: EvaluateParams, context: StageContext) -> StageResult:
    from amigo_local.evaluation.report import findings, write_report
    from amigo_local.evaluation.sandbox import open_sandbox
    from amigo_local.evaluation.suite import run_suites

    choice = choose_backend(params.refs, context)
    backend = choice.open(context)
    context.note(f"both sides are served by {backend.name}" if len(params.refs) > 1 else f"served by {backend.name}")
    sandbox = open_sandbox(context.settings.unsafe)
    work = context.build_dir() / "answers"
    result = run_suites(
        params.settings,
        backend,
        choice.models,
        _prompts(params.dataset) if params.dataset else (),
        sandbox,
        context.emit,
        work,
    )
    for table in result.tables():
        context.emit(table)
    files = {}
    for label, ref in zip(result.labels, params.refs, strict=True):
        with contextlib.suppress(InputError):  # a tag of a server whose folder can't be read
            files[label] = resolve(ref, context).files
    sizes = {f"{label}, GGUF": path.stat().st_size for label, path in files.items()}
    places = {f"{label}, GGUF": str(path) for label, path in files.items()} | params.places
    write_report(result, context.build_dir() / "report.md", sizes=sizes, places=places)
    for finding in findings(result):
        context.note(finding.removeprefix("- "))
    (context.build_dir() / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    shutil.rmtree(work, ignore_errors=True)  # results.json holds every answer
    return StageResult(result.figures())


def _prompt_file(dataset: str) -> Path:
    path = Path(dataset).expanduser().absolute()
    path = path / "held_out.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"there is no prompt file {path}", "give --prompts FILE, JSON lines with a `prompt` column")
    return path


def _prompts(dataset: str) -> tuple[str, ...]:
    path = _prompt_file(dataset)
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found.append(str(msgspec.json.decode(line)["prompt"]))
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: no JSON object with a `prompt`", "one object a line") from error
    return tuple(found)


STAGE = Stage(
    "evaluate",
    "Measure one or two models: directness, correctness in a sandbox, speed.",
    EvaluateParams,
    run,
    steps,
    EvaluateRequest,
    produces="report",
    resumable=True,
    inputs=inputs,
    needs=needs,
    outlook=outlook,
)
