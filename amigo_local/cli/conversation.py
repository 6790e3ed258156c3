"""`chat` without --prompt: reads lines or a file of prompts, keeps each side's history, runs the chat stage per turn,
and takes votes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from amigo_local.cli.voting import Ballot
from amigo_local.domain.errors import EXIT_CANCELLED, EXIT_DONE, InputError
from amigo_local.domain.events import Record, TokenGenerated
from amigo_local.domain.generation import Message
from amigo_local.engine.contract import Params
from amigo_local.engine.runner import Runner
from amigo_local.presentation.visible_text import visible

History = tuple[tuple[Message, ...], ...]
"""Earlier turns of each side."""


def converse(runner: Runner, params: Params, clock: Callable[[], float] = time.time) -> int:
    """Until an empty line, end of input or Ctrl-C; returns the exit code. The prompts of a file are asked one by one,
    each on its own: on a terminal an empty line asks the next."""
    if prompts := _prompts(params):
        params = msgspec.structs.replace(params, prompts=None)
    if prompts and not sys.stdin.isatty():
        return _ask_all(runner, params, prompts)
    if not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        if not text:
            raise InputError("there is nothing to ask", "give --prompt TEXT, or a question on stdin")
        return runner.run("chat", msgspec.structs.replace(params, prompt=text)).exit_code
    show = runner.on_record
    answers: dict[int, list[str]] = {}

    def listen(record: Record) -> None:
        if isinstance(record.event, TokenGenerated):
            answers.setdefault(record.event.side, []).append(record.event.text)
        show(record)

    runner.on_record = listen
    history: History = ()
    ballot = Ballot(runner.workspace.root, tuple(getattr(params, "ref", ())), clock)
    if prompts:
        click.echo(f"{len(prompts)} prompts: an empty line asks the next, Ctrl-D ends the conversation.", err=True)
    else:
        click.echo("An empty line or Ctrl-D ends the conversation.", err=True)
    while True:
        try:
            prompt = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            return EXIT_DONE
        if (said := ballot.hear(prompt)) is not None:
            click.echo(said, err=True)
            continue
        if not prompt and prompts:
            prompt, history = prompts.pop(0), ()
            click.echo(f"> {visible(prompt)}", err=True)
        if not prompt:
            return EXIT_DONE
        answers.clear()
        ballot.close()
        code = runner.run("chat", msgspec.structs.replace(params, prompt=prompt, history=history)).exit_code
        if code == EXIT_CANCELLED:
            runner.reset()  # Ctrl-C ends the answer, not the conversation
        elif code != EXIT_DONE:
            return code
        texts = tuple("".join(answers.get(side, [])) for side in range(max(answers, default=-1) + 1))
        if code == EXIT_DONE and (how := ballot.open(prompt, texts, history)):
            click.echo(how, err=True)
        history = _continued(history, prompt, texts)


def _prompts(params: Params) -> list[str]:
    path = getattr(params, "prompts", None)
    if path is None:
        return []
    from amigo_local.evaluation.prompt_sets import read_prompts

    return list(read_prompts(Path(path)))


def _ask_all(runner: Runner, params: Params, prompts: list[str]) -> int:
    for prompt in prompts:
        code = runner.run("chat", msgspec.structs.replace(params, prompt=prompt)).exit_code
        if code != EXIT_DONE:
            return code
    return EXIT_DONE


def _continued(history: History, prompt: str, texts: tuple[str, ...]) -> History:
    return tuple(
        (
            *(history[side] if side < len(history) else ()),
            Message("user", prompt),
            Message("assistant", text),
        )
        for side, text in enumerate(texts)
    )
