"""answers: what the models answered in an evaluation, and how it was judged."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import AnswerShown, Column, Table
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument, option
from amigo_local.engine.workspace import Workspace
from amigo_local.stages._models import run_artifacts

if TYPE_CHECKING:
    from amigo_local.evaluation.results import EvaluationResult, Judged

_RESULTS = "results.json"
_HINT = "amigo-local answers lists them"
_COLUMNS = (
    Column("id"),
    Column("suite"),
    Column("model"),
    Column("verdict"),
    Column("tokens", "count"),
    Column("before code", "count"),
)


class _Suites(msgspec.Struct, frozen=True):
    suites: tuple[str, ...] = ()


class _Asked(msgspec.Struct, frozen=True):
    """Of EvaluateParams, whatever version wrote them, what tells one evaluation from another."""

    refs: tuple[str, ...] = ()
    adapter: str | None = None
    settings: _Suites = _Suites()


class AnswersParams(Params, frozen=True, kw_only=True):
    where: Annotated[
        str | None, argument("Run, or folder of an evaluation; default: the newest evaluation in this home.")
    ] = None
    suite: Annotated[str | None, option("Only of this suite.")] = None
    failed: Annotated[bool, option("Only answers whose code was run and failed.")] = False
    of: Annotated[str | None, option("Only of this model: its label, its name, 0 or 1.")] = None
    id: Annotated[str | None, option("Question to show, with its answers in full.")] = None
    tables: Annotated[bool, option("Only the tables that compare the models.")] = False
    all: Annotated[bool, option("List the evaluations of this home, the newest first.")] = False


def run(params: AnswersParams, context: StageContext) -> StageResult:
    if params.all:
        past = past_evaluations(context.workspace)
        context.emit(past)
        if not past.rows:
            context.note(f"nothing was evaluated in {context.workspace.root}", fix="amigo-local evaluate REF [REF]")
        return StageResult()
    folder = evaluation_folder(params.where, context.workspace)
    result = read_results(folder)
    chosen = list(_chosen(params, result))
    if params.id:
        if not chosen:
            raise InputError(f"no answer in {folder} is to a question {params.id}{_near(params.id, result)}", _HINT)
        for answer in chosen:
            context.emit(answer)
        return StageResult()
    context.note(f"evaluation {folder}; {result.backend}; code was run by {result.sandbox}")
    for table in result.tables():
        context.emit(table)
    if not params.tables:
        rows = tuple(_row(answer) for answer in chosen)
        context.emit(Table("Answers", _COLUMNS, rows))
    return StageResult()


def past_evaluations(workspace: Workspace) -> Table:
    """Newest first."""
    rows = []
    for artifact in reversed(list(workspace.artifacts())):
        if not _is_evaluation(artifact.path):
            continue
        asked = msgspec.convert(artifact.params, _Asked)
        refs = " → ".join(asked.refs) + (" + adapter" if asked.adapter else "")
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(artifact.created))
        rows.append((refs, made, ", ".join(asked.settings.suites), artifact.run_id, artifact.path))
    columns = (Column("models"), Column("made"), Column("suites"), Column("run"), Column("evaluation"))
    return Table("Evaluations", columns, tuple(rows))


def evaluation_folder(where: str | None, workspace: Workspace) -> Path:
    """Of a run the last evaluation. Raises InputError when there is none."""
    if where is None:
        found = [artifact for artifact in workspace.artifacts() if _is_evaluation(artifact.path)]
        if not found:
            raise InputError(f"there is no evaluation in {workspace.root}", "amigo-local evaluate REF [REF]")
        return Path(found[-1].path)
    path = Path(where).expanduser().absolute()
    if (path / _RESULTS).is_file():
        return path
    if path.is_dir():
        raise InputError(f"{path} holds no {_RESULTS}", "give a run, or the folder of an evaluation")
    made = [artifact for artifact in run_artifacts(workspace, where) if artifact.kind == "report"]
    if not made:
        raise InputError(f"run {where} has evaluated nothing yet", f"amigo-local runs show {where}")
    return Path(made[-1].path)


def _is_evaluation(path: str) -> bool:
    return (Path(path) / _RESULTS).is_file()


def read_results(folder: Path) -> EvaluationResult:
    """Raises InputError when the file is gone, damaged or of a version that wrote other fields."""
    from amigo_local.evaluation.results import EvaluationResult

    path = folder / _RESULTS
    try:
        return msgspec.json.decode(path.read_bytes(), type=EvaluationResult)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}", "evaluate again") from error
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} can't be understood: {error}", "evaluate again: amigo-local evaluate") from error


def _chosen(params: AnswersParams, result: EvaluationResult) -> Iterator[AnswerShown]:
    names = [suite.name for suite in result.suites]
    if params.suite and params.suite not in names:
        raise InputError(f"no suite {params.suite!r} was run", f"there are: {', '.join(names)}")
    sides = _sides(params.of, result)
    for suite in result.suites:
        if params.suite not in (None, suite.name):
            continue
        for place, prompt_id in enumerate(suite.prompt_ids):
            if params.id not in (None, prompt_id):
                continue
            for side in sides:
                judged = suite.answers[side][place]
                if params.failed and judged.passed is not False:
                    continue
                yield AnswerShown(
                    prompt_id=prompt_id,
                    suite=suite.name,
                    prompt=suite.prompts[place],
                    side=side,
                    label=result.labels[side],
                    model=result.models[side],
                    answer=judged.text,
                    passed=judged.passed,
                    verdict=_verdict(judged),
                    figures=_figures(judged),
                )


def _sides(of: str | None, result: EvaluationResult) -> list[int]:
    if of is None:
        return list(range(len(result.models)))
    for side, names in enumerate(zip(result.labels, result.models, strict=True)):
        if of in (*names, str(side)):
            return [side]
    there = ", ".join(f"{side} ({label})" for side, label in enumerate(result.labels))
    raise InputError(f"no model {of!r} was asked", f"there are: {there}")


def _verdict(judged: Judged) -> str:
    if judged.passed:
        return "passed"
    return "not run" if judged.passed is None else judged.verdict or "failed"


def _figures(judged: Judged) -> dict[str, Figure]:
    """What was measured; what doesn't apply is left out."""
    figures: dict[str, Figure] = {
        "tokens": judged.answer_tokens,
        "tokens_before_code": judged.opening.tokens_before_code,
        "only_code": judged.opening.only_code,
        "prompt_tokens": judged.prompt_tokens,
        "seconds": judged.answer_seconds,
        "stop_reason": judged.stop_reason,
    }
    skills = {"names_share": judged.names_share, "unchanged": judged.unchanged, "chain": judged.chain}
    return figures | {name: value for name, value in skills.items() if value is not None}


def _row(answer: AnswerShown) -> tuple[Figure, ...]:
    figures = answer.figures
    told = (answer.verdict, figures["tokens"], figures["tokens_before_code"])
    return (answer.prompt_id, answer.suite, answer.label, *told)


def _near(prompt_id: str, result: EvaluationResult) -> str:
    known = list(dict.fromkeys(each for suite in result.suites for each in suite.prompt_ids))
    near = difflib.get_close_matches(prompt_id, known, n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(near)}" if near else ""


STAGE = Stage(
    "answers",
    "What the models answered in an evaluation, and how it was judged.",
    AnswersParams,
    run,
    place="here",
    locks=False,
)
