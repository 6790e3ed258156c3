"""evaluate: the same prompts to one or two models; directness, correctness in a sandbox, skills, speed."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import ChatBackend
from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import HUMANEVAL_PROBLEMS, EvaluateSettings, Suite
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Chain, Params, Stage, StageContext, StageResult, Step, argument, option
from amigo_local.stages._evaluation_requests import SKILLS, gather_requests
from amigo_local.stages._models import newest_run_with, resolve
from amigo_local.stages._serving import need_embedded
from amigo_local.stages._shapes import gguf_bytes
from amigo_local.stages._talk import (
    READ_BYTES_PER_SECOND,
    RUNTIME_BYTES,
    choose_backend,
    open_embedded,
    programs_run,
    talks_as,
)

if TYPE_CHECKING:
    from amigo_local.evaluation.results import EvaluationResult


class EvaluateRequest(Params, frozen=True, kw_only=True):
    ref: Annotated[tuple[str, ...], argument("REF of one model, or of two to compare.")]
    suite: Annotated[tuple[Suite, ...], option("Suite to run; may be given several times.")] = ()
    problems: Annotated[int | None, option("HumanEval problems to put, evenly spread; default: all.")] = None
    prompts: Annotated[str | None, option("JSON-lines file with a `prompt` column for directness.")] = None
    sets: Annotated[
        tuple[str, ...],
        option("Folder of a prepared set, whose held-out requests show skills; default: the newest run's sets."),
    ] = ()
    adapter: Annotated[str | None, option("Adapter to lay over the last model; needs llama.cpp and GGUF files.")] = None
    max_tokens: Annotated[int, option("Longest answer.")] = 512


class EvaluateParams(Params, frozen=True, kw_only=True):
    refs: tuple[str, ...]
    settings: EvaluateSettings
    dataset: str | None = None
    """Directory with held_out.jsonl, or such a file."""
    skills: dict[str, str] = {}
    """Name -> folder of a set whose held-out requests show what that stage taught, and that must not train on what
    another one holds out."""
    adapter: str | None = None
    """PEFT directory: the last of `refs` is asked with it, as llama.cpp applies it."""
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
    dataset, skills = request.prompts, {folder: _absolute(folder) for folder in request.sets}
    wanted = dataset is None and "directness" in settings.suites
    if wanted or (not skills and set(SKILLS) & set(settings.suites)):
        run_id, found = newest_run_with(context.workspace, "dataset")
        sets = [artifact.path for artifact in found if artifact.kind == "dataset"]
        if wanted:
            dataset = sets[0]  # of a chain that of the first stage, which all have in common
            context.note(f"directness prompts: the held-out ones of run {run_id}")
        skills = skills or {Path(path).name: path for path in sets}
    params = EvaluateParams(
        refs=request.ref,
        settings=settings,
        dataset=dataset,
        skills=skills,
        adapter=_absolute(request.adapter) if request.adapter else None,
    )
    yield Step("evaluate", params)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def inputs(params: EvaluateParams, context: StageContext) -> dict[str, str]:
    from amigo_local.evaluation.held_out import prompt_file

    digest = context.workspace.digests.digest
    models = [resolve(ref, context) for ref in params.refs]
    # With an adapter each is asked by its file, whatever its tag says.
    found = {f"model {i}": each.digest if params.adapter else talks_as(each) for i, each in enumerate(models)}
    found["programs run"] = programs_run(context)
    if params.adapter:
        found["adapter"] = digest(_adapter_folder(params.adapter))
        found["served by"] = "embedded"
    else:
        found["served by"] = choose_backend(params.refs, context).place
    if params.dataset:
        found["prompts"] = digest(prompt_file(params.dataset))
    for name, folder in params.skills.items():
        found[f"set {name}"] = digest(prompt_file(folder).parent)
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
    asked += (settings.humaneval_problems or HUMANEVAL_PROBLEMS) * ("humaneval" in settings.suites)
    asked += settings.skill_prompts * len(set(SKILLS) & set(settings.suites))
    tokens = (
        asked * len(params.refs) * settings.max_answer_tokens * 0.5
    )  # 7,400 of 15,360 in the demo: answers end before the limit
    seconds = None if context.machine.gpu_name else tokens * file_bytes / READ_BYTES_PER_SECOND
    adapter_bytes = _adapter_gguf_bytes(params.adapter)
    return Needs(
        ram_bytes=file_bytes + adapter_bytes + RUNTIME_BYTES,
        disk_bytes=adapter_bytes + (16 << 20),
        seconds=seconds,
    )


def _adapter_gguf_bytes(adapter: str | None) -> int:
    """Float32 of what may lie there as bfloat16; 0 where it isn't trained yet."""
    return 2 * sum(file.stat().st_size for file in Path(adapter).glob("*.safetensors")) if adapter else 0


