"""chat: one model, or two side by side, streaming, with speed and load time apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import GenerationFinished, TokenGenerated
from amigo_local.domain.generation import ChatBackend, GenerationOptions, Message
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument, option
from amigo_local.stages._models import newest_run_with
from amigo_local.stages._talk import BackendChoice, choose_backend
from amigo_local.stages._together import Side, answer_together, room_for_two


class ChatParams(Params, frozen=True, kw_only=True):
    ref: Annotated[tuple[str, ...], argument("REF of one model, or of two for A/B; none: the newest run's.")] = ()
    prompt: Annotated[str | None, option("Ask this and end; without it a conversation begins.")] = None
    prompts: Annotated[
        str | None, option("File of prompts to ask in a conversation, one by one: .jsonl, .txt or .md.")
    ] = None
    system: Annotated[str | None, option("System message.")] = None
    temperature: Annotated[float, option("0 is greedy.")] = 0.0
    max_tokens: Annotated[int, option("Longest answer.")] = 1024
    context_length: Annotated[int, option("Tokens of context.")] = 4096
    seed: Annotated[int, option("For temperatures above 0.")] = 0
    together: Annotated[
        Literal["no", "auto"], option("auto: two models answer at the same time when both fit into memory.")
    ] = "no"
    history: Annotated[tuple[tuple[Message, ...], ...], option("Earlier turns of each side.", hidden=True)] = ()


def run(params: ChatParams, context: StageContext) -> StageResult:
    refs = params.ref or (_newest(context),)
    if len(refs) > 2:
        raise InputError(f"chat takes one or two models, not {len(refs)}", "amigo-local chat REF [REF]")
    if params.prompts:
        raise InputError(
            "a file of prompts is asked in a conversation",
            "amigo-local chat REF --prompts FILE, without --prompt or --json",
        )
    if not params.prompt:
        raise InputError("there is nothing to ask", "give --prompt TEXT, or start `amigo-local chat` on a terminal")
    choice = choose_backend(refs, context)
    options = GenerationOptions(
        temperature=params.temperature,
        seed=params.seed,
        max_tokens=params.max_tokens,
        context_length=params.context_length,
    )
    if params.together == "auto" and len(refs) == 2:
        room = room_for_two(choice, params.context_length, context)
        context.note(room.why)
        if room.fits:
            _together(refs, choice, options, params, context)
            return StageResult()
    _in_turn(refs, choice, options, params, context)
    return StageResult()


def _in_turn(
    refs: Sequence[str], choice: BackendChoice, options: GenerationOptions, params: ChatParams, context: StageContext
) -> None:
    backend = _told(choice.open(context), params, context)
    for side, model in enumerate(choice.models):

        def say(text: str, side: int = side) -> None:
            context.emit(TokenGenerated(side, 0, text))

        answer = backend.generate(model, _messages(params, side), options, say)
        if len(choice.models) > 1:
            backend.unload(model)  # two models may not fit; load time is reported apart
        context.emit(GenerationFinished.of(answer, side, 0, refs[side]))


def _together(
    refs: Sequence[str], choice: BackendChoice, options: GenerationOptions, params: ChatParams, context: StageContext
) -> None:
    backends = [choice.open(context, sharing=len(refs)) for _ in refs]
    _told(backends[0], params, context)
    sides = [
        Side(ref, model, backend, _messages(params, number))
        for number, (ref, model, backend) in enumerate(zip(refs, choice.models, backends, strict=True))
    ]
    answer_together(sides, options, context.emit)


def _told(backend: ChatBackend, params: ChatParams, context: StageContext) -> ChatBackend:
    if not params.history:
        context.note(f"served by {backend.name}")
    return backend


def _messages(params: ChatParams, side: int) -> tuple[Message, ...]:
    system = (Message("system", params.system),) if params.system else ()
    earlier = params.history[side] if side < len(params.history) else ()
    return (*system, *earlier, Message("user", params.prompt or ""))


def _newest(context: StageContext) -> str:
    run_id, _ = newest_run_with(context.workspace, "gguf")
    context.note(f"the newest run that made a model: {run_id}")
    return f"run:{run_id}"


STAGE = Stage("chat", "Talk to one model, or to two side by side.", ChatParams, run, locks=False)
