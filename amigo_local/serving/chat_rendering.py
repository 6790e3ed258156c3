"""From messages to a prompt: a GGUF's Jinja chat template, run as transformers runs it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import jinja2
import msgspec
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import Message
from amigo_local.domain.modelfile import Modelfile


def render_chat(chat_template: str, messages: Iterable[Message], *, bos_token: str = "", eos_token: str = "") -> str:
    """The prompt that ends where the assistant's answer begins. Raises InputError when the template refuses.

    The environment is transformers' (utils/chat_template_utils.py: _compile_jinja_template), but for
    `strftime_now`, which is left out so that the same messages give the same prompt on any day.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(chat_template).render(
            messages=[msgspec.to_builtins(message) for message in messages],
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=True,
        )
    except jinja2.TemplateError as error:
        raise InputError(
            f"the model's chat template fails: {error}", "see tokenizer.chat_template in the GGUF"
        ) from error


def conversation(definition: Modelfile, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages as Ollama sees them before its template (server/routes.go: ChatHandler; template.go: collate).

    The definition's own turns come first, then its system unless the first message is one; neighbours of one
    role become one message, an empty line between them.
    """
    turns = (*definition.messages, *messages)
    if definition.system and not (turns and turns[0].role == "system"):
        turns = (Message("system", definition.system), *turns)
    groups = itertools.groupby(turns, key=lambda message: message.role)
    return tuple(Message(role, "\n\n".join(message.content for message in group)) for role, group in groups)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    """Unlike Jinja's own filter it escapes nothing for HTML."""
    text = msgspec.json.encode(value)
    return (msgspec.json.format(text, indent=indent) if indent else text).decode()