def run(params: EvaluateParams, context: StageContext) -> StageResult:
    from amigo_local.evaluation.report import findings, write_report
    from amigo_local.evaluation.sandbox import open_sandbox
    from amigo_local.evaluation.suite import run_suites

    work = context.build_dir() / "answers"
    backend, models = _served(params, work, context)
    context.note(f"both sides are served by {backend.name}" if len(params.refs) > 1 else f"served by {backend.name}")
    sandbox = open_sandbox(context.settings.unsafe)
    asked = gather_requests(params, context)
    result = run_suites(
        params.settings,
        backend,
        models,
        asked.held_out,
        sandbox,
        context.emit,
        work,
        skills=asked.skills,
        context_length=asked.context_length,
    )
    for table in result.tables():
        context.emit(table)
    files = {}
    for label, ref in zip(result.labels, params.refs, strict=True):
        with contextlib.suppress(InputError):  # a tag of a server whose folder can't be read
            files[label] = resolve(ref, context).files
    sizes = {f"{label}, GGUF": path.stat().st_size for label, path in files.items()}
    places = {f"{label}, GGUF": str(path) for label, path in files.items()} | params.places
    if params.adapter:
        places["adapter"] = params.adapter
    write_report(result, context.build_dir() / "report.md", sizes=sizes, places=places)
    for finding in findings(result):
        context.note(finding.removeprefix("- "))
    (context.build_dir() / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    shutil.rmtree(work, ignore_errors=True)  # results.json holds every answer
    return StageResult(result.figures() | _significance(result))


def _significance(result: EvaluationResult) -> dict[str, Figure]:
    """P-values of the skills, of two models."""
    from amigo_local.evaluation.progress import compare

    changes = compare(result, result, (0, 1)) if len(result.models) == 2 else ()
    return {f"{change.name}.p_value": change.p_value for change in changes if change.name in SKILLS}


def _served(params: EvaluateParams, work: Path, context: StageContext) -> tuple[ChatBackend, tuple[str, ...]]:
    """The backend, and the names that it knows the models by."""
    if params.adapter is None:
        choice = choose_backend(params.refs, context)
        return choice.open(context), choice.models
    need_embedded()
    from amigo_local.domain.modelfile import Modelfile
    from amigo_local.evaluation.results import ADAPTED
    from amigo_local.serving.embedded import AdaptedModel
    from amigo_local.weights.adapter_gguf import write_adapter_gguf

    # Each by its file, so that no tag's definition comes to one side and not to the other.
    ggufs = [resolve(ref, context).need_gguf("an adapter") for ref in params.refs]
    base, written = ggufs[-1], work / "adapter.gguf"
    name = f"{base}{ADAPTED}"
    work.mkdir(parents=True, exist_ok=True)
    if not written.exists():  # an interrupted evaluation has left it whole
        context.progress("writing the adapter for llama.cpp", 0, 1, "adapters")
        write_adapter_gguf(_adapter_folder(params.adapter), base, written)
    adapted = AdaptedModel(base, written, Modelfile())
    return open_embedded(context, {name: adapted}), (*map(str, ggufs[:-1]), name)


def _adapter_folder(adapter: str) -> Path:
    path = Path(adapter).expanduser().absolute()
    if not (path / "adapter_config.json").is_file():
        raise InputError(f"{path} holds no adapter_config.json", "give the directory of a trained adapter")
    return path


STAGE = Stage(
    "evaluate",
    "Measure one or two models: directness, correctness in a sandbox, skills, speed.",
    EvaluateParams,
    run,
    steps,
    EvaluateRequest,
    produces="report",
    version=2,
    resumable=True,
    inputs=inputs,
    needs=needs,
    outlook=outlook,
)
