"""FormField: one setting of a typed struct as a form shows it; read off the struct's annotations."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from textwrap import indent
from typing import Any, Literal

import msgspec
from msgspec import Meta

from amigo_local.domain.errors import InputError
from amigo_local.engine.field_docs import field_docs
from amigo_local.engine.setting_text import default_of, setting_text
from amigo_local.engine.settings_tree import Branch, build, parse_override, parse_yaml

FieldKind = Literal["bool", "choice", "integer", "number", "text", "text list", "yaml"]
"""`yaml`: anything richer, such as data sources, as YAML on one line."""
BUILT_IN = "built-in default"


@dataclass(frozen=True)
class FormField:
    key: str
    """`train.lora.rank`."""
    kind: FieldKind
    hint: Any
    """The annotation, which decides what is valid."""
    choices: tuple[str, ...]
    """The words that there are: of a choice, or of the items of a list."""
    bounds: str
    """`≥ 1`, `> 0 and < 0.5`; empty: none."""
    optional: bool
    """Whether it may be left open (None)."""
    default: Any
    value: Any
    """As loaded."""
    origin: str
    """`recipes/base.yaml:12`, or the words of BUILT_IN."""
    doc: str

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    def shown(self, value: Any) -> str:
        """As a person edits it. Plain text stands without quotes, and an empty one means None."""
        if value is None:
            return ""
        return value if self.kind == "text" else setting_text(value)

    def check(self, text: str) -> Any:
        """The value that a typed text gives. Raises InputError with the words of a recipe's or --set's own errors."""
        try:
            alone = msgspec.defstruct(self.name, [(self.name, self.hint)], kw_only=True)
            found = build(alone, self._parsed(text), f"{self.section}." if self.section else "")
        except InputError as error:
            raise InputError(_placed(error.message, self.key), error.hint) from error
        return getattr(found, self.name)

    def _parsed(self, text: str) -> Branch:
        if self.kind == "yaml" and "\n" in text.strip():  # as in a file; an error then names its line
            return parse_yaml(f"{self.name}:\n{indent(text.rstrip(), '  ')}", self.key)
        tree = parse_override(f"{self.key}={self._as_yaml(text)}")
        for part in self.section.split(".") if self.section else ():
            tree = typing.cast(Branch, tree.children[part])
        return tree

    def _as_yaml(self, text: str) -> str:
        text = text.strip()
        if self.kind == "text":
            return setting_text(text if text or not self.optional else None)
        bare = self.kind == "text list" and not text.startswith("[")
        if bare and not (text in self.choices and _options(self.hint)[0] is not tuple):
            return f"[{text}]"  # brackets are for flags; in a form `a, b` is plain enough
        return text


def _placed(message: str, key: str) -> str:
    """Where in a form: nowhere but the field, or one of its lines, whose first is below the key."""
    message = message.removeprefix(f"--set {key}: ")
    return re.sub(rf"^{re.escape(key)}:(\d+): ", lambda found: f"line {int(found[1]) - 1}: ", message)


def fields_of(settings: msgspec.Struct, origins: Mapping[str, str], path: str = "") -> Iterator[FormField]:
    """Every leaf in the order of the struct; structs within it are sections."""
    struct = type(settings)
    hints, docs = typing.get_type_hints(struct, include_extras=True), field_docs(struct)
    for field in msgspec.structs.fields(struct):
        key, value, hint = f"{path}{field.name}", getattr(settings, field.name), hints[field.name]
        if isinstance(value, msgspec.Struct) and hint is type(value):
            yield from fields_of(value, origins, f"{key}.")
            continue
        within = (origin for name, origin in origins.items() if name.startswith(f"{key}."))
        yield FormField(
            key=key,
            kind=_kind(hint),
            hint=hint,
            choices=_words(hint),
            bounds=_bounds(hint),
            optional=type(None) in _members(hint),
            default=default_of(field),
            value=value,
            origin=origins.get(key) or next(within, BUILT_IN),
            doc=docs.get(field.name, ""),
        )


def _members(hint: Any) -> list[Any]:
    """Of a union, Annotated peeled off."""
    if typing.get_origin(hint) is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [inner for member in typing.get_args(hint) for inner in _members(member)]
    return [hint]


def _options(hint: Any) -> list[Any]:
    """What kinds of value there are besides None: types, and `Literal` or `tuple` for those."""
    return [typing.get_origin(member) or member for member in _members(hint) if member is not type(None)]


def _kind(hint: Any) -> FieldKind:
    options = _options(hint)
    if tuple in options and all(option in (tuple, typing.Literal, str) for option in options):
        item = next(typing.get_args(member)[0] for member in _members(hint) if typing.get_origin(member) is tuple)
        return "text list" if all(option in (typing.Literal, str) for option in _options(item)) else "yaml"
    kinds: dict[Any, FieldKind] = {bool: "bool", typing.Literal: "choice", int: "integer", float: "number", str: "text"}
    return kinds.get(options[0], "yaml") if len(options) == 1 else "yaml"


def _words(hint: Any) -> tuple[str, ...]:
    words: list[str] = []
    for member in _members(hint):
        if typing.get_origin(member) is typing.Literal:
            words += map(str, typing.get_args(member))
        elif typing.get_origin(member) is tuple:
            words += _words(typing.get_args(member)[0])
    return tuple(words)


def _bounds(hint: Any) -> str:
    metas = [meta for meta in _metas(hint) if isinstance(meta, Meta)]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {limit:g}"
        for meta in metas
        for name, sign in signs.items()
        if (limit := getattr(meta, name)) is not None
    ]
    return " and ".join(found)


def _metas(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is typing.Annotated:
        inner, *metas = typing.get_args(hint)
        return [*metas, *_metas(inner)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [meta for member in typing.get_args(hint) for meta in _metas(member)]
    return []
