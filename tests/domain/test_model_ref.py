from __future__ import annotations

from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.model_ref import ModelRef, parse_model_ref


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("gemma3:12b", "ollama", "gemma3:12b"),
        ("ollama:gemma3:12b", "ollama", "gemma3:12b"),
        (
            "reedmayhew/claude-3.7-sonnet-reasoning-gemma3-12B",
            "ollama",
            "reedmayhew/claude-3.7-sonnet-reasoning-gemma3-12B",
        ),
        ("localhost:5001/ns/model:tag", "ollama", "localhost:5001/ns/model:tag"),
        ("hf.co/org/name:Q4_K_M", "ollama", "hf.co/org/name:Q4_K_M"),
        ("hf:google/gemma-3-12b-it", "hf", "google/gemma-3-12b-it"),
        ("run:20261123-141502-run", "run", "20261123-141502-run"),
        ("/models/x.gguf", "gguf", "/models/x.gguf"),
        ("/models/blobs/sha256-abc", "gguf", "/models/blobs/sha256-abc"),
    ],
)
def test_forms(text: str, kind: str, value: str) -> None:
    assert parse_model_ref(text) == ModelRef(kind, value)  # type: ignore[arg-type]


def test_a_relative_gguf_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_model_ref("x.gguf").value == str(tmp_path / "x.gguf")


def test_a_directory_with_a_config_is_a_checkpoint_even_when_its_name_could_be_a_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma3").mkdir()
    assert parse_model_ref("gemma3").kind == "ollama"
    (tmp_path / "gemma3" / "config.json").write_text("{}")
    assert parse_model_ref("gemma3") == ModelRef("checkpoint", str(tmp_path / "gemma3"))
    assert parse_model_ref("ollama:gemma3").kind == "ollama"


@pytest.mark.parametrize("text", ["", "   ", "two words", "hf:nameonly", "run:", "a/b/c/d/e", "x:y:z"])
def test_what_names_no_model_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_model_ref(text)
    assert "Ollama tag" in refused.value.hint
