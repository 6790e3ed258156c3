"""Modelfile: what a served model is besides its weights, and Ollama's text form of it."""

from __future__ import annotations

import difflib
import re
from typing import cast

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import Message

ParameterValue = bool | int | float | str

# api/types.go: Runner and Options.
RUNNER_INTEGERS = frozenset({"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread"})
INTEGERS = RUNNER_INTEGERS | {"num_keep", "num_predict", "seed", "top_k", "repeat_last_n"}
FLOATS = frozenset(
    ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
)
BOOLEANS = frozenset({"use_mmap"})
STRINGS = frozenset({"stop"})
PARAMETERS = INTEGERS | FLOATS | BOOLEANS | STRINGS
# Accepted and ignored by every server of today (parser.go: deprecatedParameters; older Options fields).
DEPRECATED = frozenset({"mirostat", "mirostat_tau", "mirostat_eta", "tfs_z", "penalize_newline"}) | {
    *("low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "numa"),
}
COMMANDS = ("from", "template", "system", "adapter", "license", "message", "parameter")
NEWER_COMMANDS = ("renderer", "parser", "requires")
ROLES = ("system", "user", "assistant")
_TRUE, _FALSE = ["1", "t", "T", "TRUE", "true", "True"], ["0", "f", "F", "FALSE", "false", "False"]  # strconv.ParseBool


class Modelfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The commands of a Modelfile; empty means absent."""

    from_: str = ""
    """A tag, or the path of a GGUF file."""
    template: str = ""
    """Go template that turns messages into the prompt."""
    system: str = ""
    parameters: tuple[tuple[str, ParameterValue], ...] = ()
    """In order; `stop` may come several times."""
    messages: tuple[Message, ...] = ()
    """Turns that stand before every conversation."""
    license: tuple[str, ...] = ()
    adapter: str = ""
    renderer: str = ""
    """Name of a prompt renderer built into newer servers, in the place of a template."""
    parser: str = ""
    requires: str = ""
    """Oldest server version that serves it."""

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(str(value) for name, value in self.parameters if name == "stop")

    def parameter(self, name: str) -> ParameterValue | None:
        """The last value given; None when there is none."""
        return dict(self.parameters).get(name)

    def with_parameter(self, name: str, value: ParameterValue) -> Modelfile:
        """A copy in which `name` has this one value."""
        others = tuple(pair for pair in self.parameters if pair[0] != name)
        return msgspec.structs.replace(self, parameters=(*others, (name, value)))

    def render(self) -> str:
        """The text that `ollama create -f` reads back as this. Raises InputError when the grammar can't carry it."""
        if problems := self.inexpressible():
            raise InputError(
                f"a Modelfile can't carry this: {'; '.join(problems)}", "create the model through the server's API"
            )
        return "".join(f"{' '.join(words)} {_quoted(value)}\n" for words, value in self._commands())

    def inexpressible(self) -> tuple[str, ...]:
        """What Ollama's grammar would lose or misread, in words; empty when nothing."""
        found = []
        for words, value in self._commands():
            if lost := sorted({f"U+{ord(c):04X}" for c in value if not _carried(c)}):
                found.append(f"{' '.join(words)} holds {', '.join(lost)}, which Ollama's parser drops")
            # A quoted value ends at the first line that ends in its quotes (parser.go: unquote at every newline).
            if any(line.rstrip().endswith('"""') for line in re.split(r"[\r\n]", value)[:-1]):
                found.append(f'{" ".join(words)} holds a line that ends in """, where Ollama\'s parser would stop')
        return tuple(found)

    def _commands(self) -> list[tuple[tuple[str, ...], str]]:
        """(words before the value, value), in the order that Ollama prints them."""
        single = {"FROM": self.from_, "TEMPLATE": self.template, "RENDERER": self.renderer, "PARSER": self.parser}
        single |= {"SYSTEM": self.system, "ADAPTER": self.adapter, "REQUIRES": self.requires}
        commands: list[tuple[tuple[str, ...], str]] = [((name,), value) for name, value in single.items() if value]
        commands += [(("PARAMETER", name), format_parameter(value)) for name, value in self.parameters]
        commands += [(("MESSAGE", message.role), message.content) for message in self.messages]
        commands += [(("LICENSE",), text) for text in self.license]
        return commands


def parse_modelfile(text: str, name: str = "Modelfile") -> Modelfile:
    """Reads the text form, with parser.go's grammar; `name` is how errors call the file. Raises InputError.

    Unlike Ollama, a missing FROM is allowed: the templates that ship with the program have none.
    Deprecated parameters are dropped, as the server does.
    """
    fields: dict[str, str] = {}
    parameters: list[tuple[str, ParameterValue]] = []
    messages: list[Message] = []
    licenses: list[str] = []
    for command in _scan(text, name):
        if command.name == "parameter":
            if command.word not in DEPRECATED:
                parameters.append((command.word, _parameter_value(command, name)))
        elif command.name == "message":
            if command.word not in ROLES:
                raise _error(name, command.line, f"message role {command.word!r}", f"one of {', '.join(ROLES)}")
            messages.append(msgspec.convert({"role": command.word, "content": command.value}, Message))
        elif command.name == "license":
            licenses.append(command.value)
        elif command.name == "from" and "from_" in fields:
            raise _error(name, command.line, "a second FROM", "one FROM: a model of several files is not supported")
        else:
            fields["from_" if command.name == "from" else command.name] = command.value
    # Only the last value of anything but stop counts (parser.go: CreateRequest).
    last = {key: index for index, (key, _) in enumerate(parameters)}
    kept = tuple(pair for index, pair in enumerate(parameters) if pair[0] == "stop" or last[pair[0]] == index)
    return Modelfile(parameters=kept, messages=tuple(messages), license=tuple(licenses), **fields)


def format_parameter(value: ParameterValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


class _Command(msgspec.Struct, frozen=True):
    name: str
    word: str
    """Name of a parameter, role of a message, else empty."""
    value: str
    line: int


def _scan(text: str, source: str) -> list[_Command]:
    """parser.go: ParseFile, whose states are the blocks of this loop."""
    text = text.removeprefix("\ufeff")
    commands: list[_Command] = []
    at = 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
            continue
        line = 1 + text.count("\n", 0, at)
        if text[at] == "#":
            at = _end_of_line(text, at)
            continue
        name, at = _word(text, at, r"[A-Za-z]*")
        if name.lower() not in COMMANDS + NEWER_COMMANDS:
            raise _error(source, line, f"command {name or text[at : at + 12]!r}", _nearest(name.lower(), COMMANDS))
        if at == len(text) or text[at] not in " \t":
            raise _error(source, line, f"{name.upper()} without a value", "a blank and a value after it")
        at, word = at + 1, ""
        if name.lower() in ("parameter", "message"):
            word, at = _word(text, at, r"[A-Za-z0-9_]*" if name.lower() == "parameter" else r"[A-Za-z]*")
            if not word or at == len(text) or text[at] not in " \t":
                raise _error(source, line, f"{name.upper()} {word}".rstrip(), "a name, one blank and a value")
            at += 1
        value, at = _value(text, at, source, line)
        commands.append(_Command(name.lower(), word, value, line))
    return commands


def _word(text: str, at: int, pattern: str) -> tuple[str, int]:
    match = cast("re.Match[str]", re.compile(pattern).match(text, at))
    return match[0], match.end()


def _end_of_line(text: str, at: int) -> int:
    match = re.compile(r"[\r\n]").search(text, at)
    return match.start() if match else len(text)


def _value(text: str, at: int, source: str, line: int) -> tuple[str, int]:
    """A bare value ends with its line; a quoted one at the first line end where its quotes are closed."""
    end = at
    while True:
        end = _end_of_line(text, end)
        raw = "".join(c for c in text[at:end] if _carried(c)).strip()
        if (value := _unquoted(raw)) is not None:
            return value, end
        if end == len(text):
            raise _error(source, line, f"a value that opens with {raw[:3]} and never closes", "closing quotes")
        end += 1


def _unquoted(raw: str) -> str | None:
    for quotes in ('"""', '"'):
        if raw.startswith(quotes):
            closed = len(raw) >= 2 * len(quotes) and raw.endswith(quotes)
            return raw[len(quotes) : -len(quotes)] if closed else None
    return raw


def _carried(character: str) -> bool:
    """Go's strconv.IsPrint, and the blanks and line ends that the parser copies without asking it."""
    return character.isprintable() or character in "\t\r\n"


def _quoted(value: str) -> str:
    bare = value and value == value.strip() and not value.startswith('"') and not re.search(r"[\r\n]", value)
    return value if bare else f'"""{value}"""'


def _parameter_value(command: _Command, source: str) -> ParameterValue:
    name, text = command.word, command.value
    if name not in PARAMETERS:
        raise _error(source, command.line, f"unknown parameter {name!r}", _nearest(name, sorted(PARAMETERS)))
    try:
        if name in INTEGERS:
            return int(text)
        if name in FLOATS:
            return float(text)
    except ValueError:
        kind = "a whole number" if name in INTEGERS else "a number"
        raise _error(source, command.line, f"{name} {text!r}", kind) from None
    if name in BOOLEANS:
        if text not in _TRUE + _FALSE:
            raise _error(source, command.line, f"{name} {text!r}", "true or false")
        return text in _TRUE
    return text


def _nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"


def _error(source: str, line: int, found: str, expected: str) -> InputError:
    return InputError(f"{source}:{line}: {found}", expected if expected.startswith("did") else f"expected {expected}")
