"""SettingsForm: typed settings as a list of fields, what is changed in them, and the flags that say the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.engine.form_field import FormField, fields_of
from amigo_local.engine.setting_text import setting_text

S = TypeVar("S", bound=msgspec.Struct)


def as_given(settings: S) -> S:
    return settings


@dataclass(frozen=True)
class SettingsForm(Generic[S]):
    """Changing it gives another form; what was loaded stays at hand to go back to."""

    loaded: S
    fields: tuple[FormField, ...]
    settings: S
    """With the changes."""
    settle: Callable[[S], S] = as_given
    """What loading does to values besides reading them: paths become absolute."""
    edits: Mapping[str, Any] = field(default_factory=dict)
    """Key -> value, of what is changed."""
    alone: bool = True
    """False: the same changes hold for other settings too (a chain's), where the loaded value is a change as well."""
    kept: tuple[str, ...] = ()
    """Flags that were loaded, and hold besides the changes."""

    @cached_property
    def _by_key(self) -> dict[str, FormField]:
        return {field.key: field for field in self.fields}

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._by_key)

    def field(self, key: str) -> FormField:
        """Raises InputError for a key that isn't there."""
        if key not in self._by_key:
            raise InputError(f"there is no setting {key} here", "amigo-local recipes show RECIPE")
        return self._by_key[key]

    def value(self, key: str) -> Any:
        """As it is now."""
        return self.edits[key] if key in self.edits else self.field(key).value

    def text(self, key: str) -> str:
        """The value as a person edits it."""
        return self.field(key).shown(self.value(key))

    def check(self, key: str, text: str) -> Any:
        """The value that a text gives. Raises InputError when it can't be, also together with its neighbours."""
        return value_at(self._with(key, self.field(key).check(text)), key)

    def edit(self, key: str, text: str) -> SettingsForm[S]:
        """With one field changed. Raises InputError as `check` does."""
        return self.put(key, self.field(key).check(text))

    def put(self, key: str, value: Any) -> SettingsForm[S]:
        """With a value that is of its type already."""
        settings = self._with(key, value)
        value = value_at(settings, key)
        if self.alone and value == self.field(key).value:
            return self.revert(key)
        return replace(self, settings=settings, edits={**self.edits, key: value})

    def revert(self, key: str) -> SettingsForm[S]:
        """With the loaded value."""
        settings = self._with(key, self.field(key).value)
        return replace(self, settings=settings, edits={k: edit for k, edit in self.edits.items() if k != key})

    def _with(self, key: str, value: Any) -> S:
        try:
            return self.settle(with_value(self.settings, key.split("."), value))
        except ValueError as error:
            raise InputError(f"{key}: {error}") from error

    @property
    def overrides(self) -> tuple[str, ...]:
        """What --set takes to give the same values, in the order of the fields."""
        changed = (f"{f.key}={setting_text(self.edits[f.key])}" for f in self.fields if f.key in self.edits)
        return (*self.kept, *changed)


def settings_form(settings: S, origins: Mapping[str, str], settle: Callable[[S], S] = as_given) -> SettingsForm[S]:
    """The form of what was loaded; origins: key path -> where a value came from."""
    return SettingsForm(settings, tuple(fields_of(settings, origins)), settings, settle)


def value_at(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


def with_value(settings: Any, parts: list[str], value: Any) -> Any:
    """A copy with one leaf replaced. Raises ValueError where the struct's own rules forbid it."""
    name, *rest = parts
    inner = with_value(getattr(settings, name), rest, value) if rest else value
    values = {other: getattr(settings, other) for other in settings.__struct_fields__}
    return type(settings)(**values | {name: inner})
