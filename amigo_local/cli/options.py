"""click options and arguments, generated from a stage's typed settings."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

import click
import msgspec
from msgspec import Meta

from amigo_local.domain.errors import InputError
from amigo_local.engine.contract import Params
from amigo_local.engine.settings_tree import build, parse_override


def click_parameters(params: type[Params]) -> list[click.Parameter]:
    """One click parameter per field, in field order; hidden fields have none."""
    hints = typing.get_type_hints(params, include_extras=True)
    found = []
    for field in msgspec.structs.fields(params):
        hint, meta = _unwrap(hints[field.name])
        extra: Mapping[str, Any] = (meta.extra if meta else None) or {}
        if extra.get("hidden"):
            continue
        description = (meta.description if meta else None) or ""
        default = None if field.required else field.default
        found.append(_parameter(field.name, hint, field.required, default, description, bool(extra.get("argument"))))
    return found


def _unwrap(hint: Any) -> tuple[Any, Meta | None]:
    """The type without Annotated and None, and its Meta."""
    meta = None
    if typing.get_origin(hint) is typing.Annotated:
        hint, *metas = typing.get_args(hint)
        # A type may bring a Meta of its own: Positive is Annotated[int, Meta(ge=1)].
        meta = next((m for m in metas if isinstance(m, Meta) and m.description), None)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        hint = members[0] if len(members) == 1 else str
    return hint, meta


_SHORT = {"count": ("-n",)}
_CHOICES_IN_METAVAR = 12  # more would fill three lines of every usage message


def _parameter(
    name: str, hint: Any, required: bool, default: Any, description: str, positional: bool
) -> click.Parameter:
    many = typing.get_origin(hint) is tuple
    item = typing.get_args(hint)[0] if many else hint
    kind = _click_type(item)
    if positional:
        metavar = name.upper() + ("..." if many else "")
        return click.Argument(
            [name],
            required=required,
            nargs=-1 if many else 1,
            type=kind,
            metavar=metavar if required else f"[{metavar}]",
        )
    flag = name.replace("_", "-")
    if hint is bool:
        return click.Option(
            [f"--{flag}/--no-{flag}" if default else f"--{flag}", name], is_flag=True, default=None, help=description
        )
    if isinstance(kind, click.Choice) and len(kind.choices) > _CHOICES_IN_METAVAR:
        description = f"{description} One of: {', '.join(map(str, kind.choices))}."
        shown_as: str | None = name.upper()
    else:
        shown_as = None if isinstance(kind, click.Choice) else _metavar(name, kind)
    shown: str = f"{description} [default: {default}]" if default not in (None, (), "") else description
    names = [f"--{flag}", *_SHORT.get(name, ()), name]
    return click.Option(names, required=required, default=None, multiple=many, type=kind, help=shown, metavar=shown_as)


def _click_type(hint: Any) -> click.ParamType[Any, Any]:
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is typing.Literal:
        return click.Choice([str(word) for word in typing.get_args(hint)])
    kinds: dict[Any, click.ParamType[Any, Any]] = {int: click.INT, float: click.FLOAT, bool: click.BOOL}
    return kinds.get(hint, click.STRING)


def _metavar(name: str, kind: click.ParamType[Any, Any]) -> str:
    if kind is click.INT or kind is click.FLOAT:
        return "N"
    words = {"out": "PATH", "adapter": "DIR", "base": "REF", "model": "REF", "like": "REF", "run": "ID"}
    words |= {"imatrix": "FILE|auto", "repo": "ORG/NAME", "texts": "PATH"}
    return words.get(name, name.upper())


def build_params(params: type[Params], given: Mapping[str, Any], overrides: tuple[str, ...]) -> Params:
    """The settings: defaults < command line < --set. Recipe verbs take --set as recipe keys."""
    values = {name: value for name, value in given.items() if value is not None and value != ()}
    names = {field.name for field in msgspec.structs.fields(params)}
    if "overrides" in names:
        values["overrides"] = overrides
    else:
        for text in overrides:
            settled = build(_AnySubset.of(params), parse_override(text))
            values.update({name: value for name in names if (value := getattr(settled, name, None)) is not None})
    try:
        return msgspec.convert(values, params)
    except msgspec.ValidationError as error:
        raise InputError(str(error).replace(" - at `$.", " - at `"), "see --help of this command") from error


class _AnySubset:
    """The same fields, none required: what `--set` may give."""

    @staticmethod
    def of(params: type[Params]) -> type[Params]:
        hints = typing.get_type_hints(params, include_extras=True)
        fields = [(name, hint | None, None) for name, hint in hints.items()]
        subset: type[Params] = msgspec.defstruct(  # type: ignore[assignment]  # its base is Params
            params.__name__, fields, bases=(Params,), frozen=True, kw_only=True
        )
        return subset
