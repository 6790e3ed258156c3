"""A setting's value as the text that a person types for it, and back: YAML on one line."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import yaml

from amigo_local.engine.settings_tree import FLOATS


def setting_text(value: Any) -> str:
    """`16`, `2e-4`, `[directness, humaneval]`, `[{stdlib: all}]`: what `--set KEY=` takes to give this value again."""
    text = yaml.dump(
        plain(value), Dumper=_OneLine, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def yaml_text(value: Any) -> str:
    """The same as a file has it: mappings over several lines, lists of plain values on one."""
    return yaml.dump(plain(value), Dumper=_Lines, width=110, sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """As YAML can hold it. Of a struct what isn't its default, led by the key that tells its kind."""
    if isinstance(value, msgspec.Struct):
        names = [field.name for field in msgspec.structs.fields(value) if not _is_default(value, field)]
        names.sort(key=lambda name: name != value.__struct_config__.tag)
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _is_default(value: msgspec.Struct, field: msgspec.structs.FieldInfo) -> bool:
    return not field.required and getattr(value, field.name) == default_of(field)


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    """None for a required field, which has none."""
    if field.required:
        return None
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


class _OneLine(yaml.SafeDumper):
    """Quotes whatever our own reading wouldn't take for text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_OneLine.add_implicit_resolver(*FLOATS)


class _Lines(_OneLine):
    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        flat = not any(isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat or flow_style)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """On one line even where the text has several."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


def _number(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
    """1e-05 as people write it: 1e-5."""
    if not math.isfinite(number):
        return yaml.SafeDumper.represent_float(dumper, number)
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(number).replace("e-0", "e-").replace("e+", "e"))


_OneLine.add_representer(str, _text)
_OneLine.add_representer(float, _number)
