"""Strict typed settings from layered YAML and flags; every leaf remembers where it came from."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import yaml

from amigo_local.domain.errors import InputError

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Leaf:
    """A value and its origin (`file:line` or a flag)."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Branch:
    """A mapping (str keys) or a list (index keys) of nodes."""

    children: dict[str, Leaf | Branch]
    is_list: bool
    origin: str


Node = Leaf | Branch


FLOATS = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)$"), list("-+0123456789"))
"""YAML 1.2 floats, for whatever reads or writes settings: to PyYAML `2e-4` is a string, and every learning rate is
written so."""


class _Loader(yaml.SafeLoader):
    """PyYAML's, with these floats too."""


_Loader.add_implicit_resolver(*FLOATS)


def parse_yaml(text: str, name: str) -> Branch:
    """The tree of one document. Raises InputError with file, line and what the parser met."""
    try:
        loader = _Loader(text)
        loader.name = name  # shown in PyYAML's own messages
        root = loader.get_single_node()
        if root is None:
            return Branch({}, False, name)
        node = _node(loader, root, name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise InputError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if isinstance(node, Leaf) or node.is_list:
        raise InputError(f"{name}: expected a mapping of settings at the top")
    return node


def _node(loader: _Loader, node: yaml.Node, name: str) -> Node:
    origin = f"{name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        children: dict[str, Node] = {}
        for key, value in node.value:
            text = str(loader.construct_object(key, deep=True))
            if text in children:
                raise InputError(f"{name}:{key.start_mark.line + 1}: {text}: given twice", "remove one of the two")
            child = _node(loader, value, name)
            children[text] = child
        return Branch(children, False, origin)
    if isinstance(node, yaml.SequenceNode):
        return Branch({str(i): _node(loader, item, name) for i, item in enumerate(node.value)}, True, origin)
    return Leaf(loader.construct_object(node, deep=True), origin)


def overlay(below: Branch, above: Branch) -> Branch:
    """Mappings merge key by key; lists and leaves of `above` replace."""
    children = dict(below.children)
    for key, node in above.children.items():
        old = children.get(key)
        mergeable = isinstance(old, Branch) and isinstance(node, Branch) and not old.is_list and not node.is_list
        children[key] = overlay(old, node) if mergeable else node  # type: ignore[arg-type]  # narrowed above
    return Branch(children, False, above.origin)


def parse_override(text: str) -> Branch:
    """`train.lora.rank=16` as a tree. Raises InputError when it has no `=`."""
    key, separator, value = text.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise InputError(f"--set {text}: expected key.path=value", "for example --set train.epochs=2")
    origin = f"--set {key.strip()}"
    try:
        node: Node = _reoriginated(parse_yaml(f"x: {value}", origin).children["x"], origin)
    except InputError as error:
        raise InputError(
            f"--set {text}: the value can't be read",
            "quote it for the shell, for example --set 'data.sources=[{stdlib: all}]'",
        ) from error
    for part in reversed(parts):
        node = Branch({part: node}, False, origin)
    assert isinstance(node, Branch)
    return node


def _reoriginated(node: Node, origin: str) -> Node:
    if isinstance(node, Leaf):
        return Leaf(node.value, origin)
    return Branch({key: _reoriginated(child, origin) for key, child in node.children.items()}, node.is_list, origin)


def build(struct: type[T], tree: Branch, path: str = "") -> T:
    """The struct that the tree describes. Raises InputError: origin, key, found, expected, nearest."""
    hints = typing.get_type_hints(struct, include_extras=True)
    values = {}
    for key, node in tree.children.items():
        here = f"{path}{key}"
        if key not in hints:
            raise InputError(
                f"{node.origin}: {here}: unknown key{_nearest(key, hints)}", f"keys here: {', '.join(hints)}"
            )
        values[key] = _value(hints[key], node, here)
    missing = [f.name for f in msgspec.structs.fields(struct) if f.required and f.name not in values]
    if missing:
        raise InputError(f"{tree.origin}: {path}{missing[0]}: missing", f"add `{missing[0]}: …`")
    try:
        return struct(**values)
    except ValueError as error:
        raise InputError(f"{tree.origin}: {path.rstrip('.') or struct.__name__}: {error}") from error


def _value(hint: Any, node: Node, path: str) -> Any:
    options = _options(hint)
    kinds = [option for option in options if _is_struct(option)]
    if len(kinds) > 1 and isinstance(node, Branch) and not node.is_list:
        return build(_kind_of(kinds, node, path), node, f"{path}.")
    for option in options:
        if isinstance(node, Branch):
            if _is_struct(option) and not node.is_list:
                return build(option, node, f"{path}.")
            item = typing.get_args(option)[0] if typing.get_origin(option) is tuple else None
            if node.is_list and item is not None:
                return tuple(_value(item, child, f"{path}[{i}]") for i, child in node.children.items())
    plain = _plain(node)
    try:
        return msgspec.convert(plain, hint)
    except msgspec.ValidationError as error:
        reason = str(error).split(" - at ")[0]
        words = [a for o in _options(hint) if typing.get_origin(o) is typing.Literal for a in typing.get_args(o)]
        known = f"one of: {', '.join(map(str, words))}" if words else ""
        near = _nearest(str(plain), words) if words else ""
        raise InputError(
            f"{node.origin}: {path}: found {plain!r}: {reason[0].lower()}{reason[1:]}{near}", known
        ) from error


def _is_struct(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, msgspec.Struct)


def _kind_of(kinds: Sequence[type[msgspec.Struct]], node: Branch, path: str) -> type[msgspec.Struct]:
    """Which of several tagged structs a mapping describes: the one whose tag is among its keys."""
    by_tag = {str(kind.__struct_config__.tag): kind for kind in kinds}
    named = [tag for tag in by_tag if tag in node.children]
    if len(named) == 1:
        return by_tag[named[0]]
    found = f"both {named[0]} and {named[1]}" if named else ", ".join(node.children) or "nothing"
    near = "" if named else "".join(_nearest(key, list(by_tag)) for key in node.children)
    raise InputError(
        f"{node.origin}: {path}: found {found}, expected exactly one kind{near}", f"one of: {', '.join(by_tag)}"
    )


def _options(hint: Any) -> list[Any]:
    """The members of a union, Annotated and None peeled off."""
    if typing.get_origin(hint) is typing.Annotated:
        return _options(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for member in typing.get_args(hint) for option in _options(member)]
    return [] if hint is type(None) else [hint]


def _plain(node: Node) -> Any:
    if isinstance(node, Leaf):
        return node.value
    if node.is_list:
        return [_plain(child) for child in node.children.values()]
    return {key: _plain(child) for key, child in node.children.items()}


def _nearest(key: str, known: Mapping[str, Any] | Sequence[Any]) -> str:
    near = difflib.get_close_matches(key, [str(word) for word in known], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def origins(tree: Branch, path: str = "") -> dict[str, str]:
    """Every leaf's key path -> where it came from."""
    found: dict[str, str] = {}
    for key, node in tree.children.items():
        if isinstance(node, Branch) and not node.is_list:
            found.update(origins(node, f"{path}{key}."))
        else:
            found[f"{path}{key}"] = node.origin
    return found
