"""Modelfiles as files: what `ollama create -f` makes of them is the reference for our reading and writing."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Note
from amigo_local.domain.generation import Message
from amigo_local.domain.modelfile import Modelfile, parse_modelfile
from amigo_local.serving.modelfile_export import write_modelfile
from amigo_local.serving.ollama_details import definition_from_show
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.serving.templates import families
from tests.serving.conftest import Events
from tests.support.ollama_server import RealOllama
from tests.support.tiny_gguf import write_tiny_llama

# No FROM among them: a server given an unknown one begins to pull it.
PIECES = ['"', '""', '"""', "\n", "\r\n", " ", "\t", "#", ": ", "é", "🙂", "\\n", "'", "\u00a0", "\u200d", "x"]
COMMANDS = [
    "SYSTEM ",
    "system\t",
    "TEMPLATE ",
    "MESSAGE user ",
    "MESSAGE robot ",
    "PARAMETER stop ",
    "PARAMETER  stop ",
]
COMMANDS += [
    "PARAMETER top_k 3",
    "PARAMETER top_k ",
    "PARAMETER temperature .5\n",
    "LICENSE ",
    "# ",
    "SYSTEM",
    "SYSTM ",
]


def made_by_ollama(ollama: RealOllama, server: OllamaServer, name: str, modelfile: Path) -> Modelfile | None:
    """None when Ollama refuses the file."""
    ran = ollama.command("create", name, "-f", modelfile)
    return definition_from_show(server.show(name)) if ran.returncode == 0 else None


def as_shown(definition: Modelfile, name: str) -> Modelfile:
    """A Modelfile in the form that /api/show gives it back."""
    parameters = tuple(sorted(definition.parameters, key=lambda pair: pair[0]))
    license_ = ("\n".join(definition.license),) if "".join(definition.license) else ()
    return msgspec.structs.replace(definition, from_=f"{name}:latest", parameters=parameters, license=license_)


def test_ollama_and_we_read_the_same_in_any_modelfile_or_both_refuse_it(
    ollama_server: RealOllama, server: OllamaServer, tmp_path: Path
) -> None:
    gguf = write_tiny_llama(tmp_path / "bare.gguf", chat_template=None)  # nothing to detect stops from
    randomness, file, read = random.Random(5), tmp_path / "Modelfile", 0
    for _ in range(60):
        text = f"FROM {gguf}\nTEMPLATE t\n"
        for _ in range(randomness.randint(1, 3)):
            quotes = randomness.choice(["", '"', '"""'])
            value = "".join(randomness.choices(PIECES, k=randomness.randint(0, 7)))
            text += randomness.choice(COMMANDS) + quotes + value + quotes + "\n"
        file.write_bytes(text.encode())
        theirs = made_by_ollama(ollama_server, server, "wild", file)
        try:
            ours = as_shown(parse_modelfile(text), "wild")
        except InputError:
            assert theirs is None, text
        else:
            assert theirs == ours, text
            read += 1
    assert 15 < read < 50


def test_what_we_write_ollama_makes(
    ollama_server: RealOllama, server: OllamaServer, tiny_gguf: Path, tmp_path: Path, events: Events
) -> None:
    hard = Modelfile(
        template='"{{ .Prompt }}" \n\t{{ .System }}\n',
        system=' "two\n\n"""quotes""" and: a # sign\n ',
        parameters=(("stop", '"'), ("stop", "\n"), ("temperature", 0.25), ("num_ctx", 128), ("use_mmap", False)),
        messages=(Message("user", "a: b\n"), Message("assistant", '"c"')),
        license=("Some \n license ",),
    )
    definitions = [hard, *(each.definition for each in families())]
    for definition in definitions:
        write_modelfile(tmp_path / "Modelfile", tiny_gguf, definition, events)
        assert made_by_ollama(ollama_server, server, "written", tmp_path / "Modelfile") == as_shown(
            definition, "written"
        )
    assert events == []


def test_what_a_modelfile_cannot_carry_is_left_out_and_told(tmp_path: Path, events: Events) -> None:
    definition = Modelfile(
        template="{{ .Prompt }}",
        system="a\u00a0b",
        parameters=(("stop", "\u200d"), ("top_k", 3)),
        messages=(Message("user", "fine"),),
        adapter="lost.gguf",
    )
    gguf = tmp_path / "model.gguf"
    write_modelfile(tmp_path / "Modelfile", gguf, definition, events)
    text = (tmp_path / "Modelfile").read_text()
    assert text == (
        "# Left out: SYSTEM holds U+00A0, which Ollama's parser drops\n"
        "# Left out: PARAMETER stop holds U+200D, which Ollama's parser drops\n"
        "FROM ./model.gguf\nTEMPLATE {{ .Prompt }}\nPARAMETER top_k 3\nMESSAGE user fine\n"
    )
    assert [event.level for event in events if isinstance(event, Note)] == ["warning", "warning"]
    (tmp_path / "sub").mkdir()
    write_modelfile(tmp_path / "sub" / "Modelfile", gguf, Modelfile(), events)
    assert (tmp_path / "sub" / "Modelfile").read_text() == f"FROM {gguf}\n"
