"""What an Ollama server says of its models: entries of /api/tags and /api/ps, and the details of /api/show."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import msgspec

from amigo_local.domain.generation import Message
from amigo_local.domain.modelfile import PARAMETERS, Modelfile, ParameterValue, parse_modelfile


class OllamaTag(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    digest: str
    """`sha256:…` of the manifest file."""
    size_bytes: int
    modified: str
    """ISO 8601, as the server writes it."""
    family: str
    quantization: str
    parameter_size: str
    remote: bool
    """True for an entry that another machine serves: it has no weights here."""


class TagDetails(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    template: str
    parameters: tuple[tuple[str, ParameterValue], ...]
    system: str
    messages: tuple[Message, ...]
    license: tuple[str, ...]
    architecture: str
    """`general.architecture` of its GGUF, such as gemma3; empty for a remote entry."""
    context_length: int | None
    """What the model was trained with."""
    parameter_count: int | None
    quantization: str
    capabilities: tuple[str, ...]
    renderer: str
    parser: str
    requires: str
    remote: bool


def definition_from_show(details: TagDetails) -> Modelfile:
    """Everything that a tag is besides its weights, to create another one like it."""
    return Modelfile(
        from_=details.name,
        template=details.template,
        system=details.system,
        parameters=details.parameters,
        messages=details.messages,
        license=details.license,
        renderer=details.renderer,
        parser=details.parser,
        requires=details.requires,
    )


def tag_from_json(entry: Mapping[str, Any]) -> OllamaTag:
    details = entry.get("details") or {}
    return OllamaTag(
        name=entry["name"],
        digest=f"sha256:{entry['digest'].removeprefix('sha256:')}",
        size_bytes=entry["size"],
        modified=entry["modified_at"],
        family=details.get("family", ""),
        quantization=details.get("quantization_level", ""),
        parameter_size=details.get("parameter_size", ""),
        remote=bool(entry.get("remote_host") or entry.get("remote_model")),
    )


def details_from_json(name: str, shown: Mapping[str, Any]) -> TagDetails:
    info = shown.get("model_info") or {}
    architecture = info.get("general.architecture", "")
    return TagDetails(
        name=name,
        template=shown.get("template", ""),
        parameters=parse_shown_parameters(shown.get("parameters", "")),
        system=shown.get("system", ""),
        messages=messages_from_json(shown.get("messages") or []),
        license=(shown["license"],) if shown.get("license") else (),
        architecture=architecture,
        context_length=info.get(f"{architecture}.context_length"),
        parameter_count=info.get("general.parameter_count"),
        quantization=(shown.get("details") or {}).get("quantization_level", ""),
        capabilities=tuple(shown.get("capabilities") or ()),
        renderer=shown.get("renderer", ""),
        parser=shown.get("parser", ""),
        requires=shown.get("requires", ""),
        remote=bool(shown.get("remote_host") or shown.get("remote_model")),
    )


def messages_from_json(entries: list[dict[str, Any]]) -> tuple[Message, ...]:
    """Images, tool calls and other fields of MESSAGE entries are left out."""
    return tuple(msgspec.convert({"role": e["role"], "content": e.get("content", "")}, Message) for e in entries)


def parse_shown_parameters(text: str) -> tuple[tuple[str, ParameterValue], ...]:
    """The `parameters` of /api/show: lines of a name and a Go literal (server/routes.go: GetModelInfo, `%#v`)."""
    pairs: list[tuple[str, ParameterValue]] = []
    for line in text.splitlines():
        name, _, literal = line.strip().partition(" ")
        literal = literal.strip()
        if literal.startswith('"'):
            pairs.append((name, str(ast.literal_eval(literal))))  # Go's escapes are a subset of Python's
        elif name in PARAMETERS:
            pairs += parse_modelfile(f"PARAMETER {name} {literal}", "/api/show").parameters
    return _in_fixed_order(pairs)


def parameters_from_json(values: Mapping[str, Any]) -> tuple[tuple[str, ParameterValue], ...]:
    """The params layer of a store, or `parameters` of a create request."""
    pairs: list[tuple[str, ParameterValue]] = []
    for name, value in values.items():
        pairs += [(name, item) for item in (value if isinstance(value, list) else [value])]
    return _in_fixed_order(pairs)


def parameters_to_json(parameters: tuple[tuple[str, ParameterValue], ...]) -> dict[str, Any]:
    values: dict[str, Any] = {name: value for name, value in parameters if name != "stop"}
    if stops := [value for name, value in parameters if name == "stop"]:
        values["stop"] = stops
    return values


def _in_fixed_order(pairs: list[tuple[str, ParameterValue]]) -> tuple[tuple[str, ParameterValue], ...]:
    """By name, stops in their own order: the server lists them in the order of a Go map, which is random."""
    return tuple(sorted(pairs, key=lambda pair: pair[0]))
