"""Two models that answer at the same time: whether both fit, and how what they say comes out as one stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

from amigo_local.domain.errors import AmigoError, Cancelled, InputError
from amigo_local.domain.events import Emit, GenerationFinished, TokenGenerated
from amigo_local.domain.generation import Answer, ChatBackend, GenerationOptions, Message
from amigo_local.domain.units import format_size
from amigo_local.engine.contract import StageContext
from amigo_local.stages._models import ResolvedModel
from amigo_local.stages._serving import reachable
from amigo_local.stages._talk import BackendChoice

SPARE_BYTES = 512 << 20  # a CUDA context of each, and what other programs take meanwhile; a choice, not measured
_CANCEL_SECONDS = 5.0  # to the end of a token; whoever is still loading then goes with the process


class Room(NamedTuple):
    """Whether both models fit, and the sentence that says so."""

    fits: bool
    why: str


def room_for_two(choice: BackendChoice, context_length: int, context: StageContext) -> Room:
    """From the sizes of the files and what each needs to talk, against what is free now."""
    if unknown := _unknown(choice):
        return Room(False, f"whether both fit can't be known: {unknown}: one after the other")
    from amigo_local.serving.chat_memory import buffer_bytes, cache_bytes

    # The same tag twice is loaded once by a server; of the same file llama.cpp makes two models.
    models = choice.resolved if choice.place == "embedded" else {m.tag: m for m in choice.resolved}.values()
    weights = [_weight_bytes(model) for model in models]
    shapes = [model.shape() for model in models]
    talking = sum(cache_bytes(shape, context_length) + buffer_bytes(shape, context_length) for shape in shapes)
    free, kind = _free(choice, context)
    fits = sum(weights) + talking + SPARE_BYTES <= free
    sizes = [format_size(size) for size in weights]
    told = f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else " + ".join(sizes)
    figures = f"{told} + {format_size(talking + SPARE_BYTES)} for caches and buffers of {format_size(free)} {kind}"
    if fits:
        return Room(True, f"both fit: {figures}: they answer at the same time, so their speeds share the machine")
    return Room(False, f"both don't fit: {figures}: one after the other")


def _unknown(choice: BackendChoice) -> str:
    """Why the memory can't be reckoned; empty when it can."""
    if choice.place != "embedded":
        from amigo_local.serving.ollama_connection import is_loopback

        if not is_loopback(choice.place):
            return f"the Ollama server at {choice.place} is on another machine"
    for model in choice.resolved:
        if model.gguf is None:
            reason = model.unreadable.message if model.unreadable else "it isn't a file here"
            return f"the weights of {model.ref} can't be read ({reason})"
        try:
            model.shape()
        except InputError as error:
            return f"the dimensions of {model.ref} are unknown ({error.message})"
    return ""


def _weight_bytes(model: ResolvedModel) -> int:
    from amigo_local.weights.gguf_header import read_header

    return sum(part.stat().st_size for part in read_header(model.need_gguf("chat")).files)


def _free(choice: BackendChoice, context: StageContext) -> tuple[int, str]:
    """Bytes, with what the two hold already, and their name."""
    machine = context.machine
    on_card = machine.vram_free_bytes is not None
    held = 0
    if choice.place == "embedded":
        from amigo_local.serving.embedded import loads_on_card

        on_card = on_card and loads_on_card()
    elif server := reachable(context.settings):
        held = sum(
            loaded.size_vram_bytes if on_card else loaded.size_bytes
            for loaded in server.loaded()
            if loaded.name in choice.models
        )
    if on_card and machine.vram_free_bytes is not None:
        return machine.vram_free_bytes + held, "free VRAM"
    return machine.ram_available_bytes + held, "available RAM"


class Side(NamedTuple):
    """One of the models, and what it is asked. Each has a backend of its own."""

    ref: str
    model: str
    backend: ChatBackend
    messages: tuple[Message, ...]


@runtime_checkable
class _LoadsAhead(Protocol):
    """The embedded llama.cpp: two models must not be loaded by two threads."""

    def load(self, model: str, context_length: int) -> None: ...


def answer_together(sides: Sequence[Side], options: GenerationOptions, emit: Emit) -> None:
    """Each in a thread; all is emitted from the caller's own. What one side says is out even when the other fails.

    Raises AmigoError, naming the models that failed, when every other has answered.
    """
    failed = _load_in_turn(sides, options.context_length)
    stop = threading.Event()
    said: queue.SimpleQueue[tuple[int, str | Future[Answer]]] = queue.SimpleQueue()

    def talk(number: int, side: Side) -> Answer:
        def say(text: str) -> None:
            if stop.is_set():
                raise Cancelled
            said.put((number, text))

        return side.backend.generate(side.model, side.messages, options, say)

    def report(number: int, done: Future[Answer]) -> None:
        said.put((number, done))

    with ExitStack() as stack:
        pool = ThreadPoolExecutor(len(sides), thread_name_prefix="chat")
        tasks = {n: pool.submit(talk, n, side) for n, side in enumerate(sides) if n not in failed}
        stack.callback(pool.shutdown, wait=False)
        stack.callback(wait, tasks.values(), _CANCEL_SECONDS)
        stack.callback(stop.set)
        for number, task in tasks.items():
            task.add_done_callback(partial(report, number))
        talking = set(tasks)
        while talking:
            number, piece = said.get()
            if isinstance(piece, str):
                emit(TokenGenerated(number, 0, piece))
                continue
            talking.discard(number)
            if error := piece.exception():
                failed[number] = error
            else:
                emit(GenerationFinished.of(piece.result(), number, 0, sides[number].ref))
    if failed:
        raise _failure({sides[number].ref: error for number, error in sorted(failed.items())})


def _load_in_turn(sides: Sequence[Side], context_length: int) -> dict[int, BaseException]:
    """Those that llama.cpp can't load in this process. A server loads on its own."""
    failed: dict[int, BaseException] = {}
    for number, side in enumerate(sides):
        if not isinstance(side.backend, _LoadsAhead):
            continue
        try:
            side.backend.load(side.model, context_length)
        except AmigoError as error:
            failed[number] = error
    return failed


def _failure(failed: dict[str, BaseException]) -> BaseException:
    told = {ref: error for ref, error in failed.items() if isinstance(error, AmigoError)}
    for error in failed.values():
        if not isinstance(error, AmigoError):
            return error
    message = "; ".join(f"{ref} gave no whole answer: {error.message}" for ref, error in told.items())
    first = next(iter(told.values()))
    kind = InputError if all(isinstance(error, InputError) for error in told.values()) else AmigoError
    return kind(message, first.hint)
