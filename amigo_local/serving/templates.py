"""Chat templates for sources that have none: one Go and Jinja pair per family, and which fits a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import Message
from amigo_local.domain.modelfile import Modelfile, parse_modelfile
from amigo_local.serving.chat_rendering import render_chat
from amigo_local.serving.ollama_details import definition_from_show
from amigo_local.shipped import shipped_folder

__all__ = ["ChosenTemplate", "choose_template", "definition_from_show", "families", "family"]

# A token that only models of the family have, in the order in which they are asked for.
_MARKERS = {
    "gemma3": "<start_of_turn>",
    "llama3": "<|start_header_id|>",
    "chatml": "<|im_start|>",
    "mistral": "[INST]",
}
_BY_ARCHITECTURE = {"gemma": "gemma3", "gemma2": "gemma3", "gemma3": "gemma3", "qwen2": "chatml", "qwen3": "chatml"}
_SYSTEM = "What the system says."
_PROBES = (
    (Message("system", _SYSTEM), Message("user", "One?")),
    (Message("system", _SYSTEM), Message("user", "One?"), Message("assistant", "1."), Message("user", "Two?")),
)


class Family(msgspec.Struct, frozen=True):
    """`definition` holds the Go template and the stops for Ollama; `jinja` renders the same prompt."""

    name: str
    definition: Modelfile
    jinja: str


class ChosenTemplate(msgspec.Struct, frozen=True):
    """`exact`: the family renders what the model's own chat template renders, proven on conversations."""

    family: str
    definition: Modelfile
    jinja: str
    exact: bool


def families(folder: Path | None = None) -> Iterator[Family]:
    """Every pair in `modelfiles/`, in the order of their markers, then by name."""
    folder = folder or shipped_folder("modelfiles")
    order = list(_MARKERS)
    names = sorted(path.stem for path in folder.glob("*.Modelfile"))
    for name in sorted(names, key=lambda name: order.index(name) if name in order else len(order)):
        path = folder / f"{name}.Modelfile"
        yield Family(name, parse_modelfile(path.read_text("utf-8"), str(path)), _jinja(folder / f"{name}.jinja"))


def family(name: str, folder: Path | None = None) -> Family:
    found = {each.name: each for each in families(folder)}
    if name not in found:
        raise InputError(
            f"no chat family {name!r} in {folder or shipped_folder('modelfiles')}", f"one of {list(found)}"
        )
    return found[name]


def choose_template(
    chat_template: str | None,
    architecture: str,
    *,
    bos_token: str = "",
    eos_token: str = "",
    is_token: Callable[[str], bool] | None = None,
) -> ChosenTemplate:
    """The family for a model, and its definition for Ollama.

    With a chat template (`tokenizer.chat_template` of a GGUF or tokenizer_config.json) the family that
    renders the same prompts; a system text that the template adds by itself becomes the definition's
    SYSTEM. Else by a marker in the chat template or, through `is_token`, in the vocabulary; else by
    architecture; else ChatML. Raises InputError only when `modelfiles/` is broken.
    """
    known = list(families())
    if chat_template:
        for each in known:
            if _renders_same(each, chat_template, bos_token, eos_token):
                system = _own_system(each, chat_template, bos_token, eos_token)
                definition = msgspec.structs.replace(each.definition, system=system)
                return ChosenTemplate(each.name, definition, each.jinja, exact=True)
    name = _guess(chat_template or "", architecture, is_token or (lambda _: False))
    chosen = next(each for each in known if each.name == name)
    return ChosenTemplate(chosen.name, chosen.definition, chosen.jinja, exact=False)


def _guess(chat_template: str, architecture: str, is_token: Callable[[str], bool]) -> str:
    for name, marker in _MARKERS.items():
        if marker in chat_template or is_token(marker):
            return name
    return _BY_ARCHITECTURE.get(architecture, "chatml")


def _renders_same(each: Family, chat_template: str, bos_token: str, eos_token: str) -> bool:
    try:
        theirs = [render_chat(chat_template, probe, bos_token=bos_token, eos_token=eos_token) for probe in _PROBES]
    except InputError:  # no system role, say
        return False
    ours = [render_chat(each.jinja, probe) for probe in _PROBES]
    return [text.removeprefix(bos_token) for text in theirs] == ours


def _own_system(each: Family, chat_template: str, bos_token: str, eos_token: str) -> str:
    """The system text that a chat template adds when the messages have none; empty when it adds none."""
    user = Message("user", "One?")
    theirs = render_chat(chat_template, (user,), bos_token=bos_token, eos_token=eos_token).removeprefix(bos_token)
    before, _, after = render_chat(each.jinja, (Message("system", _SYSTEM), user)).partition(_SYSTEM)
    if theirs != render_chat(each.jinja, (user,)) and theirs.startswith(before) and theirs.endswith(after):
        return theirs[len(before) : len(theirs) - len(after)]
    return ""


def _jinja(path: Path) -> str:
    """Without the line end that editors put at the end of a file, which a template would render."""
    return path.read_text("utf-8").removesuffix("\n")
